//! Who gets in, by which method, and what of a request the service sees.

use std::collections::BTreeSet;

use envoy_types::pb::google::protobuf::value::Kind;
use http::{Method, Request};
use http_body_util::Full;
use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use testbed::raw::Outcome;
use testbed::tls::{client_config, connect};
use testbed::{
    Behaviour, ClientCertificate, Envoy, EnvoyOptions, GatewayPki, RawClient, TcpService,
    TunnelClient,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::decider::{Gateway, Verdict, assert_refused, dial, dial_private};

#[test]
fn product_configuration_is_valid() {
    let pki = GatewayPki::generate().unwrap();
    Envoy::validate(&EnvoyOptions::new(([127, 0, 0, 1], 1).into(), &pki)).unwrap();
}

#[tokio::test]
async fn what_bench_compares_with_opens_tunnels_and_asks_nobody() {
    let pki = GatewayPki::generate().unwrap();
    let service = TcpService::start([127, 0, 0, 1], Behaviour::Echo);
    let service = service.await.unwrap();
    let nobody = ([127, 0, 0, 1], 1).into();
    let envoy = Envoy::start(EnvoyOptions {
        unauthorized: Some(service.addr()),
        ..EnvoyOptions::new(nobody, &pki)
    });
    let envoy = envoy.await.unwrap();
    let agent = ClientCertificate::for_identity("agent-alpha").unwrap();
    let client = TunnelClient::connect(envoy.addr(), &pki, &agent);
    let answer = client.await.unwrap().open("nowhere.test:1").await.unwrap();
    let mut tunnel = answer.into_tunnel().unwrap();
    tunnel.write_all(b"through").await.unwrap();
    let mut echoed = [0; 7];
    tunnel.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"through");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_without_certificate_is_cut_off() {
    let gateway = Gateway::start(dial("127.0.0.1:1")).await;
    let mut client = RawClient::connect(gateway.addr(), &gateway.pki, None)
        .await
        .unwrap();
    let outcome = client.open(b"docstore:443", &[]).await.unwrap();
    assert_eq!(outcome, Outcome::ConnectionClosed(None));
    assert_eq!(gateway.checks().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stolen_certificate_without_its_key_is_cut_off() {
    let gateway = Gateway::start(dial("127.0.0.1:1")).await;
    let stolen = gateway.certificate.stolen().unwrap();
    let connection = RawClient::connect(gateway.addr(), &gateway.pki, Some(&stolen)).await;
    let outcome = connection
        .unwrap()
        .open(b"docstore:443", &[])
        .await
        .unwrap();
    assert_eq!(outcome, Outcome::ConnectionClosed(None));
    assert_eq!(gateway.checks().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_connection_proves_its_key_anew() {
    let gateway = Gateway::start(dial("127.0.0.1:1")).await;
    // One configuration, so that the client would offer to resume what it has tickets for.
    let config = client_config(&gateway.pki, Some(&gateway.certificate), &[&TLS13]).unwrap();
    for _ in 0..2 {
        let mut stream = connect(gateway.addr(), config.clone()).await.unwrap();
        // The server's first frame comes after any ticket, in answer to the client's.
        let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        stream.write_all(hello).await.unwrap();
        let mut settings = [0; 9];
        stream.read_exact(&mut settings).await.unwrap();
        assert_eq!(
            stream.get_ref().1.handshake_kind(),
            Some(HandshakeKind::Full)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn older_tls_is_refused() {
    let gateway = Gateway::start(dial("127.0.0.1:1")).await;
    let config = client_config(&gateway.pki, Some(&gateway.certificate), &[&TLS12]).unwrap();
    let error = connect(gateway.addr(), config).await.unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("ProtocolVersion"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn service_sees_the_leaf_and_the_raw_authority() {
    let gateway = Gateway::start(dial("127.0.0.1:1")).await;
    gateway.open("DocStore.:0443").await;
    let checks = gateway.checks();
    assert_eq!(checks.len(), 1);
    assert_eq!(checks[0].host, "DocStore.:0443");
    assert_eq!(checks[0].method, "CONNECT");
    let seen = gateway
        .seen_certificate()
        .replace("%20", " ")
        .replace("%0A", "\n");
    let seen = seen
        .replace("%2B", "+")
        .replace("%2F", "/")
        .replace("%3D", "=");
    let lines = |pem: &str| {
        pem.lines()
            .map(|line| line.trim().to_owned())
            .collect::<String>()
    };
    assert_eq!(lines(&seen), lines(gateway.certificate.pem()));
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_certificate_is_left_to_the_service() {
    let gateway = Gateway::start(dial("127.0.0.1:1")).await;
    let expired = ClientCertificate::builder()
        .identity("agent-alpha")
        .validity((2001, 1, 1), (2002, 1, 1))
        .build()
        .unwrap();
    let client = TunnelClient::connect(gateway.addr(), &gateway.pki, &expired)
        .await
        .unwrap();
    client.open("docstore:443").await.unwrap();
    assert_eq!(gateway.checks().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn service_sees_trace_headers_and_no_others_of_the_client() {
    let gateway = Gateway::start(dial("127.0.0.1:1")).await;
    let mut client = RawClient::connect(gateway.addr(), &gateway.pki, Some(&gateway.certificate))
        .await
        .unwrap();
    let trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let sent: [(&str, &[u8]); 8] = [
        ("x-forwarded-client-cert", b"Hash=00;URI=spiffe://forged"),
        ("proxy-authorization", b"Basic c2VjcmV0OnNlY3JldA=="),
        ("authorization", b"Bearer secret"),
        ("cookie", b"session=secret"),
        ("x-request-id", b"chosen-by-the-client"),
        ("x-envoy-original-dst-host", b"127.0.0.1:22"),
        ("traceparent", trace),
        ("tracestate", b"a=b"),
    ];
    assert_eq!(
        client.open(b"docstore:443", &sent).await.unwrap().status(),
        Some(403)
    );

    let check = gateway.checks().remove(0);
    let names: BTreeSet<&str> = check.headers.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        BTreeSet::from(["traceparent", "tracestate", "x-request-id"])
    );
    assert_eq!(check.headers["traceparent"].as_bytes(), trace);
    assert_ne!(check.headers["x-request-id"], "chosen-by-the-client");
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_answer_reaches_the_client_unchanged() {
    let body = r#"{"error":"denied","reason":"no_permission"}"#;
    let proxy_status = "agent-gateway; error=http_request_denied; details=\"no_permission\"";
    // Statuses that Envoy itself answers with, too.
    let gateway = Gateway::start(Verdict::Hang).await;
    for status in [403, 405, 502, 503] {
        gateway.set(Verdict::Deny(status, ("proxy-status", proxy_status), body));
        let answer = gateway.open("docstore:443").await;
        assert_eq!(i32::from(answer.status.as_u16()), status);
        let seen: Vec<_> = answer.headers.get_all("proxy-status").iter().collect();
        assert_eq!(seen, [proxy_status]);
        assert_eq!(answer.text(), body);
    }
    let entry = gateway
        .envoy
        .logged(|entry| entry["status"] == 403)
        .await
        .unwrap();
    assert_eq!(entry["reason"], "as the test says");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_are_405_without_asking_the_service() {
    let gateway = Gateway::start(dial("127.0.0.1:1")).await;
    let client = gateway.client().await;
    for (method, path, allow) in [
        (Method::GET, "/documents", "CONNECT"),
        (Method::POST, "/documents", "CONNECT"),
        (Method::OPTIONS, "/", "CONNECT"),
        (Method::PUT, "/", "CONNECT"),
        (Method::GET, "/relay", "POST"),
        (Method::PUT, "/relay", "POST"),
    ] {
        let request = Request::builder()
            .method(method.clone())
            .uri(format!("https://gateway{path}"))
            .body(Full::from("some body"))
            .unwrap();
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header("allow"), Some(allow));
        let body = serde_json::json!({
            "error": "method not allowed",
            "reason": "method_not_allowed",
            "hint": "CONNECT opens a tunnel (use https, through the sidecar), POST /relay calls a tool",
        });
        assert_refused(&answer, body, "http_request_error");
    }
    assert_eq!(gateway.checks().len(), 0);
}

/// The service's own mistakes let nothing through: Envoy knows a call's tool and payload by what
/// the service says alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_allowed_without_tool_or_payload_goes_nowhere() {
    let service = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
        .await
        .unwrap();
    let lane =
        |name: &str| dial_private(service.addr()).and("lane", Kind::StringValue(name.to_owned()));
    let number = Kind::NumberValue;
    for verdict in [
        dial_private(service.addr()),
        lane("other"),
        lane("http"),
        lane("http").and("off", number(0.0)),
        lane("http")
            .and("off", number(-1.0))
            .and("len", number(4.0)),
        lane("http").and("off", number(6.0)).and("len", number(4.0)),
        lane("http")
            .and("off", number(0.0))
            .and("len", number(10.0)),
        lane("http")
            .and("off", Kind::StringValue("0".to_owned()))
            .and("len", Kind::BoolValue(true)),
    ] {
        let gateway =
            Gateway::start(verdict.with_header("x-changed", "so that the route is chosen again"))
                .await;
        let request = Request::post("https://gateway/relay")
            .body(Full::from("some body"))
            .unwrap();
        let answer = gateway.client().await.send(request).await.unwrap();
        assert_eq!(answer.status, 502, "{answer:?}");
        assert_eq!(answer.json().unwrap()["reason"], "no_tool_chosen");
    }
    assert_eq!(service.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_authority_costs_its_own_stream_alone() {
    let service = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
        .await
        .unwrap();
    let gateway = Gateway::start(dial_private(service.addr())).await;
    let mut client = RawClient::connect(gateway.addr(), &gateway.pki, Some(&gateway.certificate))
        .await
        .unwrap();
    let malformed: [&[u8]; 9] = [
        b"user@docstore:443",
        b"",
        "docstore:\u{ff14}\u{ff14}\u{ff13}".as_bytes(),
        b"[::1 ]:443",
        b"[::1/]:443",
        b" docstore:443",
        b"docstore:443 ",
        b"doc store:443",
        b"doc\0store:443",
    ];
    for authority in malformed {
        let outcome = client.open(authority, &[]).await.unwrap();
        assert!(
            matches!(outcome, Outcome::StreamReset(_)),
            "{authority:?}: {outcome:?}"
        );
    }
    assert_eq!(gateway.checks().len(), 0);
    assert_eq!(
        client.open(b"docstore:443", &[]).await.unwrap().status(),
        Some(200)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_that_envoy_lets_pass_reach_the_service_as_sent() {
    let denied = Verdict::Deny(400, ("x-denied", "yes"), "");
    let gateway = Gateway::start(denied).await;
    let mut client = RawClient::connect(gateway.addr(), &gateway.pki, Some(&gateway.certificate))
        .await
        .unwrap();
    let forms = [
        "a:1:2",
        "docstore:0",
        "docstore:99999",
        "docstore:abc",
        "0x7f000001:443",
        "2130706433:443",
        "127.1:443",
        "0177.0.0.1:443",
        "[fe80::1%25eth0]:443",
        "docstore.:443",
    ];
    for form in forms {
        let outcome = client.open(form.as_bytes(), &[]).await.unwrap();
        assert_eq!(outcome.status(), Some(400), "{form}");
    }
    let seen: Vec<String> = gateway
        .checks()
        .into_iter()
        .map(|check| check.host)
        .collect();
    assert_eq!(seen, forms);
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_headers_are_refused() {
    let gateway = Gateway::start(dial("127.0.0.1:1")).await;
    let mut client = RawClient::connect(gateway.addr(), &gateway.pki, Some(&gateway.certificate))
        .await
        .unwrap();
    let huge = vec![b'a'; 17 * 1024];
    let outcome = client
        .open(b"docstore:443", &[("x-filler", &huge)])
        .await
        .unwrap();
    assert!(matches!(outcome, Outcome::StreamReset(_)), "{outcome:?}");
    assert_eq!(gateway.checks().len(), 0);
}
