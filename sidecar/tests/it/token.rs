//! The local proxy serves those who know its token, and nobody else.

use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::agent::Agent;
use crate::client::{Answer, ask, connect, send, tunnel};
use crate::gateway::Gateway;

fn assert_asked_for_the_token(answer: &Answer, request: &str) {
    assert_eq!(answer.status, 407, "{request}");
    assert_eq!(
        answer.reason(),
        "proxy_authentication_required",
        "{request}"
    );
    assert_eq!(
        answer.headers["proxy-authenticate"],
        r#"Basic realm="agent-gateway-sidecar", charset="UTF-8""#
    );
    // What follows a refused request is not read for another one.
    assert_eq!(answer.headers["connection"], "close", "{request}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_the_token_are_refused_and_go_nowhere() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let mut sidecar = agent.run(&gateway);
    let right = sidecar.proxy.authorization;
    let guessed = BASE64_STANDARD.encode(format!("agent:{}", "0".repeat(64)));
    for headers in [
        String::new(),
        "Proxy-Authorization: Basic\r\n".to_owned(),
        "Proxy-Authorization: Basic YWdlbnQ6\r\n".to_owned(),
        format!("Proxy-Authorization: Basic {guessed}\r\n"),
        right.replace("Basic", "Bearer"),
        right.replace("Proxy-Authorization", "Authorization"),
        right.replace("\r\n", "AAAA\r\n"),
        format!("{right}{right}"),
        format!("{right}Proxy-Authorization: Basic {guessed}\r\n"),
    ] {
        for target in [
            "CONNECT echo:443",
            "GET http://echo/",
            "GET /",
            "CONNECT /x",
        ] {
            let request = format!("{target} HTTP/1.1\r\nHost: echo:443\r\n{headers}\r\n");
            let answer = ask(sidecar.proxy, request.as_bytes()).await;
            assert_asked_for_the_token(&answer, &request);
        }
    }
    assert!(gateway.seen().requests.is_empty());
    tunnel(sidecar.proxy, "echo:443").await;
    sidecar
        .process
        .wait_for_log("does not know the token")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_has_once_shown_the_token_has_to_show_it_again() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let token = sidecar.proxy.authorization;
    let both = format!("CONNECT deny:443 HTTP/1.1\r\n{token}\r\nCONNECT echo:443 HTTP/1.1\r\n\r\n");
    let mut stream = send(sidecar.proxy, both.as_bytes()).await;
    assert_eq!(crate::client::head(&mut stream).await.status, 403);
    drop(stream);
    tunnel(sidecar.proxy, "listen:443").await;
    let asked: Vec<_> = gateway.seen().requests.into_iter().map(|of| of.0).collect();
    assert_eq!(asked, ["deny:443", "listen:443"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_is_new_at_each_start_and_its_file_is_its_owners_alone() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let first = agent.run(&gateway);
    let url = agent.read("proxy.url");
    let mode = agent
        .file("proxy.url")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
    let told = agent.file("proxy.url").display().to_string();
    assert!(
        first.process.log().contains(&told),
        "{}",
        first.process.log()
    );
    drop(first);

    let second = agent.run(&gateway);
    assert_ne!(agent.read("proxy.url"), url);
    let mut stale = crate::client::Proxy::at(url.trim_end());
    stale.address = second.proxy.address;
    assert_eq!(connect(stale, "echo:443", "").await.0.status, 407);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_is_in_no_log_and_in_no_argument() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let mut command = agent.run_command(&gateway, &[]);
    command.env("RUST_LOG", "trace");
    let mut sidecar = agent.start(&command);
    tunnel(sidecar.proxy, "echo:443").await;
    connect(sidecar.proxy, "deny:443", sidecar.proxy.authorization).await;
    sidecar
        .process
        .wait_for_log("does not know the token")
        .unwrap();

    let url = agent.read("proxy.url");
    let token = url.split([':', '@']).nth(2).unwrap();
    assert_eq!(token.len(), 64);
    let encoded = sidecar
        .proxy
        .authorization
        .split(' ')
        .nth(2)
        .unwrap()
        .trim_end();
    let exec = agent
        .command(&["exec", "--", "cat", "/proc/self/cmdline"])
        .output()
        .unwrap();
    let log = sidecar.process.log();
    for told in [&log, &String::from_utf8(exec.stdout).unwrap()] {
        assert!(!told.is_empty());
        assert!(!told.contains(token) && !told.contains(encoded), "{told}");
    }
    let failed = agent
        .command(&["exec", "--", "no-such-command"])
        .output()
        .unwrap();
    assert!(!String::from_utf8(failed.stderr).unwrap().contains(token));
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_is_open_to_all_only_if_asked_for_and_only_on_loopback() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let open = agent.run_with(&gateway, &["--open-to-all"]);
    assert!(
        open.process.log().contains("WARN"),
        "{}",
        open.process.log()
    );
    assert!(open.process.log().contains("open to all"));
    assert_eq!(open.proxy.authorization, "");
    tunnel(open.proxy, "echo:443").await;
    drop(open);

    let closed = agent.run(&gateway);
    assert!(!closed.process.log().contains("open to all"));
    drop(closed);

    for address in ["0.0.0.0:0", "[::]:0"] {
        let (code, told) = agent.refused_run(&gateway, &["--open-to-all", "--listen", address]);
        assert_eq!(code, 64);
        let expected = format!("error: --open-to-all would open {address} to the network\nhint: ");
        assert!(told.contains(&expected), "{told}");
    }
}
