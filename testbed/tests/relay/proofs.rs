//! Proofs that are no good, each with its code in the answer and in the audit; and good ones at the
//! edge of that.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::Ed25519KeyPair;
use serde_json::{Value, json};
use testbed::gateway::AGENT;
use testbed::rows::Times;
use testbed::tunnel::Answer;

use crate::audited::Audited;
use crate::scene::{Headers, assert_denied, manifest};

const BODY: &[u8] = b"{}";
/// The agent's registered key, and one that is not.
const OURS: [u8; 32] = [7; 32];
const STRANGERS: [u8; 32] = [8; 32];

/// The claims of a good manifest, to be spoilt.
fn claims() -> Value {
    let good = manifest("echo", BODY);
    json!({
        "ver": "poca-1",
        "caller_id": AGENT,
        "tool": "echo",
        "intent": "a test",
        "scopes": [],
        "payload_sha256": hex::encode(good.payload_sha256),
        "nonce": good.nonce,
        "exp": in_seconds(300),
    })
}

fn in_seconds(seconds: i64) -> String {
    Times::from_now(0, seconds).not_after
}

/// A good manifest's text, but for this field.
fn with(field: &str, value: Value) -> String {
    let mut claims = claims();
    claims[field] = value;
    claims.to_string()
}

/// As [`with`], without the field.
fn without(field: &str) -> String {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(field).unwrap();
    claims.to_string()
}

/// A good manifest's text with this before its first field.
fn beginning(text: &str) -> String {
    claims().to_string().replacen('{', &format!("{{{text}"), 1)
}

/// Headers by another signer than the product's own.
fn signed(seed: &[u8; 32], manifest: &str) -> Headers {
    let key = Ed25519KeyPair::from_seed_unchecked(seed).unwrap();
    let manifest = URL_SAFE_NO_PAD.encode(manifest);
    let signature = URL_SAFE_NO_PAD.encode(key.sign(manifest.as_bytes()));
    Headers::of(&manifest, &signature)
}

#[track_caller]
fn assert_refused(audited: &Audited, answer: &Answer, code: &str) {
    assert_denied(answer, 403, code);
    audited.assert_recorded(answer, Some("echo"), &["forbidden_by_poca", code]);
}

#[tokio::test]
async fn each_fault_of_a_manifest_has_its_code() {
    let audited = Audited::start().await;
    let good = signed(&OURS, &claims().to_string());
    let answer = audited.call(Some(&good), BODY, &[]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut spoilt = vec![
        ("poca_manifest_json", "not json".to_owned()),
        ("poca_manifest_json", "{".to_owned()),
        ("poca_manifest_json", format!("[{}]", claims())),
        ("poca_manifest_json", format!("{}{}", claims(), claims())),
        ("poca_manifest_json", beginning("\"tool\":\"echo\",")),
        ("poca_manifest_json", beginning("\"t\\u006fol\":\"echo\",")),
        ("poca_manifest_json", with("more", json!(1))),
        ("poca_manifest_json", with("ver", json!("poca-2"))),
        ("poca_manifest_json", with("nonce", json!(1))),
        ("poca_manifest_json", with("intent", json!("a\nb"))),
        (
            "poca_caller_mismatch",
            with("caller_id", json!("agent-beta")),
        ),
        (
            "poca_caller_mismatch",
            with("caller_id", json!("Agent-Alpha")),
        ),
        ("poca_tool_mismatch", with("tool", json!("todos"))),
        ("poca_exp_parse", with("exp", json!("tomorrow"))),
        ("poca_exp_parse", with("exp", json!("1795353726"))),
        (
            "poca_payload_hash_mismatch",
            with("payload_sha256", json!("0".repeat(64))),
        ),
    ];
    for field in ["caller_id", "tool", "payload_sha256", "nonce", "exp"] {
        let code = "poca_manifest_missing_fields";
        spoilt.push((code, without(field)));
        spoilt.push((code, with(field, json!(""))));
        spoilt.push((code, with(field, Value::Null)));
    }
    for (code, manifest) in spoilt {
        let answer = audited
            .call(Some(&signed(&OURS, &manifest)), BODY, &[])
            .await;
        assert_refused(&audited, &answer, code);
    }
    assert_eq!(audited.scene.echo.seen().len(), 1);
}

#[tokio::test]
async fn each_fault_of_the_headers_has_its_code() {
    let audited = Audited::start().await;
    let whole = signed(&OURS, &claims().to_string());
    let parts = whole.with(&[]);
    let [(_, manifest), (_, signature)] = parts[..] else {
        panic!("{parts:?}");
    };
    for only in &parts {
        let answer = audited.call(None, BODY, &[*only]).await;
        assert_refused(&audited, &answer, "poca_missing_headers");
    }
    let padded = |text: &str| format!("{text}==");
    let strangers = signed(&STRANGERS, &claims().to_string());
    let other = signed(&OURS, &claims().to_string());
    let others = other.with(&[])[1].1;
    for (code, headers) in [
        ("poca_missing_headers", Headers::of("", signature)),
        ("poca_missing_headers", Headers::of(manifest, "")),
        ("poca_manifest_b64_decode", Headers::of("!", signature)),
        (
            "poca_manifest_b64_decode",
            Headers::of(&padded(manifest), signature),
        ),
        (
            "poca_manifest_b64_decode",
            Headers::of(&format!("{manifest},{manifest}"), signature),
        ),
        (
            "poca_manifest_b64_decode",
            Headers::of(&"A".repeat(8193), signature),
        ),
        ("poca_sig_b64_decode", Headers::of(manifest, "!")),
        (
            "poca_sig_b64_decode",
            Headers::of(manifest, &padded(signature)),
        ),
        ("poca_sig_invalid", strangers),
        ("poca_sig_invalid", Headers::of(manifest, others)),
    ] {
        let answer = audited.call(Some(&headers), BODY, &[]).await;
        assert_refused(&audited, &answer, code);
    }
    // None of them has used up the nonce.
    assert_eq!(audited.call(Some(&whole), BODY, &[]).await.status, 200);

    let scene = &audited.scene;
    let key = crate::scene::key().public_key();
    let agents = format!("agents:\n  agent-beta: {{ed25519_pubkey_b64: '{key}'}}\n");
    scene.files.write("agents.yaml", &agents);
    scene.reloaded(1).await;
    let answer = audited.call(Some(&other), BODY, &[]).await;
    assert_refused(&audited, &answer, "poca_unknown_caller_pubkey");
    assert_eq!(scene.echo.seen().len(), 1);
}

#[tokio::test]
async fn clocks_may_differ_by_a_minute_either_way() {
    let audited = Audited::start().await;
    // Not at the very second: it passes while the call is on its way.
    for (seconds, refused) in [
        (-40, None),
        (-61, Some("poca_expired")),
        (-86_400, Some("poca_expired")),
        (3600 + 40, None),
        (3600 + 90, Some("poca_exp_too_far")),
        (86_400, Some("poca_exp_too_far")),
    ] {
        let manifest = with("exp", json!(in_seconds(seconds)));
        let answer = audited
            .call(Some(&signed(&OURS, &manifest)), BODY, &[])
            .await;
        match refused {
            Some(code) => assert_refused(&audited, &answer, code),
            None => assert_eq!(answer.status, 200, "{seconds}: {answer:?}"),
        }
    }
    assert_eq!(audited.scene.echo.seen().len(), 2);
}
