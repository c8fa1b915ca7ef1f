//! The Unix socket: whose processes are served on it, and whose file it is.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::agent::{Agent, Sidecar};
use crate::client::PATIENCE;
use crate::gateway::Gateway;

/// A client on the socket, which knows no token.
pub(crate) fn send(path: &Path, request: &str) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // One that is turned away may not read it.
    let _ = stream.write_all(request.as_bytes());
    stream
}

/// What comes up to the end of the header.
pub(crate) fn head(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).unwrap()
}

fn place(agent: &Agent) -> PathBuf {
    agent.file("proxy.sock")
}

fn run(agent: &Agent, gateway: &Gateway, more: &[&str]) -> Sidecar {
    let path = place(agent);
    let options = [&["--socket", path.to_str().unwrap()], more].concat();
    agent.run_with(gateway, &options)
}

const CONNECT: &str = "CONNECT echo:443 HTTP/1.1\r\nHost: echo:443\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn own_processes_are_served_without_the_token() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let mut sidecar = run(&agent, &gateway, &[]);
    let mode = fs::metadata(place(&agent)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    tokio::task::block_in_place(|| {
        let mut stream = send(&place(&agent), CONNECT);
        let answer = head(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        stream.write_all(b"over the socket").unwrap();
        let mut echoed = [0; 15];
        stream.read_exact(&mut echoed).unwrap();
        assert_eq!(&echoed, b"over the socket");
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());

        let mut refused = String::new();
        let mut stream = send(&place(&agent), &CONNECT.replace("echo", "deny"));
        stream.read_to_string(&mut refused).unwrap();
        assert!(refused.contains("no_permission"), "{refused}");
    });
    // Whoever has no token has no way by the port.
    let (answer, _) = crate::client::connect(
        crate::client::Proxy {
            authorization: "",
            ..sidecar.proxy
        },
        "echo:443",
        "",
    )
    .await;
    assert_eq!(answer.status, 407);

    sidecar.process.terminate().unwrap();
    assert!(!place(&agent).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_users_that_are_not_named_are_turned_away() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    // In place of the own user, so that the tests' own processes are strangers.
    let mut sidecar = run(&agent, &gateway, &["--socket-uid", "65533"]);
    let mode = fs::metadata(place(&agent)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    let mut answer = String::new();
    let mut stream = send(&place(&agent), CONNECT);
    let read = stream.read_to_string(&mut answer);
    // Closed with our request unread, it may end by a reset behind the answer.
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer} {read:?}");
    assert!(answer.contains("socket_user_not_allowed"), "{answer}");
    sidecar.process.wait_for_log("user is not let in").unwrap();
    assert!(gateway.seen().requests.is_empty());
    drop(sidecar);

    let own = rustix::process::geteuid().as_raw().to_string();
    let _sidecar = run(&agent, &gateway, &["--socket-uid", &format!("65533,{own}")]);
    let answer = tokio::task::block_in_place(|| head(&mut send(&place(&agent), CONNECT)));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_socket_is_replaced_and_a_live_one_or_another_file_is_not() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let path = place(&agent);
    let option = path.to_str().unwrap().to_owned();
    let live = UnixListener::bind(&path).unwrap();
    let (code, told) = agent.refused_run(&gateway, &["--socket", &option]);
    assert_eq!(code, 69);
    assert!(
        told.contains("error: --socket: another process listens at"),
        "{told}"
    );
    drop(live);
    assert!(path.exists());
    drop(run(&agent, &gateway, &[]));

    // Killed, it has left its socket there.
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    let (code, told) = agent.refused_run(&gateway, &["--socket", &option]);
    assert_eq!(code, 73);
    assert!(told.contains("is not a socket\nhint: "), "{told}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn folder_in_which_others_could_swap_the_socket_is_refused() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let folder = agent.beside("open");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let path = folder.join("proxy.sock");
    let (code, told) = agent.refused_run(&gateway, &["--socket", path.to_str().unwrap()]);
    assert_eq!(code, 77);
    assert!(told.contains("or others may write to it\nhint: "), "{told}");
    assert!(!path.exists());

    let (code, _) = agent.refused_run(&gateway, &["--socket-uid", "1000"]);
    assert_eq!(code, 64);
}
