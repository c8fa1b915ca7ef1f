//! Started by a service manager: sockets that it opened, and what it is told.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use testbed::Process;

use crate::agent::Agent;
use crate::client::{PATIENCE, Proxy, tunnel};
use crate::gateway::Gateway;
use crate::sockets;

/// A process to which two sockets were passed.
struct Activated(Child);

impl Drop for Activated {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Activated {
    /// Starts `command` with `first` and `second` as its file descriptors 3 and 4.
    fn start(command: &Command, first: OwnedFd, second: OwnedFd) -> Self {
        let mut wrapped = Command::new("sh");
        wrapped
            .args([
                "-c",
                "exec 3<&0 4<&1 </dev/null >&2; export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$@\"",
                "sh",
            ])
            .arg(command.get_program())
            .args(command.get_args())
            .envs(command.get_envs().map(|(key, value)| (key, value.unwrap())))
            .stdin(Stdio::from(first))
            .stdout(Stdio::from(second))
            .stderr(Stdio::piped());
        Self(wrapped.spawn().unwrap())
    }

    fn wait_for_log(&mut self, text: &str) {
        // Byte by byte, so that what follows is left for the next reader.
        let stderr = self.0.stderr.as_mut().unwrap();
        let mut lines = BufReader::with_capacity(1, stderr);
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "{text} never came");
        }
    }

    fn end(&mut self) -> (ExitStatus, String) {
        let mut told = String::new();
        let stderr = self.0.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut told).unwrap();
        (self.0.wait().unwrap(), told)
    }

    fn terminate(&self) {
        let id = Pid::from_raw(self.0.id().try_into().unwrap()).unwrap();
        kill_process(id, Signal::TERM).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_were_passed_are_served_and_stay_when_it_ends() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    let path = agent.file("proxy.sock");
    let socket = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let command = agent.run_command(
        &gateway,
        &[
            "--listen",
            &address.to_string(),
            "--socket",
            path.to_str().unwrap(),
        ],
    );
    for _ in 0..2 {
        let mut sidecar = Activated::start(
            &command,
            port.try_clone().unwrap().into(),
            socket.try_clone().unwrap().into(),
        );
        sidecar.wait_for_log(" listening");
        let proxy = Proxy::at(agent.read("proxy.url").trim_end());
        assert_eq!(proxy.address, address);
        tunnel(proxy, "echo:443").await;
        let request = "CONNECT echo:443 HTTP/1.1\r\nHost: echo:443\r\n\r\n";
        let answer =
            tokio::task::block_in_place(|| sockets::head(&mut sockets::send(&path, request)));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        sidecar.terminate();
        let (status, told) = tokio::task::block_in_place(|| sidecar.end());
        assert!(status.success(), "{told}");
        assert!(path.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_are_not_configured_or_no_listeners_are_refused() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap().to_string();
    let path = agent.file("proxy.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let with = |more: &[&str]| agent.run_command(&gateway, more);
    let start = |command: &Command, second: OwnedFd| {
        let mut sidecar = Activated::start(command, port.try_clone().unwrap().into(), second);
        let (status, told) = sidecar.end();
        (status.code().unwrap(), told)
    };
    let (code, told) = start(
        &with(&["--listen", &address]),
        socket.try_clone().unwrap().into(),
    );
    assert_eq!(code, 64);
    let expected = format!(
        "{} was passed in LISTEN_FDS, but is not configured",
        path.display()
    );
    assert!(told.contains(&expected), "{told}");

    // Everybody may connect to it, which nobody asked for.
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let (code, told) = start(
        &with(&["--listen", &address, "--socket", path.to_str().unwrap()]),
        socket.try_clone().unwrap().into(),
    );
    assert_eq!(code, 77);
    assert!(
        told.contains("has mode 0666, which lets other users connect"),
        "{told}"
    );

    let file = std::fs::File::open("/dev/null").unwrap();
    let (code, told) = start(&with(&["--listen", &address]), file.into());
    assert_eq!(code, 64);
    assert!(told.contains("file descriptor 4"), "{told}");
    assert!(!agent.file("proxy.url").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_is_told_of_start_and_end() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let path = agent.beside("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = agent.run_command(&gateway, &[]);
    command.env("NOTIFY_SOCKET", &path);
    let mut process = Process::start("sidecar", &command).unwrap();
    let told = || {
        let mut bytes = [0; 64];
        let read = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..read].to_vec()).unwrap()
    };
    assert_eq!(tokio::task::block_in_place(told).trim_end(), "READY=1");
    assert!(agent.file("proxy.url").exists());
    process.terminate().unwrap();
    assert_eq!(told().trim_end(), "STOPPING=1");
}
