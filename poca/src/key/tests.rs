use super::*;

const PEM: &str = include_str!("../../testdata/agent.pem");
const SPKI: &[u8] = include_bytes!("../../testdata/agent.spki.der");

fn standard(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[test]
fn all_forms_of_a_public_key_are_the_same_key() {
    let raw = &SPKI[12..];
    let key = PublicKey::from_bytes(raw).unwrap();
    assert_eq!(PublicKey::from_bytes(SPKI), Ok(key));
    assert_eq!(key.to_spki_der(), SPKI);
    assert_eq!(
        key.to_string(),
        "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    );
    for text in [
        key.to_string(),
        format!("{key}="),
        standard(raw),
        standard(raw).trim_end_matches('=').to_owned(),
        standard(SPKI),
        URL_SAFE_NO_PAD.encode(SPKI),
    ] {
        assert_eq!(text.parse(), Ok(key), "{text}");
    }
}

#[test]
fn what_is_no_ed25519_key_is_refused() {
    use PublicKeyError::*;
    let key = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    for (text, error) in [
        ("", NotEd25519),
        ("not base64!", NotBase64),
        (&format!(" {key}"), NotBase64),
        (&format!("{key}\n"), NotBase64),
        (&key[1..], NotBase64),
        (&key[4..], NotEd25519),
        (&format!("{key}{key}{key}"), NotEd25519),
        // An SPKI of X25519: another algorithm over the same kind of bytes.
        (
            "MCowBQYDK2VuAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
            NotEd25519,
        ),
    ] {
        assert_eq!(text.parse::<PublicKey>(), Err(error), "{text:?}");
    }
}

/// Under a point of small order a signature can be made that verifies for every message, and one
/// point must not have two names.
#[test]
fn points_that_vouch_for_nobody_are_refused() {
    let mut neutral = [0; 32];
    neutral[0] = 1;
    let order_8 = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a";
    // p + 3, which is y = 3 written a second time.
    let mut twice = [0xff; 32];
    twice[0] = 0xf0;
    twice[31] = 0x7f;
    for bad in [
        [0; 32].as_slice(),
        &neutral,
        &hex::decode(order_8).unwrap(),
        &twice,
        &[2; 32],
    ] {
        assert_eq!(
            PublicKey::from_bytes(bad),
            Err(PublicKeyError::Unusable),
            "{bad:x?}"
        );
    }
    let mut once = [0; 32];
    once[0] = 3;
    assert!(
        PublicKey::from_bytes(&once).is_ok(),
        "y = 3 is on the curve"
    );
}

#[test]
fn a_private_key_is_read_and_written_as_openssl_writes_it() {
    let key = SecretKey::from_pem(PEM).unwrap();
    assert_eq!(key.public_key().to_spki_der(), SPKI);
    assert_eq!(*key.to_pem().unwrap(), PEM);
    assert_eq!(
        format!("{key:?}"),
        "SecretKey(of 11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo)"
    );
}

#[test]
fn other_pems_are_no_private_key() {
    for bad in [
        "",
        "garbage",
        &PEM.replace("PRIVATE", "PUBLIC"),
        &PEM.replace("MC4C", "MC4D"),
        &PEM[..60],
    ] {
        assert_eq!(
            SecretKey::from_pem(bad).err(),
            Some(SecretKeyError),
            "{bad}"
        );
    }
}
