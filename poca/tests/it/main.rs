//! Another implementation signs and ours verifies, and the other way round: OpenSSL, by its
//! command line, which knows nothing of this crate.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use permission::Identity;
use poca::{Expected, Headers, Manifest, PublicKey, Reason, SecretKey, sign, verify};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

const BODY: &[u8] = br#"{"message":"hello gateway"}"#;

fn openssl(folder: &Path, arguments: &str) -> (bool, Vec<u8>) {
    let done = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .expect("openssl is installed");
    (done.status.success(), done.stdout)
}

fn folder_with_key() -> TempDir {
    let folder = TempDir::new().unwrap();
    let (made, _) = openssl(folder.path(), "genpkey -algorithm ed25519 -out agent.key");
    assert!(made, "openssl genpkey failed");
    folder
}

fn public_key(folder: &Path) -> PublicKey {
    let (_, spki) = openssl(folder, "pkey -in agent.key -pubout -outform DER");
    PublicKey::from_bytes(&spki).unwrap()
}

fn check(manifest: &str, signature: &str, key: PublicKey) -> Result<String, Reason> {
    let expected = Expected {
        caller: &Identity::parse("agent").unwrap(),
        tool: "echo",
        payload_sha256: Sha256::digest(BODY).into(),
        keys: &[key],
        now: "2026-05-01T00:00:00Z".parse().unwrap(),
        max_ttl: Duration::from_hours(1),
    };
    let headers = Headers {
        manifest: Some(manifest),
        signature: Some(signature),
    };
    verify(&headers, &expected).map(|proof| proof.nonce().to_owned())
}

#[test]
fn what_openssl_signs_is_accepted() {
    let folder = folder_with_key();
    let folder = folder.path();
    // What the existing signer writes, made without ours.
    let manifest = URL_SAFE_NO_PAD.encode(format!(
        r#"{{"caller_id":"agent","exp":"2026-05-01T00:05:00Z","intent":"echo_payload","nonce":"a172de5a3d8d0800","payload_sha256":"{}","scopes":["read"],"tool":"echo","ver":"poca-1"}}"#,
        hex::encode(Sha256::digest(BODY)),
    ));
    std::fs::write(folder.join("manifest"), &manifest).unwrap();
    let (signed, signature) = openssl(folder, "pkeyutl -sign -rawin -inkey agent.key -in manifest");
    assert!(signed, "openssl pkeyutl failed");
    let signature = URL_SAFE_NO_PAD.encode(signature);
    let key = public_key(folder);
    assert_eq!(
        check(&manifest, &signature, key),
        Ok("a172de5a3d8d0800".to_owned())
    );
    let another = SecretKey::from_seed(&[7; 32]).public_key();
    assert_eq!(
        check(&manifest, &signature, another),
        Err(Reason::SignatureInvalid)
    );
}

#[test]
fn what_we_sign_openssl_verifies() {
    let folder = folder_with_key();
    let folder = folder.path();
    let pem = std::fs::read_to_string(folder.join("agent.key")).unwrap();
    let key = SecretKey::from_pem(&pem).unwrap();
    assert_eq!(key.public_key(), public_key(folder));
    let made = sign(
        &key,
        &Manifest {
            caller: Identity::parse("agent").unwrap(),
            tool: "echo".to_owned(),
            intent: "echo_payload".to_owned(),
            scopes: vec!["read".to_owned()],
            payload_sha256: Sha256::digest(BODY).into(),
            nonce: "n-1".to_owned(),
            expires: "2026-05-01T00:05:00Z".parse().unwrap(),
        },
    )
    .unwrap();
    let verify = "pkeyutl -verify -rawin -inkey agent.key -in manifest -sigfile signature";
    std::fs::write(folder.join("manifest"), &made.manifest).unwrap();
    let signature = URL_SAFE_NO_PAD.decode(&made.signature).unwrap();
    std::fs::write(folder.join("signature"), signature).unwrap();
    assert!(openssl(folder, verify).0, "openssl refuses the signature");
    std::fs::write(folder.join("manifest"), format!("{}A", made.manifest)).unwrap();
    assert!(!openssl(folder, verify).0, "openssl accepts another text");
}

#[test]
fn openssl_reads_the_private_keys_that_we_write() {
    let folder = TempDir::new().unwrap();
    let key = SecretKey::from_seed(&[7; 32]);
    let pem = key.to_pem().unwrap();
    std::fs::write(folder.path().join("agent.key"), pem.as_bytes()).unwrap();
    assert_eq!(public_key(folder.path()), key.public_key());
}

#[test]
fn keys_of_another_kind_are_refused() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    for kind in [
        "EC -pkeyopt ec_paramgen_curve:P-256",
        "X25519",
        "ed25519 -aes128 -pass pass:secret",
    ] {
        let (made, _) = openssl(folder, &format!("genpkey -algorithm {kind} -out key"));
        assert!(made, "openssl genpkey failed: {kind}");
        let pem = std::fs::read_to_string(folder.join("key")).unwrap();
        assert!(SecretKey::from_pem(&pem).is_err(), "{kind}: {pem}");
    }
}
