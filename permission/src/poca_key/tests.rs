use super::*;
use crate::key::{ECDSA_P256_SHA256, PrincipalKey};
use crate::root::{Claim, RootKey, Statement};
use crate::spki::Spki;

/// Made by openssl alone (testdata/make), so nothing of ours vouches for it.
const TEXT: &[u8] = include_bytes!("../../testdata/poca-key-v1.txt");
const SIGNATURE: &[u8] = include_bytes!("../../testdata/poca-key-v1.sig");
const KEY: &[u8] = include_bytes!("../../testdata/principal.spki.der");
const ROOT: &[u8] = include_bytes!("../../testdata/root.spki.der");
const KEY_TEXT: &[u8] = include_bytes!("../../testdata/signing-key-v1.txt");
const KEY_SIGNATURE: &[u8] = include_bytes!("../../testdata/signing-key-v1.sig");
const SCOPE_TEXT: &[u8] = include_bytes!("../../testdata/scope-v1.txt");
const SCOPE_SIGNATURE: &[u8] = include_bytes!("../../testdata/scope-v1.sig");

fn golden() -> PocaKey {
    PocaKey::from_canonical(TEXT).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn during(from: &str, to: &str) -> Window {
    Window::new(at(from), at(to)).unwrap()
}

/// What is changed, and the reason that it gives.
type Change<'a> = (&'a dyn Fn(&mut Case), Reason);

/// Everything that a key's word rests on, as it should be.
#[derive(Clone)]
struct Case {
    key: PocaKey,
    revoked: bool,
    signature: Vec<u8>,
    signer: Option<Signer>,
    scopes: Vec<Scope>,
    roots: Option<TrustRoots>,
    identity: &'static str,
    destination: &'static str,
    now: &'static str,
}

impl Case {
    fn good() -> Self {
        let [key, scope] =
            [KEY_TEXT, SCOPE_TEXT].map(|text| Statement::from_canonical(text).unwrap());
        let Claim::Delegates(destination) = scope.claim else {
            panic!("not a scope");
        };
        let root = RootKey::from_spki(&Spki::from_der(ROOT).unwrap()).unwrap();
        Self {
            key: golden(),
            revoked: false,
            signature: SIGNATURE.to_vec(),
            signer: Some(Signer {
                key: PrincipalKey::from_stored(ECDSA_P256_SHA256, KEY).unwrap(),
                window: key.window,
                revoked: false,
                root_signature: Some(KEY_SIGNATURE.to_vec()),
            }),
            scopes: vec![Scope {
                destination,
                window: scope.window,
                revoked: false,
                root_signature: Some(SCOPE_SIGNATURE.to_vec()),
            }],
            roots: Some(TrustRoots::new(key.registry_id, vec![root]).unwrap()),
            identity: "agent-alpha",
            destination: "api.example.com:443",
            now: "2026-05-15T00:00:00Z",
        }
    }

    fn judged(self) -> Result<(), Reason> {
        let destination: Destination = self.destination.parse().unwrap();
        let candidate = PocaCandidate::new(
            self.key,
            self.revoked,
            &self.signature,
            self.signer.as_ref(),
            &self.scopes,
            self.roots.as_ref(),
        );
        let identity = Identity::parse(self.identity).unwrap();
        let judged = candidate.judge(&identity, &destination, at(self.now));
        let reach = candidate.reach(&identity, at(self.now));
        let reaches = reach.is_ok_and(|reach| reach.contains(&destination));
        assert_eq!(reaches, judged.is_ok());
        judged
    }
}

#[test]
fn golden_text_round_trips_and_its_signature_verifies() {
    let key = golden();
    assert_eq!(key.poca_key_id.as_str(), "poca-1");
    assert_eq!(key.subject_identity.as_str(), "agent-alpha");
    assert_eq!(key.canonical_bytes(), TEXT);
    let principal = PrincipalKey::from_stored(ECDSA_P256_SHA256, KEY).unwrap();
    let verified = Verified::of_poca_key(key.clone(), SIGNATURE, &principal).unwrap();
    assert_eq!(verified.get(), &key);
    // With roots and without.
    assert_eq!(Case::good().judged(), Ok(()));
    let mut plain = Case::good();
    plain.roots = None;
    assert_eq!(plain.judged(), Ok(()));
}

#[test]
fn whatever_is_not_as_it_was_signed_counts_for_nothing() {
    use Reason::*;
    let changes: [Change<'_>; 23] = [
        (
            &|c| c.key.poca_key_id = Id::parse("poca-2").unwrap(),
            SignatureInvalid,
        ),
        (
            &|c| c.key.signing_key_id = Id::parse("org-bob").unwrap(),
            SigningKeyUntrusted,
        ),
        (
            &|c| {
                c.key.signing_key_id = Id::parse("org-bob").unwrap();
                c.roots = None;
            },
            SignatureInvalid,
        ),
        (
            &|c| {
                c.key.subject_identity = Identity::parse("agent-beta").unwrap();
                c.identity = "agent-beta";
            },
            SignatureInvalid,
        ),
        (&|c| c.identity = "agent-beta", NoPermission),
        (&|c| c.key.ed25519_public_key[0] ^= 1, SignatureInvalid),
        (
            &|c| c.key.window = during("2026-05-01T00:00:00Z", "2026-06-01T00:00:00.000001Z"),
            SignatureInvalid,
        ),
        (
            &|c| c.key.window = during("2026-04-30T23:59:59.999999Z", "2026-06-01T00:00:00Z"),
            SignatureInvalid,
        ),
        (&|c| c.signature[10] ^= 1, SignatureInvalid),
        (&|c| c.signature.clear(), SignatureInvalid),
        (&|c| c.revoked = true, PermissionRevoked),
        (
            &|c| c.now = "2026-04-30T23:59:59.999999Z",
            PermissionNotYetValid,
        ),
        (&|c| c.now = "2026-06-01T00:00:00Z", PermissionExpired),
        (&|c| c.signer = None, SigningKeyUnknown),
        (
            &|c| c.signer.as_mut().unwrap().revoked = true,
            SigningKeyInactive,
        ),
        (
            &|c| {
                c.roots = None;
                c.signer.as_mut().unwrap().window =
                    during("2026-01-01T00:00:00Z", "2026-05-15T00:00:00Z");
            },
            SigningKeyInactive,
        ),
        (
            &|c| c.signer.as_mut().unwrap().root_signature = None,
            SigningKeyUntrusted,
        ),
        (&|c| c.scopes.clear(), ScopeMissing),
        (&|c| c.scopes[0].revoked = true, ScopeMissing),
        (&|c| c.destination = "api.example.com:444", ScopeMissing),
        (
            &|c| {
                c.roots = None;
                c.scopes[0].window = during("2026-01-01T00:00:00Z", "2026-05-15T00:00:00Z");
            },
            ScopeMissing,
        ),
        (&|c| c.scopes[0].root_signature = None, ScopeUntrusted),
        (
            &|c| c.scopes[0].window = during("2026-01-01T00:00:00Z", "2028-01-01T00:00:00Z"),
            ScopeUntrusted,
        ),
    ];
    for (number, (change, expected)) in changes.into_iter().enumerate() {
        let mut case = Case::good();
        change(&mut case);
        assert_eq!(case.judged(), Err(expected), "change {number}");
    }
}

#[test]
fn a_key_counts_for_what_its_signer_may_delegate_and_for_nothing_else() {
    let mut case = Case::good();
    for (to, revoked) in [("more.example.com", false), ("revoked.example.com", true)] {
        let scope = Scope {
            destination: to.parse().unwrap(),
            revoked,
            ..case.scopes[0].clone()
        };
        case.scopes.extend([scope.clone(), scope]);
    }
    let identity = Identity::parse(case.identity).unwrap();
    let candidate = |roots| {
        let (key, signer) = (case.key.clone(), case.signer.as_ref());
        PocaCandidate::new(key, false, SIGNATURE, signer, &case.scopes, roots)
    };
    let judged = |candidate: &PocaCandidate, to: &str| {
        candidate.judge(&identity, &to.parse().unwrap(), at(case.now))
    };
    let reached = |candidate: &PocaCandidate, now| {
        let reach = candidate.reach(&identity, at(now));
        reach.map(|reach| {
            reach
                .into_iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        })
    };
    let plain = candidate(None);
    let all = ["api.example.com:443", "more.example.com:443"].map(str::to_owned);
    assert_eq!(reached(&plain, case.now), Ok(all.to_vec()));
    assert_eq!(judged(&plain, "api.example.com"), Ok(()));
    assert_eq!(judged(&plain, "more.example.com"), Ok(()));
    for to in [
        "other.example.com",
        "revoked.example.com",
        "api.example.com:444",
    ] {
        assert_eq!(judged(&plain, to), Err(Reason::ScopeMissing), "{to}");
    }
    // The root signed one of them.
    let rooted = candidate(case.roots.as_ref());
    assert_eq!(reached(&rooted, case.now), Ok(all[..1].to_vec()));
    assert_eq!(
        judged(&rooted, "more.example.com"),
        Err(Reason::ScopeUntrusted)
    );
    let over = Err(Reason::PermissionExpired);
    assert_eq!(reached(&rooted, "2026-06-01T00:00:00Z"), over);
}

#[test]
fn a_text_that_is_not_canonical_is_refused_with_its_line() {
    let text = std::str::from_utf8(TEXT).unwrap();
    for (from, to, line) in [
        ("poca-key-v1\n", "permission-v1\n", 1),
        ("-v1\n", "-v1\r\n", 1),
        ("poca_key_id=", "permission_id=", 2),
        ("signing_key_id", "key_id", 3),
        ("agent-alpha", "agent\u{7}alpha", 4),
        ("ed25519_public_key=", "ed25519_public_key=00", 5),
        ("ed25519_public_key=", "ed25519_public_key=G", 5),
        ("2026-05-01T00:00:00.000000Z", "2026-05-01T00:00:00Z", 6),
        ("not_after=2026", "not_after=2025", 7),
        ("06-01T00:00:00.000000Z\n", "06-01T00:00:00.000000Z", 7),
        ("06-01T00:00:00.000000Z\n", "06-01T00:00:00.000000Z\n\n", 8),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from:?} is not in the text");
        let read = PocaKey::from_canonical(changed.as_bytes());
        let expected = CanonicalError { version: V1, line };
        assert_eq!(read, Err(expected), "{from:?} -> {to:?}");
    }
}
