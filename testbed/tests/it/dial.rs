//! Where tunnels lead: exactly where the service says, and never to what the guard forbids.

use std::time::Duration;

use envoy_types::pb::google::protobuf::value::Kind;
use serde_json::Value;
use testbed::{Behaviour, TcpService};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::decider::{Gateway, assert_refused, dial, dial_private};

#[tokio::test(flavor = "multi_thread")]
async fn allowed_tunnel_reaches_exactly_the_dialled_address() {
    let right = TcpService::start([127, 0, 0, 5], Behaviour::Echo)
        .await
        .unwrap();
    let named = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
        .await
        .unwrap();
    let gateway = Gateway::start(
        dial_private(right.addr())
            .and("identity", Kind::StringValue("agent-alpha".into()))
            .and("destination", Kind::StringValue("docstore:443".into())),
    )
    .await;

    // The authority is an address that could be dialled; it must not be.
    let answer = gateway.open(&named.addr().to_string()).await;
    assert_eq!(answer.status, 200);
    let mut tunnel = answer.into_tunnel().unwrap();
    tunnel.write_all(b"through the gateway").await.unwrap();
    let mut back = [0; 19];
    tunnel.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"through the gateway");
    assert_eq!((right.connections(), named.connections()), (1, 0));

    drop(tunnel);
    let entry = gateway
        .envoy
        .logged(|entry| entry["type"] == "DownstreamEnd")
        .await
        .unwrap();
    assert_eq!(entry["status"], 200);
    assert_eq!(entry["identity"], "agent-alpha");
    assert_eq!(entry["decision_id"], "d-1");
    assert_eq!(entry["destination"], "docstore:443");
    assert_eq!(entry["dial"], right.addr().to_string());
    assert_eq!(entry["upstream"], right.addr().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn private_address_is_refused_unless_the_service_allows_it() {
    let service = TcpService::start([127, 0, 0, 5], Behaviour::Echo)
        .await
        .unwrap();
    let gateway = Gateway::start(dial(service.addr())).await;

    let answer = gateway.open("docstore:443").await;
    assert_eq!(answer.status, 403);
    let body = serde_json::json!({
        "error": "blocked by policy",
        "reason": "destination_address_forbidden",
        "decision_id": "d-1",
        "hint": "the destination resolves to an address that must not be reached; another route won't work",
    });
    assert_refused(&answer, body, "destination_ip_prohibited");
    gateway.set(dial(service.addr()).and("allow_private", Kind::StringValue("true".into())));
    assert_eq!(
        gateway.open("docstore:443").await.status,
        403,
        "only the boolean counts"
    );
    gateway.set(dial(service.addr()).and("allow_private", Kind::BoolValue(false)));
    assert_eq!(gateway.open("docstore:443").await.status, 403);
    assert_eq!(service.connections(), 0);

    gateway.set(dial_private(service.addr()));
    assert_eq!(gateway.open("docstore:443").await.status, 200);
    service.wait_for_connections(1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_special_range_is_refused() {
    let gateway = Gateway::start(dial("127.0.0.1:1")).await;
    let client = gateway.client().await;
    let needs_allow_private = [
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "240.0.0.1",
        "[::1]",
        "[::7f00:1]",
        "[64:ff9b::1.1.1.1]",
        "[64:ff9b:1::1]",
        "[100::1]",
        "[2001::1]",
        "[2001:db8::1]",
        "[2002:7f00:1::]",
        "[3fff::1]",
        "[5f00::1]",
        "[fc00::1]",
        "[fd12::1]",
        "[fec0::1]",
    ];
    for address in needs_allow_private {
        gateway.set(dial(format!("{address}:9").as_str()));
        assert_eq!(
            client.open("docstore:443").await.unwrap().status,
            403,
            "{address}"
        );
    }
    let never = [
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "169.254.1.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "224.0.0.1",
        "239.255.255.250",
        "255.255.255.255",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::169.254.169.254]",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "[fe80::1]",
        "[ff02::1]",
    ];
    for address in never {
        gateway.set(dial_private(format!("{address}:9").as_str()));
        assert_eq!(
            client.open("docstore:443").await.unwrap().status,
            403,
            "{address}"
        );
    }
}

fn unreachable(decision_id: &Value) -> Value {
    serde_json::json!({
        "error": "destination not reached",
        "reason": "destination_unreachable",
        "decision_id": decision_id,
        "hint": "the gateway allowed this destination but could not connect to it; retry later",
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_or_bad_dial_is_502() {
    let gateway = Gateway::start(dial("127.0.0.1:1")).await;
    let client = gateway.client().await;
    let bad = [
        "",
        "docstore:443",
        "localhost:443",
        "127.0.0.1",
        "127.0.0.1:99999",
        "::1:443",
    ];
    for value in bad {
        gateway.set(dial_private(value));
        let answer = client.open("docstore:443").await.unwrap();
        assert_eq!(answer.status, 502, "{value:?}");
        assert_refused(
            &answer,
            unreachable(&"d-1".into()),
            "destination_unavailable",
        );
    }
    gateway.set(crate::decider::Verdict::Allow(Vec::new(), Vec::new()));
    let answer = client.open("127.0.0.1:443").await.unwrap();
    assert_eq!(answer.status, 502);
    assert_refused(
        &answer,
        unreachable(&Value::Null),
        "destination_unavailable",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_connection_is_502() {
    let port = testbed::free_port().unwrap();
    let gateway = Gateway::start(dial_private(format!("127.0.0.1:{port}").as_str())).await;
    let answer = gateway.open("docstore:443").await;
    assert_eq!(answer.status, 502);
    assert_refused(
        &answer,
        unreachable(&"d-1".into()),
        "destination_unavailable",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnel_ends_when_the_service_said_whatever_the_client_says() {
    let service = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
        .await
        .unwrap();
    let ends =
        dial_private(service.addr()).with_header("x-envoy-upstream-stream-duration-ms", "3000");
    let gateway = Gateway::start(ends).await;
    let wish = [("x-envoy-upstream-stream-duration-ms", "3600000")];
    let answer = gateway
        .client()
        .await
        .open_with("docstore:443", &wish)
        .await
        .unwrap();
    assert_eq!(answer.status, 200);
    let mut tunnel = answer.into_tunnel().unwrap();
    let mut heard = Vec::new();
    let end = tokio::time::timeout(testbed::process::PATIENCE, tunnel.read_to_end(&mut heard));
    assert!(end.await.is_ok(), "the tunnel must end");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_cannot_set_its_own_duration() {
    let service = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
        .await
        .unwrap();
    let gateway = Gateway::start(dial_private(service.addr())).await;
    let wish = [("x-envoy-upstream-stream-duration-ms", "50")];
    let answer = gateway
        .client()
        .await
        .open_with("docstore:443", &wish)
        .await
        .unwrap();
    let mut tunnel = answer.into_tunnel().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    tunnel.write_all(b"still here").await.unwrap();
    let mut back = [0; 10];
    tunnel.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_upload_does_not_freeze_the_other_tunnels() {
    let silent = TcpService::start([127, 0, 0, 1], Behaviour::Silent)
        .await
        .unwrap();
    let echo = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
        .await
        .unwrap();
    let gateway = Gateway::start(dial_private(silent.addr())).await;
    let client = gateway.client().await;
    let mut uploads = Vec::new();
    for _ in 0..5 {
        let mut stalled = client
            .open("docstore:443")
            .await
            .unwrap()
            .into_tunnel()
            .unwrap();
        // Until the far end's and Envoy's buffers are full and nothing moves any more.
        uploads.push(tokio::spawn(async move {
            loop {
                stalled.write_all(&[0; 8192]).await.unwrap();
            }
        }));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    gateway.set(dial_private(echo.addr()));
    let mut tunnel = client
        .open("messaging:443")
        .await
        .unwrap()
        .into_tunnel()
        .unwrap();
    let sent = vec![7; 1 << 20];
    let (mut reader, mut writer) = tokio::io::split(&mut tunnel);
    let mut back = vec![0; sent.len()];
    let both = async { tokio::try_join!(writer.write_all(&sent), reader.read_exact(&mut back)) };
    let both = tokio::time::timeout(testbed::process::PATIENCE, both).await;
    both.expect("the tunnel is frozen").unwrap();
    assert!(back == sent);
}
