//! The way in: methods, paths, HTTP/1.1 CONNECT.

use http::{Method, Request};
use testbed::caller::{Sent, Version};
use testbed::gateway::private;
use testbed::{AuthzOptions, Behaviour, ClientCertificate, Gateway, TcpService};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::scene::{A_WHILE, Scene};

fn request(version: Version, method: Method, path: &str) -> Request<Sent> {
    let request = Request::builder().method(method);
    let request = match version {
        Version::Http1 => request.uri(path).header("host", "gateway"),
        Version::Http2 => request.uri(format!("https://gateway{path}")),
    };
    request.body(Sent::whole("")).unwrap()
}

#[tokio::test]
async fn each_path_takes_its_own_methods() {
    let scene = Scene::start().await;
    for version in [Version::Http1, Version::Http2] {
        let mut caller = scene.caller(version).await;
        let healthz = caller
            .send(request(version, Method::GET, "/healthz"))
            .await
            .unwrap();
        assert_eq!(
            (healthz.status.as_u16(), healthz.text()),
            (200, "ok".to_owned())
        );
        for (method, path, allow) in [
            (Method::GET, "/relay", "POST"),
            (Method::PUT, "/relay", "POST"),
            (Method::OPTIONS, "/relay?x=1", "POST"),
            (Method::POST, "/healthz", "CONNECT"),
            (Method::POST, "/relay/", "CONNECT"),
            (Method::POST, "/relayx", "CONNECT"),
            (Method::POST, "/RELAY", "CONNECT"),
            (Method::POST, "/x/../relay", "CONNECT"),
            (Method::POST, "/%72elay", "CONNECT"),
            (Method::POST, "//relay", "CONNECT"),
            (Method::GET, "/", "CONNECT"),
            (Method::POST, "/echo", "CONNECT"),
        ] {
            let answer = caller
                .send(request(version, method.clone(), path))
                .await
                .unwrap();
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
            assert_eq!(answer.json().unwrap()["reason"], "method_not_allowed");
        }
    }
    assert!(scene.echo.seen().is_empty());
}

#[tokio::test]
async fn a_tunnel_opens_over_http_1_too_and_is_cut_when_it_is_revoked() {
    let service = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
        .await
        .unwrap();
    let rule = private("docstore", &service);
    let destination = rule.0.clone();
    let gateway = Gateway::start_with(AuthzOptions {
        hosts: "127.0.0.1 docstore".to_owned(),
        private: vec![rule],
        ..AuthzOptions::default()
    });
    let gateway = gateway.await.unwrap();
    let agent = ClientCertificate::for_identity(testbed::gateway::AGENT).unwrap();
    let words = format!("CONNECT {destination} HTTP/1.1\r\nhost: {destination}\r\n\r\n");
    let Gateway { envoy, pki, .. } = &gateway;

    let mut refused = testbed::caller::http1(envoy.addr(), pki, &agent)
        .await
        .unwrap();
    refused.write_all(words.as_bytes()).await.unwrap();
    let mut heard = vec![0; 4096];
    let length = refused.read(&mut heard).await.unwrap();
    let heard = String::from_utf8_lossy(&heard[..length]).into_owned();
    assert!(
        heard.starts_with("HTTP/1.1 403 ") && heard.contains("no_permission"),
        "{heard}"
    );

    gateway.grant(&agent, &destination).unwrap();
    gateway.authz.settle().await;
    let mut tunnel = testbed::caller::http1(envoy.addr(), pki, &agent)
        .await
        .unwrap();
    tunnel.write_all(words.as_bytes()).await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"\r\n\r\n") {
        heard.push(tunnel.read_u8().await.unwrap());
    }
    assert!(heard.starts_with(b"HTTP/1.1 200 "), "{heard:?}");
    tunnel.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    tunnel.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"ping");

    let revoke = "UPDATE permission_registry SET revoked_at = now()";
    gateway.database.execute(revoke).unwrap();
    let mut rest = Vec::new();
    // Cut: an end, or a reset.
    let end = tokio::time::timeout(testbed::process::PATIENCE, tunnel.read_to_end(&mut rest));
    let _ = end.await.expect("the tunnel is cut");
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(service.received(), b"ping");
}
