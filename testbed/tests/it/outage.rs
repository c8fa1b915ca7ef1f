//! The service is gone, silent or back again: no answer is never an allow.

use serde_json::json;
use testbed::{Behaviour, TcpService};

use crate::decider::{Gateway, Verdict, assert_refused, dial_private};

#[tokio::test(flavor = "multi_thread")]
async fn service_that_is_down_means_503() {
    let service = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
        .await
        .unwrap();
    let mut gateway = Gateway::start(dial_private(service.addr())).await;
    let client = gateway.client().await;
    assert_eq!(client.open("docstore:443").await.unwrap().status, 200);

    gateway.stop_service().await;
    let answer = client.open("docstore:443").await.unwrap();
    assert_eq!(answer.status, 503);
    let body = json!({
        "error": "no decision could be made",
        "reason": "registry_unavailable",
        "hint": "the gateway can't read its permissions now; retry later",
    });
    assert_refused(&answer, body, "proxy_internal_error");
    service.wait_for_connections(1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnel_that_the_service_does_not_hold_is_not_opened() {
    let service = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
        .await
        .unwrap();
    let gateway = Gateway::start_unheld(dial_private(service.addr())).await;
    let answer = gateway.open("docstore:443").await;
    assert_eq!(answer.status, 503);
    let body = json!({
        "error": "no decision could be made",
        "reason": "registry_unavailable",
        "decision_id": "d-1",
        "hint": "the gateway can't read its permissions now; retry later",
    });
    assert_refused(&answer, body, "proxy_internal_error");
    assert_eq!(service.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn service_that_does_not_answer_means_503() {
    let gateway = Gateway::start(Verdict::Hang).await;
    let answer = gateway.open("docstore:443").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json().unwrap()["reason"], "registry_unavailable");
    assert_eq!(gateway.checks().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_header_from_the_service_opens_nothing() {
    let service = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
        .await
        .unwrap();
    let split = dial_private(service.addr()).with_header("x-split", "a\r\nb: c");
    let gateway = Gateway::start(split).await;
    assert_eq!(gateway.open("docstore:443").await.status, 500);
    assert_eq!(service.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_that_comes_back_serves_again() {
    let service = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
        .await
        .unwrap();
    let mut gateway = Gateway::start(dial_private(service.addr())).await;
    assert_eq!(gateway.open("docstore:443").await.status, 200);
    gateway.envoy.stop().unwrap();
    assert!(std::net::TcpStream::connect(gateway.addr()).is_err());
    gateway.envoy.start_again().await.unwrap();
    assert_eq!(gateway.open("docstore:443").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_interface_only_lets_look() {
    let gateway = Gateway::start(Verdict::Hang).await;
    for (method, path, status) in [
        ("GET", "/ready", "200"),
        ("POST", "/quitquitquit", "403"),
        ("POST", "/runtime_modify?a=b", "403"),
        ("POST", "/drain_listeners", "403"),
    ] {
        assert_eq!(admin_status(&gateway, method, path), status, "{path}");
    }
}

fn admin_status(gateway: &Gateway, method: &str, path: &str) -> String {
    use std::io::{Read, Write};

    let mut admin = std::net::TcpStream::connect(gateway.envoy.admin_addr()).unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    admin.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    admin.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().to_owned()
}
