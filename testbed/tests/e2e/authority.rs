//! Authorities and methods that are refused before anybody is asked about a permission.

use std::io::ErrorKind;
use std::net::UdpSocket;

use http::{Method, Request};
use http_body_util::Full;
use serde_json::Value;
use testbed::raw::Outcome;
use testbed::{Behaviour, RawClient, TcpService, TunnelClient};

use super::{Scene, assert_undecided};

/// What becomes of an authority.
#[derive(Debug, PartialEq)]
enum Fate {
    /// 400 `destination_invalid`, from the service.
    Refused,
    /// Reset by Envoy's HTTP/2 codec; the service never sees it.
    Reset,
    /// Understood, and then 403 `no_permission`.
    Understood,
}

#[tokio::test]
async fn every_malformed_authority_is_refused_and_costs_its_own_stream_alone() {
    use Fate::{Refused, Reset, Understood};
    let scene = Scene::granted().await;
    let gateway = &scene.gateway;
    let mut client = RawClient::connect(gateway.envoy.addr(), &gateway.pki, Some(&scene.agent))
        .await
        .unwrap();
    let long_label = format!("{}.example:443", "a".repeat(64));
    let long_host = format!("{}example:443", "a.".repeat(124));
    for (authority, expected) in [
        ("docstore", Understood),
        ("DOCSTORE:1", Understood),
        ("[2001:DB8::1]:1", Understood),
        ("2001:db8::1", Understood),
        ("a:1:2", Refused),
        ("docstore:0", Refused),
        ("docstore:99999", Refused),
        ("docstore:abc", Refused),
        ("docstore:+443", Refused),
        ("docstore:0443", Refused),
        ("docstore:", Refused),
        (":443", Refused),
        ("docstore.:443", Refused),
        (".docstore:443", Refused),
        ("doc..store:443", Refused),
        ("0x7f000001:443", Refused),
        ("2130706433:443", Refused),
        ("127.1:443", Refused),
        ("0177.0.0.1:443", Refused),
        ("010.0.0.1:443", Refused),
        ("0x7f.1:443", Refused),
        ("127.0.0.1.:443", Refused),
        ("doc%73tore:443", Refused),
        ("docstore%00:443", Refused),
        ("[fe80::1%25eth0]:443", Refused),
        ("[]:443", Refused),
        ("[::1]:0", Refused),
        ("[::1]x:443", Refused),
        ("[::1:443", Refused),
        ("[1.2.3.4]:443", Refused),
        (&long_label, Refused),
        (&long_host, Refused),
        ("", Reset),
        ("user@docstore:443", Reset),
        ("docstore/path:443", Reset),
        ("docstore?x:443", Reset),
        ("docstore#x:443", Reset),
        ("doc\\store:443", Reset),
        ("doc store:443", Reset),
        (" docstore:443", Reset),
        ("docstore:443\t", Reset),
        ("docstore\u{0}:443", Reset),
        ("docstore\n:443", Reset),
        ("docstöre:443", Reset),
        ("docstore:４４３", Reset),
    ] {
        let outcome = client.open(authority.as_bytes(), &[]).await.unwrap();
        let fate = match &outcome {
            Outcome::Answered(answer) => {
                let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
                match (answer.status, body["reason"].as_str().unwrap()) {
                    (400, "destination_invalid") => Refused,
                    (403, "no_permission") => Understood,
                    other => panic!("{authority:?}: {other:?}"),
                }
            }
            Outcome::StreamReset(_) => Reset,
            Outcome::ConnectionClosed(_) => panic!("{authority:?} closed the connection"),
        };
        assert_eq!(fate, expected, "{authority:?}: {outcome:?}");
    }
    // And the connection still serves.
    let outcome = client
        .open(scene.destination.as_bytes(), &[])
        .await
        .unwrap();
    assert_eq!(outcome.status(), Some(200));
}

#[tokio::test]
async fn other_methods_are_405_and_say_what_is_allowed() {
    let scene = Scene::granted().await;
    let gateway = &scene.gateway;
    let client = TunnelClient::connect(gateway.envoy.addr(), &gateway.pki, &scene.agent)
        .await
        .unwrap();
    for (method, path) in [
        (Method::GET, "/"),
        (Method::POST, "/x"),
        (Method::PUT, "/"),
        (Method::OPTIONS, "/"),
    ] {
        let uri = format!("https://{}{path}", scene.destination);
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .body(Full::default())
            .unwrap();
        let answer = client.send(request).await.unwrap();
        assert_undecided(&answer, 405, "method_not_allowed");
        assert_eq!(answer.header("allow"), Some("CONNECT"));
    }
    assert_eq!(scene.service.connections(), 0);
}

/// RFC 8441 and RFC 9298: CONNECT for something else than a tunnel of bytes.
#[tokio::test]
async fn an_extended_connect_reaches_nothing() {
    let scene = Scene::granted().await;
    let gateway = &scene.gateway;
    gateway.authz.settle().await;
    let datagrams = UdpSocket::bind(scene.service.addr()).unwrap();
    datagrams.set_nonblocking(true).unwrap();
    let (host, port) = scene.destination.split_once(':').unwrap();
    let masque = format!("/.well-known/masque/udp/{host}/{port}/");
    for (protocol, path, status) in [
        ("websocket", "/", Some(403)),
        ("connect-udp", masque.as_str(), Some(403)),
        ("connect-udp", "/", Some(404)),
        ("connect-ip", "/", Some(403)),
        ("", "/", None),
    ] {
        let mut client = RawClient::connect(gateway.envoy.addr(), &gateway.pki, Some(&scene.agent))
            .await
            .unwrap();
        let headers: [(&str, &[u8]); 5] = [
            (":method", b"CONNECT"),
            (":protocol", protocol.as_bytes()),
            (":scheme", b"https"),
            (":path", path.as_bytes()),
            (":authority", scene.destination.as_bytes()),
        ];
        let outcome = client.request(&headers, false).await.unwrap();
        assert_eq!(outcome.status(), status, "{protocol:?} {path}: {outcome:?}");
        if status.is_some() {
            let entry = gateway.envoy.logged(|entry| {
                entry["status"].as_u64() == status.map(u64::from) && entry["upstream"].is_null()
            });
            assert_eq!(entry.await.unwrap()["decision_id"], Value::Null);
        }
    }
    assert_eq!(scene.service.connections(), 0);
    let received = datagrams.recv(&mut [0; 1]).unwrap_err();
    assert_eq!(received.kind(), ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_host_header_says_nothing_about_where_to() {
    let scene = Scene::granted().await;
    let gateway = &scene.gateway;
    gateway.authz.settle().await;
    let decoy = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
        .await
        .unwrap();
    let (granted, other) = (scene.destination.clone(), decoy.addr().to_string());
    for (authority, host, status) in [(&granted, &other, 200), (&other, &granted, 403)] {
        let mut client = RawClient::connect(gateway.envoy.addr(), &gateway.pki, Some(&scene.agent))
            .await
            .unwrap();
        let outcome = client
            .open(authority.as_bytes(), &[("host", host.as_bytes())])
            .await
            .unwrap();
        assert_eq!(outcome.status(), Some(status), "{outcome:?}");
        let entry = gateway.envoy.logged(|entry| entry["status"] == status);
        let entry = entry.await.unwrap();
        assert_eq!(entry["destination"], *authority, "{entry:#}");
    }
    assert_eq!((scene.service.connections(), decoy.connections()), (1, 0));
}
