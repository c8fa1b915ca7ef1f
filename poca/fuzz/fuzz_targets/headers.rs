//! No pair of headers makes the checks panic, and none is accepted that the key didn't sign.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use permission::Identity;
use poca::{Expected, Headers, SecretKey, verify};

fuzz_target!(|headers: (&str, &str)| {
    let expected = Expected {
        caller: &Identity::parse("agent").unwrap(),
        tool: "echo",
        payload_sha256: [0xaa; 32],
        keys: &[SecretKey::from_seed(&[7; 32]).public_key()],
        now: "2026-05-01T00:00:00Z".parse().unwrap(),
        max_ttl: Duration::from_secs(3_600),
    };
    let (manifest, signature) = headers;
    let headers = Headers { manifest: Some(manifest), signature: Some(signature) };
    assert!(verify(&headers, &expected).is_err());
});
