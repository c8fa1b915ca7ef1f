//! A TPM that goes away, comes back, or comes back as another one.

use std::path::Path;
use std::process::Command;

use p256::PublicKey;
use tempfile::TempDir;
use testbed::{Process, Swtpm};
use tpm::{Found, Pins, SignError, SigningKey, TpmError, TpmKey, Unfit};

use crate::relay::Relay;
use crate::{location, make_key, sign_and_verify, tools};

/// Another TPM at the place of `swtpm`, which must be stopped.
fn impostor(swtpm: &Swtpm, state: &Path) -> Process {
    let tcti = swtpm.tcti();
    let port: u16 = tcti.rsplit_once('=').unwrap().1.parse().unwrap();
    let mut command = Command::new("swtpm");
    command
        .args([
            "socket",
            "--tpm2",
            "--flags",
            "not-need-init,startup-clear",
            "--tpmstate",
        ])
        .arg(format!("dir={}", state.display()))
        .args([
            "--server",
            &format!("type=tcp,bindaddr=127.0.0.1,port={port}"),
        ])
        .args([
            "--ctrl",
            &format!("type=tcp,bindaddr=127.0.0.1,port={}", port + 1),
        ]);
    let mut process = Process::start("impostor", &command).unwrap();
    process
        .wait_for_port(([127, 0, 0, 1], port).into())
        .unwrap();
    process
}

fn swtpm_with_key() -> (Swtpm, TpmKey, PublicKey) {
    let swtpm = Swtpm::start().unwrap();
    let key = TpmKey::open_or_create(&location(&swtpm), &Pins::default()).unwrap();
    sign_and_verify(&key, b"before");
    let public_key = *key.public_key();
    (swtpm, key, public_key)
}

fn found(key: &TpmKey) -> Found {
    match key.sign(b"message").unwrap_err() {
        SignError::KeyChanged { location, found } => {
            assert_eq!(&location, key.location());
            found
        }
        error => panic!("{error:?}"),
    }
}

fn is_unavailable(key: &TpmKey) -> bool {
    matches!(
        key.sign(b"message"),
        Err(SignError::Unavailable(TpmError::Unreachable { .. }))
    )
}

#[test]
fn stopped_tpm_is_unavailable_and_signs_with_the_same_key_once_it_is_back() {
    let (mut swtpm, key, public_key) = swtpm_with_key();
    for _ in 0..2 {
        swtpm.stop().unwrap();
        for _ in 0..3 {
            assert!(is_unavailable(&key));
        }
        swtpm.start_again().unwrap();
        sign_and_verify(&key, b"after");
        assert_eq!(key.public_key(), &public_key);
    }
}

#[test]
fn connection_that_breaks_once_costs_no_signature() {
    let swtpm = Swtpm::start().unwrap();
    let relay = Relay::start(&swtpm);
    let mut location = location(&swtpm);
    location.tcti = relay.tcti().parse().unwrap();
    let key = TpmKey::open_or_create(&location, &Pins::default()).unwrap();
    relay.cut_next();
    sign_and_verify(&key, b"message");
    assert!(relay.has_cut());
}

#[test]
fn restart_between_two_signatures_goes_unnoticed() {
    let (mut swtpm, key, _) = swtpm_with_key();
    swtpm.stop().unwrap();
    swtpm.start_again().unwrap();
    sign_and_verify(&key, b"after");
}

#[test]
fn unclean_restarts_do_not_lock_the_key() {
    let (mut swtpm, key, _) = swtpm_with_key();
    for _ in 0..5 {
        swtpm.process().kill();
        swtpm.start_again().unwrap();
        sign_and_verify(&key, b"after");
    }
}

#[test]
fn opening_without_a_tpm_says_which_one_it_cannot_reach() {
    let mut swtpm = Swtpm::start().unwrap();
    let location = location(&swtpm);
    swtpm.stop().unwrap();
    for outcome in [
        TpmKey::open(&location).map(|_| ()),
        TpmKey::open_or_create(&location, &Pins::default()).map(|_| ()),
    ] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, TpmError::Unreachable { .. }), "{error:?}");
        let start = format!("cannot reach the TPM {}: ", swtpm.tcti());
        assert!(error.to_string().starts_with(&start), "{error}");
    }
}

#[test]
fn tpm_that_comes_back_empty_does_not_sign_until_the_right_one_is_back() {
    let (mut swtpm, key, _) = swtpm_with_key();
    let state = TempDir::new().unwrap();
    swtpm.stop().unwrap();
    let mut empty = impostor(&swtpm, state.path());
    assert_eq!(found(&key), Found::Nothing);
    assert_eq!(found(&key), Found::Nothing);
    empty.terminate().unwrap();
    assert!(is_unavailable(&key));
    swtpm.start_again().unwrap();
    sign_and_verify(&key, b"after");
}

#[test]
fn tpm_that_comes_back_with_another_key_does_not_sign() {
    let (mut swtpm, key, public_key) = swtpm_with_key();
    let state = TempDir::new().unwrap();
    swtpm.stop().unwrap();
    assert!(is_unavailable(&key));
    let mut other = impostor(&swtpm, state.path());
    let other_key = TpmKey::open_or_create(&location(&swtpm), &Pins::default()).unwrap();
    assert_ne!(other_key.public_key(), &public_key);
    // Seen while connecting again.
    assert_eq!(found(&key), Found::AnotherKey);
    other.terminate().unwrap();
    swtpm.start_again().unwrap();
    sign_and_verify(&key, b"after");
    assert_eq!(key.public_key(), &public_key);
}

/// The connection isn't seen to break, and the TPM signs readily.
#[test]
fn key_replaced_between_two_signatures_is_noticed() {
    let (mut swtpm, key, _) = swtpm_with_key();
    let state = TempDir::new().unwrap();
    swtpm.stop().unwrap();
    let _other = impostor(&swtpm, state.path());
    TpmKey::open_or_create(&location(&swtpm), &Pins::default()).unwrap();
    assert_eq!(found(&key), Found::AnotherKey);
    assert_eq!(found(&key), Found::AnotherKey);
}

#[test]
fn key_replaced_by_something_else_is_noticed() {
    let (swtpm, key, _) = swtpm_with_key();
    tools(&swtpm, "tpm2_evictcontrol -Q -C o -c 0x81010004");
    assert_eq!(found(&key), Found::Nothing);
    let storage = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt";
    tools(&swtpm, &make_key("ecc256", storage, ""));
    assert_eq!(found(&key), Found::Unfit(Unfit::NotForSigning));
    assert_eq!(
        key.sign(b"message").unwrap_err().to_string(),
        format!(
            "the TPM key 0x81010004 at {} isn't the key that was opened: \
             its key isn't a signing key",
            swtpm.tcti()
        )
    );
}
