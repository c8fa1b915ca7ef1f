//! Whatever JSON an agent signs: what is accepted says what the agent meant, to any JSON reader.
#![no_main]

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use libfuzzer_sys::fuzz_target;
use permission::{Identity, Timestamp};
use poca::{CLOCK_SKEW, Expected, Headers, PublicKey, verify};
use serde_json::Value;

const DAY: Duration = Duration::from_secs(86_400);

fuzz_target!(|json: &[u8]| {
    let key = SigningKey::from_bytes(&[7; 32]);
    let manifest = URL_SAFE_NO_PAD.encode(json);
    let signature = URL_SAFE_NO_PAD.encode(key.sign(manifest.as_bytes()).to_bytes());
    let now: Timestamp = "2026-05-01T00:00:00Z".parse().unwrap();
    let expected = Expected {
        caller: &Identity::parse("agent").unwrap(),
        tool: "echo",
        payload_sha256: [0xaa; 32],
        keys: &[PublicKey::from_bytes(key.verifying_key().as_bytes()).unwrap()],
        now,
        max_ttl: DAY,
    };
    let headers = Headers { manifest: Some(&manifest), signature: Some(&signature) };
    let Ok(proof) = verify(&headers, &expected) else { return };
    let read: BTreeMap<String, Value> = serde_json::from_slice(json).unwrap();
    assert_eq!(read["caller_id"], "agent");
    assert_eq!(read["tool"], "echo");
    assert_eq!(read["payload_sha256"], "aa".repeat(32));
    assert_eq!(read["nonce"], proof.nonce());
    assert!(!proof.nonce().is_empty() && proof.nonce().len() <= 256);
    let exp: Timestamp = read["exp"].as_str().unwrap().parse().unwrap();
    let after = |time: Timestamp, span: Duration| time.saturating_add_micros(span.as_micros() as i64);
    assert!(proof.expires_at() > after(exp, CLOCK_SKEW) && proof.expires_at() > now);
    assert!(exp <= after(now, DAY + CLOCK_SKEW));
});
