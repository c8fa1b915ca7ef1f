//! Calls where no proof is asked for: that opens no way around anything else.

use serde_json::json;
use testbed::ClientCertificate;
use testbed::caller::{Sent, Version};
use testbed::gateway::AGENT;
use testbed::tunnel::Answer;

use crate::audited::Audited;
use crate::scene::{Unlike, assert_denied, envelope, key, manifest, signed};

async fn start() -> Audited {
    Audited::start_unlike(Unlike {
        // The name that the existing gateway has for it.
        environment: vec![("POCA_REQUIRED", "false".to_owned())],
        ..Unlike::default()
    })
    .await
}

#[tokio::test]
async fn without_a_proof_a_call_needs_all_else() {
    let audited = start().await;
    let scene = &audited.scene;
    // A policy that is told whether there was a proof can still ask for one.
    let rules = |rules: &str| {
        let rego = format!("package mcp.authz\nimport rego.v1\n{rules}\n");
        scene.files.write("policy/authz.rego", &rego);
    };
    rules("allow if input.poca_verified == false");
    scene.reloaded(1).await;
    let todos = envelope("todos", &json!({"op": "create", "title": "x"}));
    for body in ["{}", &todos] {
        let answer = audited.call(None, body.as_bytes(), &[]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!((scene.echo.seen().len(), scene.todos.seen().len()), (1, 1));

    let refused = |answer: &Answer, status: u16, tool: &str, reason: &str| {
        assert_denied(answer, status, reason);
        audited.assert_recorded(answer, Some(tool), &[reason]);
    };
    for identity in [AGENT, "agent-beta"] {
        let stranger = ClientCertificate::for_identity(identity).unwrap();
        let mut caller = scene.caller_with(&stranger, Version::Http2).await;
        let answer = caller.call(&[], Sent::whole("{}")).await.unwrap();
        assert_denied(&answer, 403, "no_permission");
    }
    let unmet = envelope("todos", &json!({"op": "create"}));
    let answer = audited.call(None, unmet.as_bytes(), &[]).await;
    refused(&answer, 422, "todos", "schema_request_invalid");
    rules("allow if input.poca_verified == true");
    scene.reloaded(2).await;
    let answer = audited.call(None, b"{}", &[]).await;
    refused(&answer, 403, "echo", "policy");
    // One after another, or the service may look between the two.
    rules("allow := true");
    scene.reloaded(3).await;
    scene.files.allow(&[]);
    scene.reloaded(4).await;
    let answer = audited.call(None, b"{}", &[]).await;
    refused(&answer, 403, "echo", "egress_denied");
    assert_eq!((scene.echo.seen().len(), scene.todos.seen().len()), (1, 1));
}

#[tokio::test]
async fn a_proof_that_is_there_all_the_same_must_be_good() {
    let audited = start().await;
    let good = audited.scene.proof("echo", b"{}");
    let halves = good.with(&[]);
    let of_another_body = audited.scene.proof("echo", b"[]");
    let strangers = poca::SecretKey::from_seed(&[8; 32]);
    let strangers = signed(&strangers, &manifest("echo", b"{}"));
    for (proof, more, code) in [
        (None, &halves[..1], "poca_missing_headers"),
        (None, &halves[1..], "poca_missing_headers"),
        (
            None,
            &[("x-poca-manifest", ""), ("x-poca-signature", "")][..],
            "poca_missing_headers",
        ),
        (Some(&of_another_body), &[], "poca_payload_hash_mismatch"),
        (Some(&strangers), &[], "poca_sig_invalid"),
    ] {
        let answer = audited.call(proof, b"{}", more).await;
        assert_denied(&answer, 403, code);
        audited.assert_recorded(&answer, Some("echo"), &["forbidden_by_poca", code]);
    }
    assert_eq!(audited.call(Some(&good), b"{}", &[]).await.status, 200);
    let answer = audited.call(Some(&good), b"{}", &[]).await;
    assert_denied(&answer, 403, "poca_replay");
    let good = signed(&key(), &manifest("echo", b"{}"));
    assert_eq!(audited.call(Some(&good), b"{}", &[]).await.status, 200);
    assert_eq!(audited.scene.echo.seen().len(), 2);
}
