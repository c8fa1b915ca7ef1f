//! Every outcome leaves its record: who, which tool, which status, and all of its codes.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::caller::{Sent, Version};
use testbed::gateway::AGENT;
use testbed::tool::Conduct;
use testbed::tunnel::Answer;
use testbed::{ClientCertificate, ToolServer};

use crate::scene::{Headers, Scene, Unlike, assert_denied, assert_failed, envelope, tool};

/// What is planted where no record may show it.
const PLANTED: &str = "planted-secret";
const FILE: &str = "audit.jsonl";

pub(crate) struct Audited {
    pub(crate) scene: Scene,
    /// Where the records are; gone when this is dropped.
    folder: TempDir,
}

impl Audited {
    pub(crate) async fn start() -> Self {
        Self::start_unlike(Unlike::default()).await
    }

    pub(crate) async fn start_unlike(mut unlike: Unlike) -> Self {
        let folder = testbed::scratch::folder("audit").unwrap();
        let path = folder.path().join(FILE).to_str().unwrap().to_owned();
        // The name that the existing gateway has for it.
        unlike.environment.push(("AUDIT_PATH", path));
        let scene = Scene::start_unlike(unlike).await;
        Self { scene, folder }
    }

    fn records(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.path().join(FILE)).unwrap();
        assert!(!text.contains(PLANTED));
        let records = text.lines().map(|line| serde_json::from_str(line).unwrap());
        records.collect()
    }

    /// Sends a call with exactly these headers of a proof, and a secret beside them.
    pub(crate) async fn call(
        &self,
        proof: Option<&Headers>,
        body: &[u8],
        more: &[(&str, &str)],
    ) -> Answer {
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
    pub(crate) fn assert_recorded(&self, answer: &Answer, tool: Option<&str>, reason: &[&str]) {
        self.assert_recorded_as(answer, answer.status.as_u16(), tool, reason);
    }

    /// As [`Audited::assert_recorded`], of another caller than the agent.
    #[track_caller]
    fn assert_recorded_of(
        &self,
        caller: &Value,
        answer: &Answer,
        tool: Option<&str>,
        reason: &[&str],
    ) {
        let status = answer.status.as_u16();
        self.assert_record(caller, answer, status, tool, reason);
    }

    /// As [`Audited::assert_recorded`], with another status than what the agent saw in the end.
    #[track_caller]
    fn assert_recorded_as(
        &self,
        answer: &Answer,
        status: u16,
        tool: Option<&str>,
        reason: &[&str],
    ) {
        self.assert_record(&json!(AGENT), answer, status, tool, reason);
    }

    #[track_caller]
    fn assert_record(
        &self,
        caller: &Value,
        answer: &Answer,
        status: u16,
        tool: Option<&str>,
        reason: &[&str],
    ) {
        let body = answer.json().unwrap_or_default();
        let id = (answer.header("x-agent-gateway-decision-id"))
            .or(body["decision_id"].as_str())
            .unwrap();
        let records = self.records();
        let mut found = records.iter().filter(|record| record["decision_id"] == id);
        let record = found
            .next()
            .unwrap_or_else(|| panic!("no record of {answer:?}"));
        assert!(found.next().is_none(), "two records of {answer:?}");
        let allowed = reason == ["allowed"];
        let expected = json!({
            "caller": caller,
            "tool": tool,
            "decision": if allowed { "allow" } else { "deny" },
            "status": status,
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
    // One after another, or the service may look between the two.
    policy("allow := true");
    scene.reloaded(3).await;
    scene.files.allow(&[]);
    scene.reloaded(4).await;
    let (proof, body) = proven("echo", "{}");
    let answer = audited.call(Some(&proof), body.as_bytes(), &[]).await;
    audited.assert_recorded(&answer, Some("echo"), &["egress_denied"]);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_recorded_where_the_service_is_asked() {
    let audited = Audited::start().await;
    let body = vec![b' '; 2 * 1024 * 1024 + 1];
    let answer = audited.call(None, &body, &[]).await;
    assert_denied(&answer, 413, "body_too_large");
    audited.assert_recorded(&answer, None, &["body_too_large"]);
    // Envoy refuses more than that by itself, and says so in its own log.
    let recorded = audited.records().len();
    let answer = audited
        .call(None, &[body, vec![0; 17 * 1024]].concat(), &[])
        .await;
    assert_failed(&answer, 413, "body_too_large");
    assert_eq!(audited.records().len(), recorded);
    let logged = audited.scene.gateway.envoy.logged(|line| {
        line["status"] == 413 && line["decision_id"] == Value::Null && line["method"] == "POST"
    });
    assert_eq!(
        logged.await.unwrap()["details"],
        "request_payload_too_large"
    );
}

#[tokio::test]
async fn a_policy_server_that_gives_no_answer_is_recorded() {
    let json = vec![("content-type", "application/json")];
    let says = |text: &str| Conduct::Says(200, json.clone(), text.as_bytes().to_vec());
    let opa = ToolServer::start([127, 0, 0, 1], says("garbage"))
        .await
        .unwrap();
    let audited = Audited::start_unlike(Unlike {
        environment: vec![(
            "OPA_URL",
            format!("http://{}/v1/data/mcp/authz", opa.addr()),
        )],
        without_rego: true,
        ..Unlike::default()
    });
    let audited = audited.await;
    let call = async || {
        let proof = audited.scene.proof("echo", b"{}");
        audited.call(Some(&proof), b"{}", &[]).await
    };
    let recorded = |answer: &Answer, code: &str| {
        assert_denied(answer, 403, code);
        audited.assert_recorded(answer, Some("echo"), &["policy", code]);
    };
    recorded(&call().await, "opa_bad_response");
    opa.conduct(Conduct::Silent);
    recorded(&call().await, "opa_unreachable");
    opa.conduct(says(r#"{"result":{"allow":false,"reason":["not this"]}}"#));
    let answer = call().await;
    audited.assert_recorded(&answer, Some("echo"), &["policy"]);
    drop(opa);
    recorded(&call().await, "opa_unreachable");
    assert!(audited.scene.echo.seen().is_empty());
}

#[tokio::test]
async fn what_became_of_an_allowed_call_is_in_envoys_log_under_the_same_decision() {
    let audited = Audited::start().await;
    let scene = &audited.scene;
    let call = async || {
        let body = envelope("todos", &json!({"op": "create", "title": "x"}));
        let proof = scene.proof("todos", body.as_bytes());
        audited.call(Some(&proof), body.as_bytes(), &[]).await
    };
    let too_much = Conduct::Says(200, Vec::new(), vec![b'a'; 3 * 1024 * 1024]);
    for (conduct, status, reason) in [
        (Conduct::Silent, 504, "tool_timeout"),
        (too_much, 502, "tool_answer_too_large"),
    ] {
        scene.todos.conduct(conduct);
        let answer = call().await;
        assert_failed(&answer, status, reason);
        // The decision was to allow it.
        audited.assert_recorded_as(&answer, 200, Some("todos"), &["allowed"]);
        let id = answer.json().unwrap()["decision_id"].clone();
        let logged = scene.gateway.envoy.logged(|line| line["decision_id"] == id);
        let logged = logged.await.unwrap();
        assert_eq!(
            (&logged["status"], &logged["tool"]),
            (&json!(status), &json!("todos"))
        );
    }
}

#[tokio::test]
async fn a_name_that_leads_nowhere_or_to_a_forbidden_address_is_recorded() {
    let url = "http://named.test:8080/";
    let audited = Audited::start_unlike(Unlike {
        tools: vec![(tool("named", url, ""), url.to_owned())],
        ..Unlike::default()
    });
    let audited = audited.await;
    let scene = &audited.scene;
    scene.grant("named.test:8080");
    scene.settle().await;
    scene.policy_for_all().await;
    for (addresses, status, reason) in [
        (vec![], 502, "destination_unresolvable"),
        (vec!["10.0.0.1"], 403, "destination_address_forbidden"),
    ] {
        let addresses = addresses.iter().map(|address| address.parse().unwrap());
        let addresses = testbed::dns::Answer::Addresses(addresses.collect());
        scene.gateway.dns.answer("named.test", addresses);
        let body = envelope("named", &json!(1));
        let proof = scene.proof("named", body.as_bytes());
        let answer = audited.call(Some(&proof), body.as_bytes(), &[]).await;
        assert_denied(&answer, status, reason);
        audited.assert_recorded(&answer, Some("named"), &[reason]);
    }
}

#[tokio::test]
async fn a_call_that_can_not_be_decided_or_is_no_longer_permitted_is_recorded() {
    let audited = Audited::start_unlike(Unlike {
        nonces_in_postgres: true,
        ..Unlike::default()
    });
    let audited = audited.await;
    let database = &audited.scene.gateway.database;
    let call = async || {
        let proof = audited.scene.proof("echo", b"{}");
        audited.call(Some(&proof), b"{}", &[]).await
    };
    let refused = |answer: &Answer, status: u16, reason: &str| {
        assert_denied(answer, status, reason);
        audited.assert_recorded(answer, Some("echo"), &[reason]);
    };
    assert_eq!(call().await.status, 200);
    let nonces = |from: &str, to: &str| {
        let rename = format!("ALTER TABLE {from} RENAME TO {to}");
        database.execute(&rename).unwrap();
    };
    nonces("relay_nonces", "gone");
    refused(&call().await, 503, "poca_nonces_unavailable");
    nonces("gone", "relay_nonces");
    assert_eq!(call().await.status, 200);

    let revoke = "UPDATE permission_registry SET revoked_at = now()";
    database.execute(revoke).unwrap();
    audited.scene.settle().await;
    refused(&call().await, 403, "permission_revoked");
    // Whatever was in memory counts no longer, and can't be read again.
    database
        .execute("ALTER TABLE permission_registry RENAME TO gone; INSERT INTO registry_changes DEFAULT VALUES")
        .unwrap();
    audited.scene.settle().await;
    refused(&call().await, 503, "registry_unavailable");
    assert_eq!(audited.scene.echo.seen().len(), 2);
}

#[tokio::test]
async fn a_caller_whose_certificate_names_nobody_is_recorded() {
    let audited = Audited::start().await;
    let nobody = ClientCertificate::builder().build().unwrap();
    let mut caller = audited.scene.caller_with(&nobody, Version::Http2).await;
    let answer = caller.call(&[], Sent::whole("{}")).await.unwrap();
    assert_denied(&answer, 403, "identity_extension_missing");
    audited.assert_recorded_of(&Value::Null, &answer, None, &["identity_extension_missing"]);
}
