//! Payloads that meet their contracts, and others.

use serde_json::json;

use crate::scene::{Scene, assert_denied, envelope};

#[tokio::test]
async fn a_tools_own_contract_always_applies() {
    let scene = Scene::start().await;
    let good = envelope("todos", &json!({"op": "create", "title": "Buy milk"}));
    assert_eq!(scene.post(&good).await.status, 200);
    for (payload, pointer, keyword) in [
        (json!({"op": "create"}), "", "required"),
        (json!({"op": "delete", "title": "x"}), "/op", "const"),
        (json!({"op": "create", "title": ""}), "/title", "minLength"),
        (
            json!({"op": "create", "title": "x", "admin": true}),
            "",
            "additionalProperties",
        ),
        (json!("planted-value"), "", "type"),
    ] {
        for headers in [&[][..], &[("x-contract-id", "todos.v1")]] {
            let answer = scene
                .post_with(headers, envelope("todos", &payload).as_bytes())
                .await;
            assert_denied(&answer, 422, "schema_request_invalid");
            let body = answer.json().unwrap();
            assert_eq!(
                (&body["pointer"], &body["keyword"]),
                (&json!(pointer), &json!(keyword))
            );
            assert!(!answer.text().contains("planted-value"));
        }
    }
    // Another contract, that it meets, takes nothing from the tool's own.
    let body = envelope("todos", &json!({"message": "hi"}));
    let answer = scene
        .post_with(&[("x-contract-id", "echo.v1")], body.as_bytes())
        .await;
    assert_denied(&answer, 422, "schema_request_invalid");
    assert_eq!(scene.todos.seen().len(), 1);
}

#[tokio::test]
async fn the_contract_that_a_call_names_applies() {
    let scene = Scene::start().await;
    let named = [("x-contract-id", "echo.v1")];
    assert_eq!(
        scene.post_with(&named, br#"{"message":"hi"}"#).await.status,
        200
    );
    let answer = scene.post_with(&named, br#"{"msg":"hi"}"#).await;
    assert_denied(&answer, 422, "schema_request_invalid");
    let answer = scene
        .post_with(&[("x-contract-id", "echo.v2")], b"{}")
        .await;
    assert_denied(&answer, 422, "unknown_contract");
    // Not JSON, though nobody said that it was.
    let headers = [("x-contract-id", "echo.v1"), ("content-type", "text/plain")];
    for body in [&b"hi"[..], br#"{"message":"hi","message":"ho"}"#] {
        assert_denied(
            &scene.post_with(&headers, body).await,
            422,
            "json_parse_error",
        );
    }
    assert_eq!(scene.echo.seen().len(), 1);
}
