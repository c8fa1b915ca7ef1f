//! Calls that reach their tool, and what the tool sees of them.

use serde_json::{Value, json};
use testbed::caller::{Sent, Version};
use testbed::gateway::AGENT;
use testbed::tool::Conduct;

use crate::scene::{Scene, Unlike, assert_denied, envelope};

#[tokio::test]
async fn a_bare_body_goes_to_echo_over_either_http() {
    let scene = Scene::start().await;
    for version in [Version::Http1, Version::Http2] {
        let mut caller = scene.caller(version).await;
        for number in 0..3 {
            let body = format!(r#"{{"message": "{version:?} {number}"}}"#);
            let proof = scene.proof("echo", body.as_bytes());
            let headers = proof.with_json();
            let answer = caller
                .call(&headers, Sent::whole(body.clone()))
                .await
                .unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.text(), body);
        }
    }
    let seen = scene.echo.seen();
    assert_eq!(seen.len(), 6);
    assert!(
        seen.iter()
            .all(|seen| seen.method == "POST" && seen.path == "/echo")
    );
    assert!(scene.todos.seen().is_empty());
}

#[tokio::test]
async fn an_envelope_gives_its_tool_the_payload_alone_byte_for_byte() {
    let scene = Scene::start().await;
    // Numbers that a JSON library would round, spacing, order and escapes: all as they were.
    let payload = "{ \"title\":\"caf\\u00e9 \u{2603}\" ,\n\t\"op\" :\"create\"}";
    let body = format!("  {{\"tool\" : \"todos\", \"payload\":{payload} }}\n");
    let answer = scene.post(&body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.text(), payload);
    let numbers = "[12345678901234567890123,0.1000000000000000055511151231257827,1E2,-0,1.50]";
    let body = format!("{{\"payload\":{numbers},\"tool\":\"echo\"}}");
    assert_eq!(scene.post(&body).await.text(), numbers);
    assert_eq!(scene.todos.only_seen().unwrap().body, payload);
    assert_eq!(scene.echo.only_seen().unwrap().body, numbers);
}

#[tokio::test]
async fn the_tool_sees_who_calls_and_nothing_of_the_callers_credentials() {
    let scene = Scene::start().await;
    let answer = scene
        .post_with(
            &[
                ("authorization", "Bearer planted-secret"),
                ("proxy-authorization", "Basic planted-secret"),
                ("cookie", "session=planted-secret"),
                ("x-api-key", "planted-secret"),
                ("x-contract-id", "echo.v1"),
                ("x-agent-identity", "agent-omega"),
                ("x-decision-id", "forged"),
                ("x-forwarded-for", "203.0.113.7"),
                ("x-forwarded-host", "elsewhere"),
                ("x-forwarded-client-cert", "Subject=\"CN=admin\""),
                ("forwarded", "for=203.0.113.7"),
                ("x-original-url", "/admin"),
                ("x-http-method-override", "DELETE"),
                ("x-envoy-upstream-rq-timeout-ms", "100000"),
                ("x-envoy-original-dst-host", "127.0.0.1:1"),
                ("x-envoy-decorator-operation", "planted"),
                ("user-agent", "an-agent/1"),
                ("accept", "application/json"),
                (
                    "traceparent",
                    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                ),
            ],
            br#"{"message":"hi"}"#,
        )
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = scene.echo.only_seen().unwrap();
    assert!(!format!("{seen:?}").contains("planted"), "{seen:?}");
    let names: Vec<_> = seen.headers.keys().map(ToString::to_string).collect();
    for name in &names {
        let known = [
            "host",
            "accept",
            "content-type",
            "content-length",
            "user-agent",
            "traceparent",
            "x-request-id",
            "x-agent-identity",
            "x-decision-id",
        ];
        assert!(known.contains(&name.as_str()), "{name} of {names:?}");
    }
    assert_eq!(seen.header("host"), Some(&*scene.destination("echo")));
    assert_eq!(seen.header("x-agent-identity"), Some(AGENT));
    let decision = answer.header("x-agent-gateway-decision-id");
    assert_eq!(seen.header("x-decision-id"), decision);
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert_eq!(seen.header("content-length"), Some("16"));
    assert!(
        seen.header("traceparent")
            .unwrap()
            .contains("0af7651916cd43dd8448eb211c80319c")
    );
}

#[tokio::test]
async fn the_tools_own_answer_comes_back_without_its_cookies() {
    let scene = Scene::start().await;
    let headers = vec![
        ("content-type", "text/plain"),
        ("set-cookie", "a=b"),
        ("x-of-tool", "1"),
    ];
    scene
        .echo
        .conduct(Conduct::Says(418, headers, b"teapot".to_vec()));
    let answer = scene.post("{}").await;
    assert_eq!(
        (answer.status.as_u16(), answer.text()),
        (418, "teapot".to_owned())
    );
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    assert_eq!(answer.header("x-of-tool"), Some("1"));
    assert_eq!(answer.header("set-cookie"), None);
    assert!(answer.header("x-agent-gateway-decision-id").is_some());
    // Nothing in it need be; no content is a content too.
    scene
        .echo
        .conduct(Conduct::Says(204, Vec::new(), Vec::new()));
    assert_eq!(scene.post("{}").await.status, 204);
}

#[tokio::test]
async fn an_unknown_tool_and_a_broken_envelope_reach_nobody() {
    let scene = Scene::start().await;
    let unknown = scene.post(&envelope("shell", &json!({}))).await;
    assert_denied(&unknown, 400, "unknown_tool");
    let no_name = scene.post(&envelope("a tool\u{202e}", &json!({}))).await;
    assert_denied(&no_name, 400, "unknown_tool");
    for body in [
        r#"{"tool":"echo"}"#,
        r#"{"tool":"echo","payload":1,"path":"/admin"}"#,
        r#"{"tool":["echo"],"payload":1}"#,
    ] {
        assert_denied(&scene.post(body).await, 400, "envelope_invalid");
    }
    assert!(scene.echo.seen().is_empty() && scene.todos.seen().is_empty());
}

#[tokio::test]
async fn policy_that_says_no_is_a_deny_and_so_is_one_that_fails() {
    let scene = Scene::start().await;
    let policy = |rules: &str| {
        let rego = format!("package mcp.authz\nimport rego.v1\n{rules}\n");
        scene.files.write("policy/authz.rego", &rego);
    };
    policy(
        "default allow := false\nallow if input.tool == \"todos\"\nreason contains \"not this\"",
    );
    scene.reloaded(1).await;
    let answer = scene.post("{}").await;
    assert_denied(&answer, 403, "policy");
    // The policy's own words are the operator's.
    assert!(!answer.text().contains("not this"));
    policy(
        "default allow := false\nallow if 1 / count(input.trace_id) > 2\nallow if to_number(input.tool) == 1",
    );
    scene.reloaded(2).await;
    assert_denied(&scene.post("{}").await, 403, "policy_error");
    assert!(scene.echo.seen().is_empty());
    // What the policy is told.
    policy(&format!(
        "default allow := false\nallow if {{\n  object.keys(input) == {{\"caller\", \"tool\", \"poca_verified\", \"trace_id\", \"schema_id\"}}\n  \
         input.caller == \"{AGENT}\"\n  input.tool == \"echo\"\n  input.schema_id == \"echo.v1\"\n  \
         input.trace_id == \"0af7651916cd43dd8448eb211c80319c\"\n}}"
    ));
    scene.reloaded(3).await;
    let trace = (
        "traceparent",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    );
    let headers = [trace, ("x-contract-id", "echo.v1")];
    let answer = scene.post_with(&headers, br#"{"message":"hi"}"#).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn tunnels_go_on_beside_calls_on_the_same_connection() {
    let scene = Scene::start().await;
    let tunnel = scene
        .gateway
        .connect(&scene.agent, &scene.destination("echo"))
        .await
        .unwrap();
    // Private addresses are the tool's; a tunnel has a list of its own.
    assert_eq!(tunnel.status, 403, "{tunnel:?}");
    let reason: Value = tunnel.json().unwrap();
    assert_eq!(reason["reason"], "destination_address_forbidden");
}

#[tokio::test]
async fn the_existing_gateways_names_set_the_same() {
    let scene = Scene::start_unlike(Unlike {
        environment: vec![("POCA_REQUIRED", "true".to_owned())],
        existing_names: true,
        ..Unlike::default()
    });
    let scene = scene.await;
    assert_eq!(scene.post("{}").await.status, 200);
    // What `tools.yaml` says of a tool beside its URL holds.
    let todos = |payload| envelope("todos", &payload);
    let answer = scene
        .post(&todos(json!({"op": "create", "title": "x"})))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let unmet = scene.post(&todos(json!({"op": "create"}))).await;
    assert_denied(&unmet, 422, "schema_request_invalid");
    let mut caller = scene.caller(Version::Http2).await;
    let unproven = caller.call(&[], Sent::whole("{}")).await.unwrap();
    assert_denied(&unproven, 403, "poca_missing_headers");
    scene.files.allow(&[]);
    scene.reloaded(1).await;
    assert_denied(&scene.post("{}").await, 403, "egress_denied");
    assert_eq!((scene.echo.seen().len(), scene.todos.seen().len()), (1, 1));
}
