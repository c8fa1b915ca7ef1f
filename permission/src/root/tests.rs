use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{DerSignature, SigningKey};
use proptest::prelude::*;

use super::*;
use crate::time::Timestamp;

/// Made by openssl alone (testdata/make), so nothing of ours vouches for it.
const ROOT: &[u8] = include_bytes!("../../testdata/root.spki.der");
const KEY_TEXT: &[u8] = include_bytes!("../../testdata/signing-key-v1.txt");
const KEY_SIGNATURE: &[u8] = include_bytes!("../../testdata/signing-key-v1.sig");
const SCOPE_TEXT: &[u8] = include_bytes!("../../testdata/scope-v1.txt");
const SCOPE_SIGNATURE: &[u8] = include_bytes!("../../testdata/scope-v1.sig");
const PRINCIPAL: &[u8] = include_bytes!("../../testdata/principal.spki.der");

fn root() -> RootKey {
    RootKey::from_spki(&Spki::from_der(ROOT).unwrap()).unwrap()
}

fn root_of(key: &SigningKey) -> RootKey {
    RootKey(PrincipalKey::from_p256(&key.verifying_key().into()).unwrap())
}

fn roots_in(registry_id: &str) -> TrustRoots {
    TrustRoots::new(Id::parse(registry_id).unwrap(), vec![root()]).unwrap()
}

fn golden() -> [(Statement, &'static [u8], &'static [u8]); 2] {
    [(KEY_TEXT, KEY_SIGNATURE), (SCOPE_TEXT, SCOPE_SIGNATURE)]
        .map(|(text, signature)| (Statement::from_canonical(text).unwrap(), text, signature))
}

#[test]
fn golden_texts_round_trip_and_their_signatures_vouch_twice() {
    let roots = roots_in("registry-1");
    for (statement, text, signature) in golden() {
        assert_eq!(statement.canonical_bytes(), text);
        assert_eq!(statement.key_id.as_str(), "org-alice");
        assert_eq!(statement.key.spki().as_der(), PRINCIPAL);
        // The second time from memory.
        assert!(roots.vouch_for(&statement, signature));
        assert!(roots.vouch_for(&statement, signature));
        assert!(root().signed(&statement, signature));
    }
    let both = [KEY_TEXT, SCOPE_TEXT].concat();
    let read = Statement::all_from_canonical(&both).unwrap();
    assert_eq!(read, golden().map(|(statement, ..)| statement));
    assert_eq!(Statement::all_from_canonical(b""), Ok(Vec::new()));
}

#[test]
fn any_changed_field_and_any_other_signature_is_refused() {
    let roots = roots_in("registry-1");
    let other_key = PrincipalKey::from_stored(ECDSA_P256_SHA256, ROOT).unwrap();
    let [(key, _, key_signature), (scope, _, scope_signature)] = golden();
    for (good, signature, others) in [
        (&key, key_signature, scope_signature),
        (&scope, scope_signature, key_signature),
    ] {
        // Also what is remembered vouches for nothing else.
        assert!(roots.vouch_for(good, signature));
        let changed = |change: &dyn Fn(&mut Statement)| {
            let mut statement = good.clone();
            change(&mut statement);
            assert_ne!(&statement, good);
            statement
        };
        let window = good.window;
        let (from, to) = (window.not_before(), window.not_after());
        for statement in [
            changed(&|s| s.registry_id = Id::parse("registry-2").unwrap()),
            changed(&|s| s.key_id = Id::parse("org-bob").unwrap()),
            changed(&|s| s.key = other_key.clone()),
            changed(&|s| s.claim = Claim::Delegates("elsewhere".parse().unwrap())),
            changed(&|s| s.window = Window::new(from, to.saturating_add_micros(1)).unwrap()),
            changed(&|s| s.window = Window::new(from.saturating_add_micros(-1), to).unwrap()),
        ] {
            assert!(!roots.vouch_for(&statement, signature), "{statement:?}");
        }
        for bad in [others, &[], &signature[1..], &[signature, b"\0"].concat()] {
            assert!(!roots.vouch_for(good, bad));
        }
        assert!(roots.vouch_for(good, signature));
    }
    let as_scope = Statement {
        claim: scope.claim.clone(),
        ..key
    };
    assert!(!roots.vouch_for(&as_scope, key_signature));
}

#[test]
fn a_good_signature_is_worth_nothing_in_another_registry_or_to_other_roots() {
    let stranger = root_of(&SigningKey::from_slice(&[8; 32]).unwrap());
    let id = Id::parse("registry-1").unwrap();
    let strangers = TrustRoots::new(id.clone(), vec![stranger.clone()]).unwrap();
    let either = TrustRoots::new(id, vec![stranger, root()]).unwrap();
    for (statement, _, signature) in golden() {
        assert!(!roots_in("registry-2").vouch_for(&statement, signature));
        assert!(!strangers.vouch_for(&statement, signature));
        assert!(either.vouch_for(&statement, signature));
    }
}

#[test]
fn roots_are_one_to_eight_different_keys() {
    let id = || Id::parse("registry-1").unwrap();
    let key = |seed| root_of(&SigningKey::from_slice(&[seed; 32]).unwrap());
    let new = |seeds: &[u8]| TrustRoots::new(id(), seeds.iter().map(|seed| key(*seed)).collect());
    assert_eq!(new(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap().keys().len(), 8);
    for (seeds, expected) in [
        (&[][..], TrustRootsError::None),
        (&[1, 2, 3, 4, 5, 6, 7, 8, 9], TrustRootsError::TooMany),
        (&[1, 2, 1], TrustRootsError::Twice),
    ] {
        assert_eq!(new(seeds).unwrap_err(), expected);
    }
}

#[test]
fn what_is_remembered_is_bounded() {
    let roots = roots_in("registry-1");
    for number in 0..MAX_REMEMBERED {
        let mut name = [0; 32];
        name[..8].copy_from_slice(&number.to_le_bytes());
        roots.0.good.lock().unwrap().insert(name);
    }
    let [(key, _, signature), _] = golden();
    assert!(roots.vouch_for(&key, signature));
    assert_eq!(roots.0.good.lock().unwrap().len(), 1);
}

#[test]
fn a_text_that_is_not_canonical_is_refused_with_its_line() {
    for (text, version, cases) in [
        (
            KEY_TEXT,
            KEY_V1,
            &[
                ("registry_id=", "registry=", 2),
                ("=registry-1", "=registry\u{85}1", 2),
                ("key_id=org-alice", "key_id=", 3),
                ("algorithm=ecdsa_p256_sha256", "algorithm=ed25519", 4),
                ("algorithm=ecdsa_p256_sha256\n", "", 4),
                ("=30593013", "=3059301G", 5),
                ("=30593013", "=", 5),
                ("01-01T00:00:00.000000Z", "01-01T00:00:00Z", 6),
                ("not_after=2027", "not_after=2025", 7),
                ("not_after", "not_before", 7),
            ][..],
        ),
        (
            SCOPE_TEXT,
            SCOPE_V1,
            &[
                ("signing_key_id", "key_id", 3),
                ("signing_key_spki_der", "public_key_spki_der", 4),
                ("api.example.com:443", "api.example.com", 5),
                ("api.example", "API.example", 5),
                ("destination=api.example.com:443\n", "", 5),
            ],
        ),
    ] {
        let text = std::str::from_utf8(text).unwrap();
        for (from, to, line) in cases {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from:?} is not in the text");
            let expected = CanonicalError {
                version,
                line: *line,
            };
            let read = Statement::from_canonical(changed.as_bytes());
            assert_eq!(read, Err(expected), "{from:?} -> {to:?}");
        }
        for (changed, line) in [
            (text.replacen("-v1\n", "-v2\n", 1), 1),
            (text.replacen("-v1\n", "-v1\r\n", 1), 1),
            (String::new(), 1),
            (text.trim_end().to_owned(), 7),
            (format!("{text}\n"), 8),
            (format!("{text}{text}"), 8),
        ] {
            let read = Statement::from_canonical(changed.as_bytes());
            assert_eq!(read.unwrap_err().line, line, "{changed:?}");
        }
    }
    let cut = [KEY_TEXT, &SCOPE_TEXT[..40]].concat();
    assert_eq!(Statement::all_from_canonical(&cut).unwrap_err().line, 9);
}

#[test]
fn root_keys_are_read_as_people_have_them() {
    use p256::pkcs8::EncodePublicKey as _;
    let key = SigningKey::from_slice(&[5; 32]).unwrap();
    let public = p256::PublicKey::from(key.verifying_key());
    let pem = public
        .to_public_key_pem(p256::pkcs8::LineEnding::LF)
        .unwrap();
    let der = public.to_public_key_der().unwrap();
    let hex = hex::encode(der.as_bytes());
    let broken = format!("{}\n{}\n", &hex[..64].to_uppercase(), &hex[64..]);
    for text in [
        pem.as_bytes(),
        der.as_bytes(),
        hex.as_bytes(),
        broken.as_bytes(),
    ] {
        assert_eq!(RootKey::parse(text).unwrap(), root_of(&key));
    }
    assert_eq!(root_of(&key).fingerprint().len(), 64);
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    for bad in [
        String::new(),
        "root.pem".to_owned(),
        hex[2..].to_owned(),
        format!("{pem}{pem}"),
        format!("{pem}x"),
        pem.replace("PUBLIC KEY", "PRIVATE KEY"),
        p384.public_key_pem(),
    ] {
        assert_eq!(
            RootKey::parse(bad.as_bytes()),
            Err(KeyError::NotP256),
            "{bad}"
        );
    }
    assert_eq!(RootKey::parse(&der.as_bytes()[1..]), Err(KeyError::NotP256));
}

fn statements() -> impl Strategy<Value = Statement> {
    let text = "[a-c=\\-: ]{1,4}";
    let seeds = prop::sample::select(vec![1u8, 2]);
    let destination = prop::option::of("[a-c]{1,2}(:[1-9])?");
    (text, text, seeds, destination, 0i64..4, 1i64..4).prop_map(
        |(registry, key_id, seed, destination, start, length)| Statement {
            registry_id: Id::parse(&registry).unwrap(),
            key_id: Id::parse(&key_id).unwrap(),
            key: root_of(&SigningKey::from_slice(&[seed; 32]).unwrap()).0,
            claim: destination.map_or(Claim::Signs, |text| Claim::Delegates(text.parse().unwrap())),
            window: Window::new(
                Timestamp::from_unix_micros(start).unwrap(),
                Timestamp::from_unix_micros(start + length).unwrap(),
            )
            .unwrap(),
        },
    )
}

proptest! {
    #[test]
    fn canonical_bytes_are_injective(a in statements(), b in statements()) {
        prop_assert_eq!(a == b, a.canonical_bytes() == b.canonical_bytes());
        prop_assert_eq!(&Statement::from_canonical(&a.canonical_bytes()).unwrap(), &a);
        let both = [a.canonical_bytes(), b.canonical_bytes()].concat();
        prop_assert_eq!(Statement::all_from_canonical(&both).unwrap(), vec![a, b]);
    }

    #[test]
    fn whatever_is_read_is_written_back(bytes in prop::collection::vec(any::<u8>(), 0..64), at: prop::sample::Index) {
        let mut text = SCOPE_TEXT.to_vec();
        let at = at.index(text.len());
        text.splice(at..(at + bytes.len()).min(SCOPE_TEXT.len()), bytes);
        if let Ok(statement) = Statement::from_canonical(&text) {
            prop_assert_eq!(statement.canonical_bytes(), text);
        }
    }

    /// A signature vouches for exactly the statement that it was made over.
    #[test]
    fn a_signature_vouches_for_its_own_statement_alone(a in statements(), b in statements()) {
        let key = SigningKey::from_slice(&[3; 32]).unwrap();
        let signature: DerSignature = key.sign(&a.canonical_bytes());
        let roots = TrustRoots::new(b.registry_id.clone(), vec![root_of(&key)]).unwrap();
        prop_assert_eq!(roots.vouch_for(&b, signature.as_bytes()), a == b);
    }
}
