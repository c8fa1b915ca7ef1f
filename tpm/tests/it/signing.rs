//! Signing while all is well.

use std::thread;

use p256::ecdsa::Signature;
use testbed::Swtpm;
use tpm::{Pins, TpmKey};

use crate::{location, sign_and_verify, tools};

/// Half of the signatures have a high S, one in 256 a short r, as many a short s: goes on until
/// each has come.
#[test]
fn every_form_of_signature_verifies() {
    let swtpm = Swtpm::start().unwrap();
    let key = TpmKey::open_or_create(&location(&swtpm), &Pins::default()).unwrap();
    let (mut high_s, mut low_s, mut short_r, mut short_s) = (0, 0, 0, 0);
    for number in 0..20_000_u32 {
        let signature = sign_and_verify(&key, &number.to_be_bytes());
        let signature = Signature::from_der(signature.as_bytes()).unwrap();
        let (r, s) = signature.split_bytes();
        let is_low = signature.normalize_s() == signature;
        low_s += u32::from(is_low);
        high_s += u32::from(!is_low);
        short_r += u32::from(r[0] == 0);
        short_s += u32::from(s[0] == 0);
        if number >= 300
            && [high_s, low_s, short_r, short_s]
                .iter()
                .all(|count| *count > 0)
        {
            return;
        }
    }
    panic!("high S {high_s}, low S {low_s}, short r {short_r}, short s {short_s}");
}

#[test]
fn message_of_any_length_is_signed() {
    let swtpm = Swtpm::start().unwrap();
    let key = TpmKey::open_or_create(&location(&swtpm), &Pins::default()).unwrap();
    for length in [0, 1, 31, 32, 33, 1024, 1025, 1 << 20] {
        sign_and_verify(&key, &vec![7; length]);
    }
}

#[test]
fn many_threads_sign_at_once() {
    let swtpm = Swtpm::start().unwrap();
    let key = TpmKey::open_or_create(&location(&swtpm), &Pins::default()).unwrap();
    thread::scope(|scope| {
        for thread in 0..32_u8 {
            let key = &key;
            scope.spawn(move || {
                for number in 0..10_u8 {
                    sign_and_verify(key, &[thread, number]);
                }
            });
        }
    });
}

#[test]
fn two_openers_of_one_key_sign_side_by_side() {
    let swtpm = Swtpm::start().unwrap();
    let first = TpmKey::open_or_create(&location(&swtpm), &Pins::default()).unwrap();
    let second = TpmKey::open(&location(&swtpm)).unwrap().unwrap();
    for number in 0..20_u8 {
        sign_and_verify(&first, &[number]);
        sign_and_verify(&second, &[number]);
    }
}

#[test]
fn opening_and_signing_leave_no_slot_and_no_session_in_use() {
    let swtpm = Swtpm::start().unwrap();
    for number in 0..20_u8 {
        let key = TpmKey::open_or_create(&location(&swtpm), &Pins::default()).unwrap();
        sign_and_verify(&key, &[number]);
    }
    let used = "tpm2_getcap handles-transient; tpm2_getcap handles-loaded-session";
    assert_eq!(tools(&swtpm, used), "");
}
