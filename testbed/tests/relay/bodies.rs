//! Bodies of every size and kind.

use testbed::RawClient;
use testbed::caller::{Sent, Version};
use testbed::raw::Outcome;

use crate::scene::{A_WHILE, Headers, Scene, assert_denied, assert_failed, envelope};

const LIMIT: usize = 2 * 1024 * 1024;

/// A JSON string of so many bytes.
fn json_of(bytes: usize) -> Vec<u8> {
    let mut body = vec![b'a'; bytes];
    body[0] = b'"';
    body[bytes - 1] = b'"';
    body
}

#[tokio::test]
async fn two_mebibytes_are_carried_and_not_a_byte_more() {
    let scene = Scene::start().await;
    for version in [Version::Http1, Version::Http2] {
        for (size, allowed) in [
            (LIMIT - 1, true),
            (LIMIT, true),
            (LIMIT + 1, false),
            (LIMIT + 16 * 1024 - 1, false),
            (LIMIT + 16 * 1024, false),
            (LIMIT + 17 * 1024, false),
            (2 * LIMIT, false),
        ] {
            let body = json_of(size);
            for sent in [Sent::whole(body.clone()), Sent::in_pieces(&body, 100_000)] {
                let mut caller = scene.caller(version).await;
                let headers = scene.proof("echo", &body);
                let answer = caller.call(&headers.with_json(), sent).await.unwrap();
                if allowed {
                    assert_eq!(answer.status, 200, "{version:?} {size}");
                    assert!(answer.body() == body, "{version:?} {size}");
                } else {
                    let (status, reason) = (answer.status.as_u16(), answer.json().unwrap());
                    let reason = reason["reason"].as_str().unwrap().to_owned();
                    assert_eq!(
                        (status, &*reason),
                        (413, "body_too_large"),
                        "{version:?} {size}"
                    );
                }
            }
        }
    }
    let seen = scene.echo.seen();
    assert_eq!(seen.len(), 2 * 2 * 2);
    assert!(seen.iter().all(|seen| seen.body.len() <= LIMIT));
}

#[tokio::test]
async fn a_large_envelope_gives_its_payload_alone() {
    let scene = Scene::start().await;
    let frame = envelope("echo", &serde_json::json!("")).len() - 2;
    let payload = json_of(LIMIT - frame);
    let payload = std::str::from_utf8(&payload).unwrap();
    let body = format!("{{\"payload\":{payload},\"tool\":\"echo\"}}");
    assert_eq!(body.len(), LIMIT);
    let answer = scene.post(&body).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body() == payload.as_bytes());
}

#[tokio::test]
async fn chunked_empty_and_binary_bodies_arrive_as_they_are() {
    let scene = Scene::start().await;
    let binary: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    for version in [Version::Http1, Version::Http2] {
        for body in [&b""[..], b"\0", b"\xff\xfe{", &binary] {
            for sent in [Sent::whole(body.to_vec()), Sent::in_pieces(body, 999)] {
                let mut caller = scene.caller(version).await;
                let proof = scene.proof("echo", body);
                let headers = proof.with(&[("content-type", "application/octet-stream")]);
                let answer = caller.call(&headers, sent).await.unwrap();
                assert_eq!(answer.status, 200, "{version:?} {answer:?}");
                assert!(answer.body() == body, "{version:?} {}", body.len());
            }
        }
    }
    for seen in scene.echo.seen() {
        assert_eq!(
            seen.header("content-type"),
            Some("application/octet-stream")
        );
        assert_eq!(seen.header("transfer-encoding"), None);
        let length = seen.header("content-length").map_or("0", |length| length);
        assert_eq!(length, seen.body.len().to_string());
    }
}

#[tokio::test]
async fn what_is_declared_to_be_json_must_be_json_that_all_understand_alike() {
    let scene = Scene::start().await;
    let deep = "[".repeat(1_000_000);
    for body in [
        "",
        "{",
        "not json",
        "{\"a\":1}{\"b\":2}",
        "{\"a\":1,\"a\":2}",
        "{\"tool\":\"echo\",\"tool\":\"todos\",\"payload\":1}",
        "{\"tool\":\"echo\",\"payload\":{\"a\":1,\"\\u0061\":2}}",
        &deep,
    ] {
        for kind in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/x+json",
        ] {
            let headers = [("content-type", kind)];
            let answer = scene.post_with(&headers, body.as_bytes()).await;
            assert_denied(&answer, 422, "json_parse_error");
        }
    }
    assert!(scene.echo.seen().is_empty());
    // Declared to be something else it is bytes, and echo's.
    let answer = scene
        .post_with(&[("content-type", "text/plain")], b"{\"a\":1,\"a\":2}")
        .await;
    assert_eq!(
        (answer.status.as_u16(), answer.text()),
        (200, "{\"a\":1,\"a\":2}".to_owned())
    );
}

#[tokio::test]
async fn a_content_coding_is_refused() {
    let scene = Scene::start().await;
    for coding in ["gzip", "br", "deflate, gzip", "GZIP", "x"] {
        let answer = scene
            .post_with(&[("content-encoding", coding)], b"{}")
            .await;
        assert_denied(&answer, 400, "body_unreadable");
    }
    assert!(scene.echo.seen().is_empty());
    let answer = scene
        .post_with(&[("content-encoding", "identity")], b"{}")
        .await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn no_request_hides_in_another() {
    let scene = Scene::start().await;
    let hidden = "POST /relay HTTP/1.1\r\nhost: gateway\r\ncontent-length: 2\r\n\r\n{}";
    let length = hidden.len();
    let chunk = format!("{length:x}\r\n{hidden}\r\n0\r\n\r\n");
    let request = |headers: &str, body: &str| {
        format!("POST /relay HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n{headers}\r\n{body}")
    };
    for words in [
        // Two answers to the question where the body ends.
        request(
            &format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"),
            &chunk,
        ),
        request("content-length: 2\r\ncontent-length: 40\r\n", "{}"),
        request("content-length: 2, 40\r\n", "{}"),
        request("content-length: +2\r\n", "{}"),
        request("content-length: -2\r\n", "{}"),
        request("content-length: 0x2\r\n", "{}"),
        request("transfer-encoding: chunked, identity\r\n", &chunk),
        request("transfer-encoding: identity, chunked\r\n", &chunk),
        request("transfer-encoding : chunked\r\n", &chunk),
        request("transfer_encoding: chunked\r\n", &chunk),
        request("transfer-encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n"),
        request("x: a\r\n transfer-encoding: chunked\r\n", &chunk),
        // A control character, and a name that is none.
        request("x: a\0b\r\ncontent-length: 2\r\n", "{}"),
        request("x y: a\r\ncontent-length: 2\r\n", "{}"),
        // HTTP/1.0 and less.
        "POST /relay HTTP/0.9\r\n\r\n".to_owned(),
    ] {
        let heard = scene.say(&words).await;
        let refused = ["HTTP/1.1 4", "HTTP/1.1 501 "];
        assert!(
            heard.is_empty() || refused.iter().any(|start| heard.starts_with(start)),
            "{words:?}: {heard}"
        );
        assert_eq!(
            heard.matches("HTTP/1.1 ").count().min(2),
            usize::from(!heard.is_empty())
        );
    }
    tokio::time::sleep(A_WHILE).await;
    assert!(scene.echo.seen().is_empty(), "{:?}", scene.echo.seen());

    // What follows a payload in its envelope is no request of its own.
    let payload = format!("\"{}\"", "x".repeat(50));
    let tail = hidden.replace("\r\n", " ").replace('"', "'");
    let body = format!(
        "{{\"tool\":\"echo\",\"payload\":{payload}}}{}",
        " ".repeat(tail.len())
    );
    for _ in 0..3 {
        assert_eq!(scene.post(&body).await.text(), payload);
    }
    assert_eq!(scene.echo.seen().len(), 3);
}

#[tokio::test]
async fn no_request_hides_in_another_over_http_2() {
    let scene = Scene::start().await;
    let hidden = b"{}POST /relay HTTP/1.1\r\nhost: gateway\r\ncontent-length: 2\r\n\r\n{}";
    let one = |name: &'static str, value: &'static [u8]| vec![(name, value)];
    for (path, more, body) in [
        ("/relay", one("content-length", b"2"), &hidden[..]),
        ("/relay", one("content-length", b"1"), b"{}"),
        ("/relay", one("content-length", b"40"), b"{}"),
        ("/relay", one("content-length", b"+2"), b"{}"),
        ("/relay", one("content-length", b"0x2"), b"{}"),
        ("/relay", one("content-length", b"2, 40"), b"{}"),
        (
            "/relay",
            vec![("content-length", &b"2"[..]), ("content-length", b"40")],
            b"{}",
        ),
        (
            "/relay",
            one("transfer-encoding", b"chunked"),
            b"2\r\n{}\r\n0\r\n\r\n",
        ),
        ("/relay", one("connection", b"close"), b"{}"),
        ("/relay", one("upgrade", b"x"), b"{}"),
        ("/relay", one("te", b"gzip"), b"{}"),
        ("/relay", one("X-Upper", b"a"), b"{}"),
        ("/relay", one("x y", b"a"), b"{}"),
        ("/relay", one("x:y", b"a"), b"{}"),
        ("/relay", one("x\r\ny", b"a"), b"{}"),
        ("/relay", one("x", b"a\r\ny: b"), b"{}"),
        ("/relay", one("x", b"a\ny: b"), b"{}"),
        ("/relay", one("x", b"a\0b"), b"{}"),
        ("/relay", one(":path", b"/relay"), b"{}"),
        ("/relay HTTP/1.1\r\nx: y", vec![], b"{}"),
        ("/relay /x", vec![], b"{}"),
        ("relay", vec![], b"{}"),
        ("", vec![], b"{}"),
    ] {
        let proof = scene.proof("echo", b"{}");
        let outcome = post(&scene, path, &proof, &more, &[body], &[]).await;
        let passed = outcome.status() == Some(200);
        assert!(!passed, "{path} {more:?}: {outcome:?}");
    }
    tokio::time::sleep(A_WHILE).await;
    assert!(scene.echo.seen().is_empty(), "{:?}", scene.echo.seen());

    // Trailers go nowhere, whatever they say, and a call that has some is one like any other.
    let trailers: [(&str, &[u8]); 3] = [
        ("authorization", b"planted"),
        ("x-agent-identity", b"planted"),
        ("x-poca-manifest", b"planted"),
    ];
    for trailers in [&[][..], &trailers] {
        let before = scene.echo.seen().len();
        let proof = scene.proof("echo", b"{}");
        let outcome = post(&scene, "/relay", &proof, &[], &[b"{", b"}"], trailers).await;
        let seen = scene.echo.seen();
        let seen = &seen[before..];
        assert_eq!((outcome.status(), seen.len()), (Some(200), 1));
        assert_eq!(seen[0].body, "{}");
        assert!(!format!("{seen:?}").contains("planted"), "{seen:?}");
    }
}

/// Posts JSON, whatever an HTTP/2 library would say of it.
async fn post(
    scene: &Scene,
    path: &str,
    proof: &Headers,
    more: &[(&str, &[u8])],
    pieces: &[&[u8]],
    trailers: &[(&str, &[u8])],
) -> Outcome {
    let gateway = &scene.gateway;
    let mut client = RawClient::connect(gateway.envoy.addr(), &gateway.pki, Some(&scene.agent))
        .await
        .unwrap();
    let mut headers = vec![
        (":method", &b"POST"[..]),
        (":scheme", b"https"),
        (":authority", b"gateway"),
        (":path", path.as_bytes()),
    ];
    let proof = proof.with_json();
    headers.extend(proof.iter().map(|(name, value)| (*name, value.as_bytes())));
    headers.extend(more);
    client.post(&headers, pieces, trailers).await.unwrap()
}

#[tokio::test]
async fn who_waits_to_be_told_to_go_on_is_told() {
    let scene = Scene::start().await;
    let proof = scene.proof("echo", b"{}");
    let lines = proof.with_json().into_iter();
    let lines: String = lines
        .map(|(name, value)| [name, ": ", value, "\r\n"].concat())
        .collect();
    let words = format!(
        "POST /relay HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\nexpect: 100-continue\r\n\
         content-length: 2\r\n{lines}\r\n{{}}"
    );
    let heard = scene.say(&words).await;
    assert!(
        heard.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"),
        "{heard}"
    );
    assert!(heard.ends_with("\r\n\r\n{}"), "{heard}");
    assert_eq!(scene.echo.only_seen().unwrap().header("expect"), None);
}

#[tokio::test]
async fn of_several_content_types_each_counts() {
    let scene = Scene::start().await;
    let twice = br#"{"a":1,"a":2}"#;
    for kinds in [
        ["application/json", "text/plain"],
        ["text/plain", "a/b+json"],
    ] {
        let headers = kinds.map(|kind| ("content-type", kind));
        let answer = scene.post_with(&headers, twice).await;
        assert_denied(&answer, 422, "json_parse_error");
    }
    assert!(scene.echo.seen().is_empty());
}

#[tokio::test]
async fn more_bodies_than_there_is_memory_for_are_refused_at_once() {
    let memory = (
        "AGENT_GATEWAY__RELAY__MAX_BODIES_BYTES",
        (LIMIT / 2).to_string(),
    );
    let scene = Scene::start_unlike(crate::scene::Unlike {
        environment: vec![memory],
        ..Default::default()
    });
    let scene = scene.await;
    let answer = scene.post_with(&[], &json_of(LIMIT)).await;
    assert_failed(&answer, 503, "registry_unavailable");
    assert_eq!(scene.post_with(&[], &json_of(LIMIT / 2)).await.status, 200);
    assert_eq!(scene.post("{}").await.status, 200);
}

#[tokio::test]
async fn a_client_that_says_that_its_body_is_whole_or_part_is_not_believed() {
    let scene = Scene::start().await;
    let body = json_of(LIMIT + 1);
    let headers = [("x-envoy-auth-partial-body", "false")];
    assert_denied(
        &scene.post_with(&headers, &body).await,
        413,
        "body_too_large",
    );
    let headers = [("x-envoy-auth-partial-body", "true")];
    assert_eq!(scene.post_with(&headers, b"{}").await.status, 200);
}
