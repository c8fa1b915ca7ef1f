//! Finding and making keys.

use std::thread;

use testbed::Swtpm;
use tpm::{Pins, SigningKey, TpmError, TpmKey, Unfit};

use crate::{location, make_key, sign_and_verify, tools};

const OURS: &str = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign";

#[test]
fn empty_handle_is_none_and_stays_empty() {
    let swtpm = Swtpm::start().unwrap();
    assert!(TpmKey::open(&location(&swtpm)).unwrap().is_none());
    assert_eq!(tools(&swtpm, "tpm2_getcap handles-persistent"), "");
}

#[test]
fn created_key_is_found_again_with_the_same_public_key() {
    let mut swtpm = Swtpm::start().unwrap();
    let location = location(&swtpm);
    let created = TpmKey::open_or_create(&location, &Pins::default()).unwrap();
    assert_eq!(
        tools(&swtpm, "tpm2_getcap handles-persistent"),
        "- 0x81010004\n"
    );
    let again = TpmKey::open_or_create(&location, &Pins::default()).unwrap();
    assert_eq!(again.public_key(), created.public_key());
    swtpm.stop().unwrap();
    swtpm.start_again().unwrap();
    let after_restart = TpmKey::open(&location).unwrap().unwrap();
    assert_eq!(after_restart.public_key(), created.public_key());
    sign_and_verify(&after_restart, b"message");
}

#[test]
fn keys_at_two_handles_differ() {
    let swtpm = Swtpm::start().unwrap();
    let mut other = location(&swtpm);
    other.handle = "0x81010005".parse().unwrap();
    let first = TpmKey::open_or_create(&location(&swtpm), &Pins::default()).unwrap();
    assert!(TpmKey::open(&other).unwrap().is_none());
    let second = TpmKey::open_or_create(&other, &Pins::default()).unwrap();
    assert_ne!(first.public_key(), second.public_key());
    assert_eq!(second.location(), &other);
}

#[test]
fn created_key_has_the_attributes_that_were_promised() {
    let swtpm = Swtpm::start().unwrap();
    TpmKey::open_or_create(&location(&swtpm), &Pins::default()).unwrap();
    let public = tools(&swtpm, "tpm2_readpublic -c 0x81010004");
    for line in [
        "value: fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign\n",
        "value: NIST p256\n",
        "value: ecdsa\n",
    ] {
        assert!(public.contains(line), "{public}");
    }
}

#[test]
fn key_that_somebody_else_made_serves_if_it_is_of_our_kind() {
    for kind in ["ecc256:ecdsa-sha256", "ecc256"] {
        let swtpm = Swtpm::start().unwrap();
        tools(&swtpm, &make_key(kind, OURS, ""));
        let key = TpmKey::open(&location(&swtpm)).unwrap().unwrap();
        sign_and_verify(&key, b"message");
    }
}

#[test]
fn handle_with_anything_else_is_taken_and_left_alone() {
    let exportable = "sensitivedataorigin|userwithauth|sign";
    let storage = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt";
    for (kind, attributes, more, expected) in [
        ("ecc256", storage, "", Unfit::NotForSigning),
        ("ecc256", exportable, "", Unfit::Exportable),
        (
            "ecc256:ecdsa-sha256:null",
            &format!("{OURS}|restricted"),
            "",
            Unfit::Restricted,
        ),
        ("ecc256:ecdsa-sha384", OURS, "", Unfit::OtherScheme),
        ("ecc384:ecdsa-sha256", OURS, "", Unfit::OtherCurve),
        ("rsa2048", OURS, "", Unfit::NotEcc),
        ("hmac", OURS, "", Unfit::NotEcc),
    ] {
        let swtpm = Swtpm::start().unwrap();
        tools(&swtpm, &make_key(kind, attributes, more));
        let before = tools(&swtpm, "tpm2_readpublic -c 0x81010004");
        for outcome in [
            TpmKey::open(&location(&swtpm)).map(|_| ()),
            TpmKey::open_or_create(&location(&swtpm), &Pins::default()).map(|_| ()),
        ] {
            let error = outcome.unwrap_err();
            let TpmError::HandleTaken {
                location: at,
                unfit,
            } = &error
            else {
                panic!("{error:?}")
            };
            assert_eq!(
                (at, *unfit),
                (&location(&swtpm), expected),
                "{kind} {attributes}"
            );
            let text = format!(
                "TPM handle 0x81010004 at {} is taken: {unfit}",
                swtpm.tcti()
            );
            assert_eq!(error.to_string(), text);
        }
        assert_eq!(tools(&swtpm, "tpm2_readpublic -c 0x81010004"), before);
        assert_eq!(tools(&swtpm, "tpm2_getcap handles-transient"), "");
    }
}

#[test]
fn platform_handle_refuses_creation_and_leaves_no_slot_in_use() {
    let swtpm = Swtpm::start().unwrap();
    let mut platform = location(&swtpm);
    platform.handle = "0x81800000".parse().unwrap();
    let error = TpmKey::open_or_create(&platform, &Pins::default()).unwrap_err();
    // The keys are in their slots by then, and storing fails.
    assert!(
        matches!(
            error,
            TpmError::Refused {
                step: "make a key",
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(tools(&swtpm, "tpm2_getcap handles-transient"), "");
}

#[test]
fn full_tpm_makes_no_further_key_until_one_is_removed() {
    let swtpm = Swtpm::start().unwrap();
    let at = |number: u32| {
        let mut location = location(&swtpm);
        location.handle = format!("{:#010x}", 0x8101_0010 + number).parse().unwrap();
        TpmKey::open_or_create(&location, &Pins::default())
    };
    let first_that_fails = (0..100).find_map(|number| Some((number, at(number).err()?)));
    let (number, error) = first_that_fails.unwrap();
    assert!(matches!(error, TpmError::Full { .. }), "{error:?}");
    assert!(number > 1);
    let used = "tpm2_getcap handles-transient; tpm2_getcap handles-loaded-session";
    assert_eq!(tools(&swtpm, used), "");
    tools(&swtpm, "tpm2_evictcontrol -Q -C o -c 0x81010010");
    sign_and_verify(&at(number).unwrap(), b"message");
}

/// How many talk with the TPM at the same time. swtpm lets two connections wait; the kernel drops
/// what comes beyond, and both sides then find out after seconds, or minutes.
const AT_ONCE: u32 = 2;

#[test]
fn keys_are_made_at_several_handles_at_once() {
    let swtpm = Swtpm::start().unwrap();
    thread::scope(|scope| {
        for number in 0..AT_ONCE {
            let mut location = location(&swtpm);
            location.handle = format!("{:#010x}", 0x8101_0010 + number).parse().unwrap();
            scope.spawn(move || {
                let key = TpmKey::open_or_create(&location, &Pins::default()).unwrap();
                sign_and_verify(&key, b"message");
            });
        }
    });
}

#[test]
fn one_handle_gets_one_key_however_many_make_it_at_once() {
    let swtpm = Swtpm::start().unwrap();
    for number in 0..5_u32 {
        let mut location = location(&swtpm);
        location.handle = format!("{:#010x}", 0x8101_0010 + number).parse().unwrap();
        let keys: Vec<_> = thread::scope(|scope| {
            let make = || {
                *TpmKey::open_or_create(&location, &Pins::default())
                    .unwrap()
                    .public_key()
            };
            let makers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(make)).collect();
            makers
                .into_iter()
                .map(|maker| maker.join().unwrap())
                .collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }
}

#[test]
fn full_transient_slots_say_how_to_free_them() {
    let swtpm = Swtpm::start().unwrap();
    tools(
        &swtpm,
        "for slot in 1 2 3; do tpm2_createprimary -Q -C o -G ecc -c slot; done",
    );
    let error = TpmKey::open_or_create(&location(&swtpm), &Pins::default()).unwrap_err();
    assert!(
        error.to_string().contains("`tpm2_flushcontext -t`"),
        "{error}"
    );
    tools(&swtpm, "tpm2_flushcontext -t");
    TpmKey::open_or_create(&location(&swtpm), &Pins::default()).unwrap();
}
