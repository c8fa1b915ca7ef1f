//! Policy by an OPA server: a real HTTP server in its place, which answers as OPA does, or worse.

use std::time::Duration;

use serde_json::{Value, json};
use testbed::ToolServer;
use testbed::gateway::AGENT;
use testbed::tool::Conduct;

use crate::scene::{Scene, Unlike, assert_denied};

async fn start(opa: &ToolServer) -> Scene {
    let url = format!("http://{}/v1/data/mcp/authz", opa.addr());
    Scene::start_unlike(Unlike {
        // The name that the existing gateway has for it.
        environment: vec![("OPA_URL", url)],
        without_rego: true,
        ..Unlike::default()
    })
    .await
}

fn says(status: u16, body: &str) -> Conduct {
    let json = vec![("content-type", "application/json")];
    Conduct::Says(status, json, body.as_bytes().to_vec())
}

#[tokio::test]
async fn an_opa_server_is_asked_and_obeyed() {
    let opa = says(
        200,
        r#"{"result":{"allow":true,"reason":[],"more":1},"decision_id":"x"}"#,
    );
    let opa = ToolServer::start([127, 0, 0, 1], opa).await.unwrap();
    let scene = start(&opa).await;
    let trace = (
        "traceparent",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    );
    let headers = [trace, ("x-contract-id", "echo.v1")];
    assert_eq!(
        scene
            .post_with(&headers, br#"{"message":"hi"}"#)
            .await
            .status,
        200
    );
    let seen = opa.only_seen().unwrap();
    assert_eq!((&*seen.method, &*seen.path), ("POST", "/v1/data/mcp/authz"));
    let asked: Value = serde_json::from_slice(&seen.body).unwrap();
    let expected = json!({"input": {
        "caller": AGENT,
        "tool": "echo",
        "poca_verified": true,
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "schema_id": "echo.v1",
    }});
    assert_eq!(asked, expected);
    for no in [
        r#"{"result":{"allow":false,"reason":["not this"]}}"#,
        r#"{"result":{"allow":false}}"#,
        r#"{"result":{}}"#,
    ] {
        opa.conduct(says(200, no));
        assert_denied(&scene.post("{}").await, 403, "policy");
    }
    assert_eq!(scene.echo.seen().len(), 1);
}

#[tokio::test]
async fn an_opa_server_that_gives_no_answer_denies() {
    let opa = ToolServer::start([127, 0, 0, 1], says(200, ""))
        .await
        .unwrap();
    let scene = start(&opa).await;
    let huge = format!(
        r#"{{"result":{{"allow":true,"reason":["{}"]}}}}"#,
        "x".repeat(100_000)
    );
    for (status, garbage) in [
        (200, ""),
        (200, "yes"),
        (200, "{}"),
        (200, r#"{"result":null}"#),
        (200, r#"{"result":true}"#),
        (200, r#"{"result":{"allow":"true"}}"#),
        (200, r#"{"result":{"allow":1}}"#),
        (200, r#"{"result":{"allow":true,"allow":false}}"#),
        (200, &huge),
        (500, r#"{"result":{"allow":true}}"#),
        (302, r#"{"result":{"allow":true}}"#),
        (204, ""),
    ] {
        opa.conduct(says(status, garbage));
        assert_denied(&scene.post("{}").await, 403, "opa_bad_response");
    }
    for never in [Conduct::Silent, Conduct::Dribble(Duration::from_millis(50))] {
        opa.conduct(never);
        assert_denied(&scene.post("{}").await, 403, "opa_unreachable");
    }
    drop(opa);
    assert_denied(&scene.post("{}").await, 403, "opa_unreachable");
    assert!(scene.echo.seen().is_empty());
}
