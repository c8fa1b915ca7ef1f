//! The sidecar's `relay`: an agent whose key is in its TPM calls tools from the command line.

use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use testbed::rows::Grant;
use testbed::{Agent, binary};

use crate::scene::Scene;

const IDENTITY: &str = "agent-omega";

/// Runs the sidecar with this agent's state.
fn sidecar(agent: &Agent, arguments: &[&str]) -> Output {
    Command::new(binary::path("agent-gateway-sidecar").unwrap())
        .args(arguments)
        .arg("--state")
        .arg(agent.state())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_calls_tools_with_its_tpms_key_and_a_proof_for_each_call() {
    let scene = Scene::start().await;
    let agent = Agent::init(IDENTITY).unwrap();
    let made = sidecar(&agent, &["poca", "keygen"]);
    let key = String::from_utf8(made.stdout).unwrap();
    let agents = format!(
        "agents: {{{IDENTITY}: {{ed25519_pubkey_b64: '{}'}}}}\n",
        key.trim()
    );
    scene.files.write("agents.yaml", &agents);
    scene.reloaded(1).await;
    let spki = agent.spki_der().unwrap();
    for tool in ["echo", "todos"] {
        let grant = Grant::new(IDENTITY, &spki, &scene.destination(tool));
        let gateway = &scene.gateway;
        gateway.principal.grant(&gateway.database, &grant).unwrap();
    }
    scene.settle().await;

    let ca = scene.gateway.pki.ca_file();
    let gateway = scene.gateway.envoy.addr().to_string();
    let body = agent.state().join("body");
    let relay = |tool: &str, text: &str, more: &[&str]| {
        fs::write(&body, text).unwrap();
        let arguments = ["relay", "--gateway", &gateway, "--tool", tool, "--ca"];
        let files = [ca.to_str().unwrap(), "--body", body.to_str().unwrap()];
        sidecar(&agent, &[&arguments[..], &files, more].concat())
    };
    let payload = r#"{"op":"create","title":"Buy milk"}"#;
    for _ in 0..2 {
        let output = relay("todos", payload, &["--intent", "plan", "--scope", "write"]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), payload);
    }
    let seen = scene.todos.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].header("x-agent-identity"), Some(IDENTITY));
    let output = relay("echo", r#"{"message":"hi"}"#, &["--contract", "echo.v1"]);
    assert!(output.status.success(), "{output:?}");

    let refused = |output: Output, status: i32, reason: &str| {
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["reason"], reason);
    };
    refused(
        relay("todos", r#"{"op":"create"}"#, &[]),
        65,
        "schema_request_invalid",
    );
    refused(relay("shell", "{}", &[]), 65, "unknown_tool");
    scene
        .gateway
        .database
        .execute("UPDATE permission_registry SET revoked_at = now()")
        .unwrap();
    scene.settle().await;
    refused(relay("todos", payload, &[]), 77, "permission_revoked");
    assert_eq!((scene.todos.seen().len(), scene.echo.seen().len()), (2, 1));
}
