//! Keys that have a PIN, and owners that have one.

use std::time::Duration;

use testbed::Swtpm;
use tpm::{Pin, Pins, SignError, SigningKey, TpmError, TpmKey};

use crate::{location, make_key, sign_and_verify, tools};

const DA_PROTECTED: &str = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign";

fn pin(text: &str) -> Pin {
    text.parse().unwrap()
}

fn pins(user: &str) -> Pins {
    Pins {
        user: Some(pin(user)),
        owner: None,
    }
}

/// How many wrong PINs the TPM has counted.
fn counted(swtpm: &Swtpm) -> String {
    let line = tools(
        swtpm,
        "tpm2_getcap properties-variable | grep LOCKOUT_COUNTER",
    );
    line.trim_end().rsplit_once("0x").unwrap().1.to_owned()
}

#[test]
fn key_with_a_pin_signs_once_it_is_unlocked() {
    let swtpm = Swtpm::start().unwrap();
    let location = location(&swtpm);
    let made = TpmKey::open_or_create(&location, &pins("hunter2")).unwrap();
    assert!(made.wants_pin());
    // Who made it knows the PIN.
    sign_and_verify(&made, b"message");
    let public = tools(&swtpm, "tpm2_readpublic -c 0x81010004");
    assert!(
        public.contains(&format!("value: {DA_PROTECTED}\n")),
        "{public}"
    );

    let key = TpmKey::open(&location).unwrap().unwrap();
    for error in [
        key.sign(b"message").unwrap_err(),
        key.unlock(None).unwrap_err(),
    ] {
        assert!(matches!(error, SignError::PinMissing { .. }), "{error:?}");
    }
    key.unlock(Some(&pin("hunter2"))).unwrap();
    sign_and_verify(&key, b"message");
    assert_eq!(counted(&swtpm), "0");
    // The PIN is really what stands between.
    let sign = "tpm2_sign -Q -c 0x81010004 -g sha256 -o signature";
    tools(
        &swtpm,
        &format!("echo x >message; ! {sign} message; {sign} -p hunter2 message"),
    );
}

#[test]
fn unlocked_key_stays_so_through_a_restart_of_the_tpm() {
    let mut swtpm = Swtpm::start().unwrap();
    let key = TpmKey::open_or_create(&location(&swtpm), &pins("hunter2")).unwrap();
    sign_and_verify(&key, b"message");
    swtpm.stop().unwrap();
    assert!(matches!(
        key.sign(b"message"),
        Err(SignError::Unavailable(_))
    ));
    swtpm.start_again().unwrap();
    sign_and_verify(&key, b"message");
}

#[test]
fn wrong_pin_is_tried_once_however_often_it_is_asked_to_sign() {
    let swtpm = Swtpm::start().unwrap();
    let location = location(&swtpm);
    TpmKey::open_or_create(&location, &pins("hunter2")).unwrap();
    let key = TpmKey::open(&location).unwrap().unwrap();
    let error = key.unlock(Some(&pin("hunter3"))).unwrap_err();
    let text =
        format!("wrong PIN for the TPM key {location}; the TPM locks after 2 more wrong ones");
    assert_eq!(error.to_string(), text);
    for _ in 0..10 {
        assert_eq!(key.sign(b"message").unwrap_err().to_string(), text);
    }
    assert_eq!(counted(&swtpm), "1");
    key.unlock(Some(&pin("hunter2"))).unwrap();
    sign_and_verify(&key, b"message");
}

#[test]
fn locked_tpm_is_told_from_a_wrong_pin_and_takes_the_right_one_when_it_is_unlocked() {
    let swtpm = Swtpm::start().unwrap();
    let location = location(&swtpm);
    let other = Pins::default();
    let free = tpm::Location {
        handle: "0x81010005".parse().unwrap(),
        ..location.clone()
    };
    let free = TpmKey::open_or_create(&free, &other).unwrap();
    TpmKey::open_or_create(&location, &pins("hunter2")).unwrap();
    let key = TpmKey::open(&location).unwrap().unwrap();
    let mut left = Vec::new();
    let (error, recovers) = loop {
        match key.unlock(Some(&pin("guess"))).unwrap_err() {
            SignError::WrongPin {
                left: Some(number), ..
            } => left.push(number),
            SignError::LockedOut {
                recovers: Some(time),
                ..
            } => {
                break (key.unlock(Some(&pin("hunter2"))).unwrap_err(), time);
            }
            error => panic!("{error:?}"),
        }
    };
    assert_eq!(left, [2, 1, 0]);
    assert!(recovers > Duration::ZERO);
    let begin = format!("the TPM key {location} is locked after too many wrong PINs; it takes one");
    assert!(error.to_string().starts_with(&begin), "{error}");
    // Keys without a PIN don't suffer from it.
    assert!(!free.wants_pin());
    sign_and_verify(&free, b"message");
    tools(&swtpm, "tpm2_dictionarylockout -c");
    sign_and_verify(&key, b"message");
}

#[test]
fn key_of_another_program_has_its_password_or_the_empty_one() {
    for password in ["secret", ""] {
        let swtpm = Swtpm::start().unwrap();
        let script = make_key(
            "ecc256:ecdsa-sha256",
            DA_PROTECTED,
            &format!("-p '{password}'"),
        );
        tools(&swtpm, &script);
        let key = TpmKey::open(&location(&swtpm)).unwrap().unwrap();
        assert!(key.wants_pin());
        key.unlock(Some(&pin(password))).unwrap();
        sign_and_verify(&key, b"message");
    }
}

#[test]
fn key_without_a_pin_takes_any_and_none() {
    let swtpm = Swtpm::start().unwrap();
    let location = location(&swtpm);
    for pins in [Pins::default(), pins(""), pins("hunter2")] {
        let key = TpmKey::open_or_create(&location, &pins).unwrap();
        assert!(!key.wants_pin());
        key.unlock(None).unwrap();
        key.unlock(Some(&pin("hunter2"))).unwrap();
        sign_and_verify(&key, b"message");
    }
    assert_eq!(counted(&swtpm), "0");
}

#[test]
fn owner_with_a_pin_makes_keys_for_who_knows_it() {
    let swtpm = Swtpm::start().unwrap();
    let location = location(&swtpm);
    tools(&swtpm, "tpm2_changeauth -c owner secret");
    let with = |owner: Option<&str>| {
        let owner = owner.map(pin);
        TpmKey::open_or_create(&location, &Pins { user: None, owner })
    };
    for (given, text) in [
        (None, "its owner has a PIN, and none was given"),
        (Some("guess"), "that is not its owner's PIN"),
    ] {
        let error = with(given).unwrap_err();
        assert!(matches!(error, TpmError::OwnerPin { .. }), "{error:?}");
        assert_eq!(
            error.to_string(),
            format!("{text}, so the TPM makes and removes no key ({location})")
        );
        let used = "tpm2_getcap handles-transient; tpm2_getcap handles-persistent";
        assert_eq!(tools(&swtpm, used), "");
    }
    sign_and_verify(&with(Some("secret")).unwrap(), b"message");
    // To use it takes no more than the key's own PIN, here none.
    sign_and_verify(&with(None).unwrap(), b"message");
}
