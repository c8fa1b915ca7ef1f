//! Rules that change while calls go on.

use testbed::process::Signal;

use crate::scene::{Scene, assert_denied, envelope, tool};
use serde_json::json;

#[tokio::test]
async fn a_changed_file_is_taken_and_a_broken_one_leaves_everything_as_it_was() {
    let scene = Scene::start().await;
    let todos = envelope("todos", &json!({"op": "create", "title": "x"}));
    assert_eq!(scene.post(&todos).await.status, 200);
    let tools = |lines: &str| scene.files.write("tools.yaml", &format!("tools:\n{lines}"));
    let echo = tool(
        "echo",
        &format!("http://{}/echo", scene.destination("echo")),
        "",
    );

    // One of the files is broken: not even the others' changes are taken.
    scene.files.write("contracts/todos.json", "{");
    scene.refused(1).await;
    tools(&echo);
    scene.refused(2).await;
    assert_eq!(scene.post(&todos).await.status, 200);
    let ready = scene.gateway.authz.readyz().await.unwrap();
    assert!(ready.starts_with("HTTP/1.1 200 "), "{ready}");
    assert!(
        ready.contains("relay_rules_refused: ") && ready.contains("todos.json"),
        "{ready}"
    );
    let metric = scene
        .gateway
        .authz
        .metric("agent_gateway_relay_rules_refused")
        .await;
    assert!((metric.unwrap() - 1.0).abs() < f64::EPSILON);

    scene
        .files
        .write("contracts/todos.json", r#"{"$id":"todos.v1"}"#);
    scene.reloaded(1).await;
    assert_denied(&scene.post(&todos).await, 400, "unknown_tool");
    assert_eq!(scene.post("{}").await.status, 200);
    let ready = scene.gateway.authz.readyz().await.unwrap();
    assert!(!ready.contains("relay_rules_refused"), "{ready}");
    let metric = scene
        .gateway
        .authz
        .metric("agent_gateway_relay_rules_refused")
        .await;
    assert!(metric.unwrap().abs() < f64::EPSILON);
}

#[tokio::test]
async fn each_file_can_be_broken_in_its_own_way() {
    let mut scene = Scene::start().await;
    let mut refused = 0;
    for (file, broken) in [
        ("tools.yaml", "tools: [{name: echo}]"),
        (
            "tools.yaml",
            "tools: [{name: echo, url: 'http://echo/', contract: none.v1}]",
        ),
        (
            "tools.yaml",
            "tools: [{name: echo, url: 'http://user@echo/'}]",
        ),
        ("egress.yaml", "default: allow"),
        ("policy/authz.rego", "package mcp.authz\nallow if {"),
        ("policy/authz.rego", "package other"),
        (
            "contracts/echo.json",
            r#"{"$id":"echo.v1","$ref":"https://example.com/x.json"}"#,
        ),
        (
            "agents.yaml",
            "agents: {agent-alpha: {ed25519_pubkey_b64: 'AAAA'}}",
        ),
    ] {
        let good = std::fs::read_to_string(scene.files.path(file)).unwrap();
        scene.files.write(file, broken);
        refused += 1;
        scene.refused(refused).await;
        assert_eq!(scene.post("{}").await.status, 200, "{file}");
        let reads = scene.reads().await;
        scene.files.write(file, &good);
        scene.reloaded(reads + 1).await;
    }
    // Unchanged files are read again when the service is told to.
    let reads = scene.reads().await;
    scene.gateway.authz.process().signal(Signal::HUP).unwrap();
    scene.reloaded(reads + 1).await;
    assert_eq!(scene.post("{}").await.status, 200);
}
