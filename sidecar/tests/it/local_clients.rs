//! Local clients that don't behave, or want what this proxy doesn't do.

use crate::agent::Agent;
use crate::client::{ask, connect, read_to_end, refused, send, tunnel};
use crate::gateway::Gateway;

#[tokio::test(flavor = "multi_thread")]
async fn anything_but_connect_is_refused_with_the_reason() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run_with(&gateway, &["--open-to-all"]);
    for request in [
        "GET http://docstore/health HTTP/1.1\r\nHost: docstore\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "POST http://docstore/ HTTP/1.1\r\nHost: docstore\r\nContent-Length: 4\r\n\r\nbody",
        "OPTIONS * HTTP/1.1\r\nHost: docstore\r\n\r\n",
        "BREW pot HTTP/1.1\r\n\r\n",
    ] {
        let answer = ask(sidecar.proxy, request.as_bytes()).await;
        assert_eq!(answer.status, 405, "{request}");
        assert_eq!(answer.headers["allow"], "CONNECT", "{request}");
        assert_eq!(answer.reason(), "method_not_allowed", "{request}");
    }
    assert!(gateway.seen().requests.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_refused() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run_with(&gateway, &["--open-to-all"]);
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\0\0\0\0\r\n\r\n",
        b"CONNECT\r\n\r\n",
        b"CONNECT echo:443 HTTP/3.0\r\n\r\n",
        b"CONNECT echo:443 extra HTTP/1.1\r\n\r\n",
        b"CONNECT echo:1:2 HTTP/1.1\r\n\r\n",
        b"CONNECT echo:443 HTTP/1.1\r\nno colon\r\n\r\n",
        b"CONNECT /path HTTP/1.1\r\n\r\n",
        b"CONNECT https://echo/ HTTP/1.1\r\n\r\n",
    ] {
        assert_eq!(ask(sidecar.proxy, garbage).await.status, 400, "{garbage:?}");
    }
    assert!(gateway.seen().requests.is_empty());
    tunnel(sidecar.proxy, "echo:443").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn password_in_the_target_is_refused_and_goes_nowhere() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let mut command = agent.run_command(&gateway, &[]);
    command.env("RUST_LOG", "trace");
    let mut sidecar = agent.start(&command);
    for target in ["user:s3cret@echo:443", "s3cret@echo:443", "a:s3cret@b@echo"] {
        let answer = refused(sidecar.proxy, target).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (400, "destination_invalid"),
            "{target}"
        );
    }
    assert!(gateway.seen().requests.is_empty());
    // Targets that are accepted are logged.
    tunnel(sidecar.proxy, "echo:443").await;
    sidecar.process.wait_for_log("authority=echo:443").unwrap();
    let log = sidecar.process.log();
    assert!(!log.contains("s3cret"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn header_that_is_too_large_is_refused() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let large = format!(
        "CONNECT echo:443 HTTP/1.1\r\nA: {}\r\n\r\n",
        "a".repeat(17_000)
    );
    let many = format!("CONNECT echo:443 HTTP/1.1\r\n{}\r\n", "A: a\r\n".repeat(65));
    let endless = format!("CONNECT echo:443 HTTP/1.1\r\nA: {}", "a".repeat(17_000));
    for header in [large, many, endless] {
        let mut stream = send(sidecar.proxy, header.as_bytes()).await;
        assert_eq!(crate::client::head(&mut stream).await.status, 431);
    }
    // With Host and the token, 64.
    let (answer, _) = connect(sidecar.proxy, "echo:443", &"A: a\r\n".repeat(62)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(gateway.seen().requests.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_says_nothing_is_dropped_and_holds_nobody_up() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let silent = send(sidecar.proxy, b"").await;
    let slow = send(sidecar.proxy, b"CONNECT echo:443 HT").await;
    tunnel(sidecar.proxy, "echo:443").await;
    assert_eq!(read_to_end(silent).await, b"");
    assert_eq!(read_to_end(slow).await, b"");
    assert_eq!(gateway.seen().requests.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_trace_goes_on_of_the_clients_header() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let mut command = agent.run_command(&gateway, &[]);
    command.env("RUST_LOG", "trace");
    let sidecar = agent.start(&command);
    let secret = "c2VjcmV0OnNlY3JldA==";
    let headers = format!(
        "Authorization: {secret}\r\nCookie: {secret}\r\nUser-Agent: curl\r\n\
         X-Forwarded-Client-Cert: {secret}\r\n"
    );
    let (answer, stream) = connect(sidecar.proxy, "echo:443", &headers).await;
    assert_eq!(answer.status, 200);
    drop(stream);
    let (authority, sent) = gateway.seen().requests.remove(0);
    assert_eq!(authority, "echo:443");
    assert_eq!(sent.keys().collect::<Vec<_>>(), ["traceparent"]);
    assert!(
        !sidecar.process.log().contains("c2VjcmV0"),
        "{}",
        sidecar.process.log()
    );
}
