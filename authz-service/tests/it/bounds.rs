//! Everything ends, and nothing takes more than its share.

use std::time::Duration;

use testbed::dns::Answer;
use testbed::gateway::AGENT;
use testbed::rows::{Grant, Times};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

use super::lock::{PATIENT, Session, wait_for_blocked};
use super::{Scene, connect, http, http_of, verdict};

/// Far beyond what is to end by itself, far below the time-outs that must not be what ended it.
const GUARD: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_slow_registry_does_not_hold_a_check_beyond_its_time() {
    let mut environment = PATIENT.to_vec();
    environment.push(("AGENT_GATEWAY__SERVER__CHECK_TIMEOUT_MS", "300"));
    let scene = Scene::start_with(&environment).await;
    scene.grant().await;
    let lock = Session::locking_permissions(&scene.database);
    let answer = timeout(GUARD, scene.check()).await.unwrap();
    assert_eq!(verdict(&answer), (503, "registry_unavailable"));
    drop(lock);
    assert_eq!(verdict(&scene.check().await), (200, "allowed"));
}

#[tokio::test]
async fn a_query_has_less_time_than_the_check() {
    let mut environment = PATIENT.to_vec();
    environment.push(("AGENT_GATEWAY__POLICY__QUERY_TIMEOUT_MS", "300"));
    let scene = Scene::start_with(&environment).await;
    let _lock = Session::locking_permissions(&scene.database);
    let answer = timeout(GUARD, scene.check()).await.unwrap();
    assert_eq!(verdict(&answer), (503, "registry_unavailable"));
}

#[tokio::test]
async fn dns_that_hangs_does_not_hold_a_check_beyond_its_time() {
    for (check, dns) in [("300", "60000"), ("60000", "300")] {
        let scene = Scene::start_with(&[
            ("AGENT_GATEWAY__SERVER__CHECK_TIMEOUT_MS", check),
            ("AGENT_GATEWAY__DNS__TIMEOUT_MS", dns),
        ])
        .await;
        let (name, destination) = ("hanging.test", "hanging.test:443");
        scene.dns.answer(name, Answer::Hang);
        let times = Times::from_now(-7200, 60 * 86_400);
        scene
            .principal
            .scope(&scene.database, destination, &times)
            .unwrap();
        let grant = Grant::new(AGENT, scene.agent.spki_der(), destination);
        scene.principal.grant(&scene.database, &grant).unwrap();
        let mut client = scene.client().await;
        let request = connect(scene.agent.pem(), destination);
        let answer = timeout(GUARD, client.check(request)).await.unwrap();
        let answer = answer.unwrap().into_inner();
        assert_eq!(verdict(&answer), (502, "destination_unresolvable"));
        assert!(scene.dns.queries(name) > 0);
    }
}

#[tokio::test]
async fn checks_beyond_the_bound_are_refused_at_once() {
    let mut environment = PATIENT.to_vec();
    environment.push(("AGENT_GATEWAY__SERVER__MAX_CONCURRENT_CHECKS", "2"));
    let scene = Scene::start_with(&environment).await;
    scene.grant().await;
    let lock = Session::locking_permissions(&scene.database);
    let client = scene.client().await;
    // Different ones: equal ones would share a lookup.
    let waiting = ["docstore:1", "docstore:2"].map(|host| {
        let (mut client, request) = (client.clone(), connect(scene.agent.pem(), host));
        tokio::spawn(async move { client.check(request).await })
    });
    wait_for_blocked(&scene.database, 2).await;
    let mut third = client.clone();
    let refused = timeout(GUARD, third.check(scene.request())).await.unwrap();
    assert_eq!(refused.unwrap_err().code(), Code::ResourceExhausted);

    drop(lock);
    for check in waiting {
        let answer = check.await.unwrap().unwrap().into_inner();
        assert_eq!(verdict(&answer), (403, "no_permission"));
    }
    let answer = third.check(scene.request()).await.unwrap().into_inner();
    assert_eq!(verdict(&answer), (200, "allowed"));
}

#[tokio::test]
async fn a_message_over_the_bound_is_refused() {
    let scene = Scene::start().await;
    scene.grant().await;
    let mut client = scene.client().await;
    for (bytes, expected) in [(200 * 1024, None), (300 * 1024, Some(Code::OutOfRange))] {
        let mut request = scene.request();
        let headers = &mut http_of(&mut request).headers;
        headers.insert("x-long".to_owned(), "a".repeat(bytes));
        let answer = client.check(request).await;
        assert_eq!(answer.err().map(|status| status.code()), expected);
    }
}

/// Headers of a Check that are not followed by a message.
#[tokio::test]
async fn a_message_that_never_comes_holds_no_place() {
    let scene = Scene::start_with(&[
        ("AGENT_GATEWAY__SERVER__CHECK_TIMEOUT_MS", "100"),
        ("AGENT_GATEWAY__SERVER__MAX_CONCURRENT_CHECKS", "1"),
    ])
    .await;
    let address = scene.authz.grpc_addr();
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let path = "/envoy.service.auth.v3.Authorization/Check";
    let request = ::http::Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let request = request.body(()).unwrap();
    let (answer, _body) = client.send_request(request, false).unwrap();
    let answer = timeout(GUARD, answer).await.unwrap().unwrap();
    // DEADLINE_EXCEEDED or CANCELLED: the call is over.
    let status = answer.headers()["grpc-status"].to_str().unwrap();
    assert!(["4", "1"].contains(&status), "{status}");
}

#[tokio::test]
async fn http_clients_that_say_nothing_are_left_and_others_served() {
    let scene = Scene::start().await;
    let address = scene.authz.admin_http_addr();
    // As many as are taken at a time.
    let mut silent = Vec::new();
    for _ in 0..32 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /healthz HT").await.unwrap();
        silent.push(stream);
    }
    let answer = timeout(GUARD, http::get(address, "/healthz")).await;
    assert_eq!(answer.unwrap(), (200, "ok\n".to_owned()));
    for mut stream in silent {
        let mut rest = Vec::new();
        // Closed or reset, without an answer.
        let _ = timeout(GUARD, stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"");
    }
}

#[tokio::test]
async fn huge_http_headers_are_refused() {
    let scene = Scene::start().await;
    let address = scene.authz.admin_http_addr();
    let many = "x-header: y\r\n".repeat(200);
    let request = format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{many}\r\n");
    assert_eq!(http::send(address, &request).await.0, 431);
}
