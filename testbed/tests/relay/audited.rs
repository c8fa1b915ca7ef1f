//! Every outcome leaves its record: who, which tool, which status, and all of its codes.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::ClientCertificate;
use testbed::caller::{Sent, Version};
use testbed::gateway::AGENT;
use testbed::tunnel::Answer;

use crate::scene::{Headers, Scene, Unlike, envelope};

/// What is planted where no record may show it.
const PLANTED: &str = "planted-secret";
const FILE: &str = "audit.jsonl";

struct Audited {
    scene: Scene,
    /// Where the records are; gone when this is dropped.
    folder: TempDir,
}

impl Audited {
    async fn start() -> Self {
        let folder = testbed::scratch::folder("audit").unwrap();
        let path = folder.path().join(FILE).to_str().unwrap().to_owned();
        let scene = Scene::start_unlike(Unlike {
            // The name that the existing gateway has for it.
            environment: vec![("AUDIT_PATH", path)],
            ..Unlike::default()
        });
        let scene = scene.await;
        Self { scene, folder }
    }

    fn records(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.path().join(FILE)).unwrap();
        assert!(!text.contains(PLANTED));
        let records = text.lines().map(|line| serde_json::from_str(line).unwrap());
        records.collect()
    }

    /// Sends a call with exactly these headers of a proof, and a secret beside them.
    async fn call(&self, proof: Option<&Headers>, body: &[u8], more: &[(&str, &str)]) -> Answer {
        let mut headers = proof.map_or_else(Vec::new, |proof| proof.with(&[]));
        headers.extend([("authorization", PLANTED), ("cookie", PLANTED)]);
        headers.extend(more);
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            headers.push(("content-type", "application/json"));
        }
        let mut caller = self.scene.caller(Version::Http2).await;
        caller
            .call(&headers, Sent::whole(body.to_vec()))
            .await
            .unwrap()
    }

    /// The record of the decision that an answer names says this.
    #[track_caller]
    fn assert_recorded(&self, answer: &Answer, tool: Option<&str>, reason: &[&str]) {
        let id = answer.header("x-agent-gateway-decision-id").unwrap();
        let records = self.records();
        let mut found = records.iter().filter(|record| record["decision_id"] == id);
        let record = found
            .next()
            .unwrap_or_else(|| panic!("no record of {answer:?}"));
        assert!(found.next().is_none(), "two records of {answer:?}");
        let allowed = reason == ["allowed"];
        let expected = json!({
            "caller": AGENT,
            "tool": tool,
            "decision": if allowed { "allow" } else { "deny" },
            "status": answer.status.as_u16(),
            "reason": reason,
        });
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(
                record.get(field).unwrap_or(&Value::Null),
                value,
                "{field}: {record}"
            );
        }
        assert_eq!(record["trace_id"].as_str().unwrap().len(), 32, "{record}");
    }
}

#[tokio::test]
async fn each_outcome_is_recorded_with_its_codes() {
    let audited = Audited::start().await;
    let scene = &audited.scene;
    let body = format!(r#"{{"message":"{PLANTED}"}}"#);
    let body = body.as_bytes();
    let proof = scene.proof("echo", body);

    let answer = audited.call(Some(&proof), body, &[]).await;
    assert_eq!(answer.status, 200);
    audited.assert_recorded(&answer, Some("echo"), &["allowed"]);

    let poca = "forbidden_by_poca";
    let answer = audited.call(Some(&proof), body, &[]).await;
    audited.assert_recorded(&answer, Some("echo"), &[poca, "poca_replay"]);
    let answer = audited.call(None, body, &[]).await;
    audited.assert_recorded(&answer, Some("echo"), &[poca, "poca_missing_headers"]);
    let other = scene.proof("echo", b"{}");
    let answer = audited.call(Some(&other), body, &[]).await;
    audited.assert_recorded(&answer, Some("echo"), &[poca, "poca_payload_hash_mismatch"]);
    let other = scene.proof("todos", body);
    let answer = audited.call(Some(&other), body, &[]).await;
    audited.assert_recorded(&answer, Some("echo"), &[poca, "poca_tool_mismatch"]);

    let proven = |tool: &str, body: &str| (scene.proof(tool, body.as_bytes()), body.to_owned());
    let unmet = envelope("todos", &json!({"op": PLANTED}));
    for (tool, body, headers, reason) in [
        ("todos", &*unmet, &[][..], &["schema_request_invalid"][..]),
        (
            "echo",
            PLANTED,
            &[],
            &["json_parse_error", "schema_request_invalid"],
        ),
        (
            "echo",
            "{}",
            &[("x-contract-id", "none.v1")],
            &["unknown_contract", "schema_request_invalid"],
        ),
        (
            "shell",
            r#"{"tool":"shell","payload":1}"#,
            &[],
            &["unknown_tool"],
        ),
        ("echo", r#"{"tool":"echo"}"#, &[], &["envelope_invalid"]),
        (
            "echo",
            "{}",
            &[("content-encoding", "gzip")],
            &["body_unreadable"],
        ),
    ] {
        let (proof, body) = proven(tool, body);
        let answer = audited.call(Some(&proof), body.as_bytes(), headers).await;
        audited.assert_recorded(&answer, Some(tool), reason);
    }

    let stranger = ClientCertificate::for_identity(AGENT).unwrap();
    let mut caller = scene.caller_with(&stranger, Version::Http2).await;
    let headers = [("content-type", "application/json")];
    let answer = caller.call(&headers, Sent::whole("{}")).await.unwrap();
    audited.assert_recorded(&answer, Some("echo"), &["no_permission"]);

    let policy = |rules: &str| {
        let rego = format!("package mcp.authz\nimport rego.v1\n{rules}\n");
        scene.files.write("policy/authz.rego", &rego);
    };
    policy("default allow := false");
    scene.reloaded(1).await;
    let (proof, body) = proven("echo", "{}");
    let answer = audited.call(Some(&proof), body.as_bytes(), &[]).await;
    audited.assert_recorded(&answer, Some("echo"), &["policy"]);
    policy("allow if to_number(input.tool) == 1");
    scene.reloaded(2).await;
    let (proof, body) = proven("echo", "{}");
    let answer = audited.call(Some(&proof), body.as_bytes(), &[]).await;
    audited.assert_recorded(&answer, Some("echo"), &["policy", "policy_error"]);
    policy("allow := true");
    scene.files.allow(&[]);
    scene.reloaded(3).await;
    let (proof, body) = proven("echo", "{}");
    let answer = audited.call(Some(&proof), body.as_bytes(), &[]).await;
    audited.assert_recorded(&answer, Some("echo"), &["egress_denied"]);
}
