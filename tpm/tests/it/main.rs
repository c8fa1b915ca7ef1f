//! The keys as a caller has them, with a real swtpm and real files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that can't go on should say so at once"
)]

mod opening;
mod outages;
mod pins;
mod relay;
mod signing;
mod software_key;

use std::process::Command;

use p256::ecdsa::DerSignature;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use testbed::Swtpm;
use tpm::{Handle, Location, SigningKey};

fn location(swtpm: &Swtpm) -> Location {
    Location {
        tcti: swtpm.tcti().parse().unwrap(),
        handle: Handle::DEFAULT,
    }
}

/// Signs, and has ring verify it: another implementation than any of ours that signs.
fn sign_and_verify(key: &dyn SigningKey, message: &[u8]) -> DerSignature {
    let signature = key.sign(message).unwrap();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().to_sec1_bytes())
        .verify(message, signature.as_bytes())
        .unwrap();
    signature
}

/// Runs lines of tpm2-tools as another user of the same TPM, and returns what they print.
fn tools(swtpm: &Swtpm, script: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args(["-euc", script])
        .current_dir(folder.path())
        .env("TPM2TOOLS_TCTI", swtpm.tcti())
        .env("TSS2_LOG", "all+none")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A script that makes a key with tpm2-tools and puts it at the usual handle.
fn make_key(kind: &str, attributes: &str, more: &str) -> String {
    format!(
        "tpm2_createprimary -Q -C o -G ecc -c parent
         tpm2_create -Q -C parent -G {kind} -a '{attributes}' {more} -u public -r private
         tpm2_flushcontext -t
         tpm2_load -Q -C parent -u public -r private -c key
         tpm2_evictcontrol -Q -C o -c key {handle}
         tpm2_flushcontext -t",
        handle = Handle::DEFAULT
    )
}
