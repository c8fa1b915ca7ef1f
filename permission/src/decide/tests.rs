use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{DerSignature, SigningKey};
use proptest::prelude::*;

use super::*;
use crate::root::RootKey;

const HOUR: i64 = 3_600_000_000;

fn hours(count: i64) -> Timestamp {
    Timestamp::from_unix_micros(count * HOUR).unwrap()
}

fn window(from: i64, to: i64) -> Window {
    Window::new(hours(from), hours(to)).unwrap()
}

fn principal() -> SigningKey {
    SigningKey::from_slice(&[7; 32]).unwrap()
}

fn public(key: &SigningKey) -> PrincipalKey {
    PrincipalKey::from_p256(&key.verifying_key().into()).unwrap()
}

fn request() -> Request {
    Request {
        identity: Identity::parse("agent-alpha").unwrap(),
        spki: public(&SigningKey::from_slice(&[9; 32]).unwrap())
            .spki()
            .clone(),
        destination: "docstore".parse().unwrap(),
    }
}

/// A row that passes from hour 10 to hour 20; each test changes one thing.
struct Row {
    permission: Permission,
    revoked: bool,
    signature: Vec<u8>,
    signer: Option<Signer>,
    scopes: Vec<Scope>,
}

impl Row {
    fn good() -> Self {
        let Request {
            identity,
            spki,
            destination,
        } = request();
        let permission = Permission {
            permission_id: Id::parse("perm-1").unwrap(),
            signing_key_id: Id::parse("org-alice").unwrap(),
            subject_identity: identity,
            subject_spki: spki,
            destination: destination.clone(),
            window: window(10, 20),
        };
        let signer = Signer {
            key: public(&principal()),
            window: window(0, 100),
            revoked: false,
            root_signature: None,
        };
        let scope = Scope {
            destination,
            window: window(10, 20),
            revoked: false,
            root_signature: None,
        };
        let mut row = Self {
            permission,
            revoked: false,
            signature: Vec::new(),
            signer: Some(signer),
            scopes: vec![scope],
        };
        row.sign(&principal());
        row
    }

    fn sign(&mut self, key: &SigningKey) {
        let signature: DerSignature = key.sign(&self.permission.canonical_bytes());
        self.signature = signature.as_bytes().to_vec();
    }

    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut row = Self::good();
        change(&mut row);
        row
    }

    /// As a root that vouches for key and scopes leaves it.
    fn rooted(mut self, root: &SigningKey) -> Self {
        let key_id = self.permission.signing_key_id.clone();
        let signer = self.signer.as_mut().unwrap();
        let sign = |claim, window| {
            let statement = Statement {
                registry_id: Id::parse("registry-1").unwrap(),
                key_id: key_id.clone(),
                key: signer.key.clone(),
                claim,
                window,
            };
            let signature: DerSignature = root.sign(&statement.canonical_bytes());
            Some(signature.as_bytes().to_vec())
        };
        for scope in &mut self.scopes {
            let claim = Claim::Delegates(scope.destination.clone());
            scope.root_signature = sign(claim, scope.window);
        }
        signer.root_signature = sign(Claim::Signs, signer.window);
        self
    }

    fn candidate(self) -> Candidate {
        self.candidate_under(None)
    }

    fn candidate_under(self, roots: Option<&TrustRoots>) -> Candidate {
        Candidate::new(
            self.permission,
            self.revoked,
            &self.signature,
            self.signer.as_ref(),
            &self.scopes,
            roots,
        )
    }
}

fn facts(rows: impl IntoIterator<Item = Row>) -> Facts {
    Facts {
        candidates: rows.into_iter().map(Row::candidate).collect(),
        unreadable: 0,
    }
}

fn signer(row: &mut Row) -> &mut Signer {
    row.signer.as_mut().unwrap()
}

#[test]
fn a_signed_row_within_its_scope_allows() {
    let facts = facts([Row::good()]);
    let Decision::Allow(permit) = decide(&facts, &request(), hours(15)) else {
        panic!("denied");
    };
    assert_eq!(permit.permission(), &Row::good().permission);
    assert_eq!(permit.ends_at(), hours(20));
}

#[test]
fn each_broken_row_is_denied_for_its_own_reason() {
    use Reason::*;
    let other = SigningKey::from_slice(&[8; 32]).unwrap();
    for (row, expected) in [
        (Row::with(|r| r.revoked = true), PermissionRevoked),
        (Row::with(|r| r.signer = None), SigningKeyUnknown),
        (Row::with(|r| signer(r).revoked = true), SigningKeyInactive),
        (
            Row::with(|r| signer(r).window = window(16, 99)),
            SigningKeyInactive,
        ),
        (
            Row::with(|r| signer(r).window = window(0, 15)),
            SigningKeyInactive,
        ),
        (Row::with(|r| r.sign(&other)), SignatureInvalid),
        (
            Row::with(|r| signer(r).key = public(&other)),
            SignatureInvalid,
        ),
        (Row::with(|r| r.signature.clear()), SignatureInvalid),
        (
            Row::with(|r| r.permission.window = window(10, 21)),
            SignatureInvalid,
        ),
        (
            Row::with(|r| r.permission.permission_id = Id::parse("x").unwrap()),
            SignatureInvalid,
        ),
        (Row::with(|r| r.scopes.clear()), ScopeMissing),
        (Row::with(|r| r.scopes[0].revoked = true), ScopeMissing),
        (
            Row::with(|r| r.scopes[0].window = window(11, 20)),
            ScopeMissing,
        ),
        (
            Row::with(|r| r.scopes[0].window = window(10, 19)),
            ScopeMissing,
        ),
        (
            Row::with(|r| r.scopes[0].destination = "messaging".parse().unwrap()),
            ScopeMissing,
        ),
        (
            Row::with(|r| r.scopes[0].destination = "docstore:80".parse().unwrap()),
            ScopeMissing,
        ),
    ] {
        let facts = facts([row]);
        assert_eq!(
            decide(&facts, &request(), hours(15)),
            Decision::Deny(expected),
            "{facts:?}"
        );
    }
}

#[test]
fn a_row_for_another_agent_key_or_destination_is_no_permission() {
    for row in [
        Row::with(|r| r.permission.subject_identity = Identity::parse("Agent-alpha").unwrap()),
        Row::with(|r| r.permission.subject_spki = public(&principal()).spki().clone()),
        Row::with(|r| r.permission.destination = "docstore:444".parse().unwrap()),
    ] {
        // Signed or not: it answers another question.
        let mut row = row;
        row.sign(&principal());
        let facts = facts([row]);
        assert_eq!(
            decide(&facts, &request(), hours(15)),
            Decision::Deny(Reason::NoPermission)
        );
    }
    let none = Facts::default();
    assert_eq!(
        decide(&none, &request(), hours(15)),
        Decision::Deny(Reason::NoPermission)
    );
}

#[test]
fn windows_are_half_open_at_the_decision_too() {
    let facts = facts([Row::good()]);
    let at = |now| match decide(&facts, &request(), now) {
        Decision::Allow(_) => None,
        Decision::Deny(reason) => Some(reason),
    };
    assert_eq!(
        at(hours(10).saturating_add_micros(-1)),
        Some(Reason::PermissionNotYetValid)
    );
    assert_eq!(at(hours(10)), None);
    assert_eq!(at(hours(20).saturating_add_micros(-1)), None);
    assert_eq!(at(hours(20)), Some(Reason::PermissionExpired));
}

#[test]
fn any_row_that_passes_allows_and_else_the_furthest_is_reported() {
    let revoked = || Row::with(|r| r.revoked = true);
    let out_of_scope = || Row::with(|r| r.scopes.clear());
    let allowing = facts([revoked(), out_of_scope(), Row::good()]);
    assert!(matches!(
        decide(&allowing, &request(), hours(15)),
        Decision::Allow(_)
    ));
    for rows in [[revoked(), out_of_scope()], [out_of_scope(), revoked()]] {
        let denied = facts(rows);
        let expected = Decision::Deny(Reason::ScopeMissing);
        assert_eq!(decide(&denied, &request(), hours(15)), expected);
    }
}

#[test]
fn a_scope_that_fails_does_not_hide_one_that_covers() {
    let facts = facts([Row::with(|r| {
        let mut revoked = r.scopes[0].clone();
        revoked.revoked = true;
        let mut narrow = r.scopes[0].clone();
        narrow.window = window(14, 16);
        r.scopes.splice(0..0, [revoked, narrow]);
    })]);
    assert!(matches!(
        decide(&facts, &request(), hours(15)),
        Decision::Allow(_)
    ));
}

#[test]
fn rows_that_cannot_be_signed_count_as_wrongly_signed_and_hide_no_good_one() {
    let decide_with = |rows: Vec<Row>| {
        let facts = Facts {
            unreadable: 1,
            ..facts(rows)
        };
        match decide(&facts, &request(), hours(15)) {
            Decision::Allow(_) => None,
            Decision::Deny(reason) => Some(reason),
        }
    };
    assert_eq!(decide_with(vec![]), Some(Reason::SignatureInvalid));
    assert_eq!(decide_with(vec![Row::good()]), None);
}

#[test]
fn a_tunnel_ends_with_the_earliest_of_permission_key_and_a_day() {
    let ends = |row: Row, now| match decide(&facts([row]), &request(), now) {
        Decision::Allow(permit) => permit.ends_at(),
        Decision::Deny(reason) => panic!("{reason}"),
    };
    assert_eq!(ends(Row::good(), hours(15)), hours(20));
    let short_key = Row::with(|r| signer(r).window = window(0, 17));
    assert_eq!(ends(short_key, hours(15)), hours(17));
    let long = Row::with(|r| {
        r.permission.window = window(10, 90);
        r.scopes[0].window = window(0, 99);
        r.sign(&principal());
    });
    assert_eq!(ends(long, hours(15)), hours(15 + 24));
}

fn root() -> SigningKey {
    SigningKey::from_slice(&[5; 32]).unwrap()
}

fn roots() -> TrustRoots {
    let spki = public(&root()).spki().clone();
    let key = RootKey::from_spki(&spki).unwrap();
    TrustRoots::new(Id::parse("registry-1").unwrap(), vec![key]).unwrap()
}

/// What is said where only roots are believed.
fn outcome_under_roots(row: Row) -> Option<Reason> {
    let facts = Facts {
        candidates: vec![row.candidate_under(Some(&roots()))],
        unreadable: 0,
    };
    match decide(&facts, &request(), hours(15)) {
        Decision::Allow(_) => None,
        Decision::Deny(reason) => Some(reason),
    }
}

#[test]
fn with_roots_a_key_and_a_scope_count_only_as_a_root_signed_them() {
    use Reason::*;
    let rooted = |change: &dyn Fn(&mut Row)| {
        let mut row = Row::good().rooted(&root());
        change(&mut row);
        row
    };
    assert_eq!(outcome_under_roots(rooted(&|_| ())), None);
    let other = SigningKey::from_slice(&[8; 32]).unwrap();
    for (row, expected) in [
        (Row::good(), SigningKeyUntrusted),
        (Row::good().rooted(&other), SigningKeyUntrusted),
        (
            rooted(&|r| signer(r).root_signature = None),
            SigningKeyUntrusted,
        ),
        (
            rooted(&|r| signer(r).window = window(0, 101)),
            SigningKeyUntrusted,
        ),
        (
            rooted(&|r| {
                signer(r).key = public(&other);
                r.sign(&other);
            }),
            SigningKeyUntrusted,
        ),
        (
            rooted(&|r| signer(r).root_signature = r.scopes[0].root_signature.clone()),
            SigningKeyUntrusted,
        ),
        (
            rooted(&|r| r.scopes[0].root_signature = None),
            ScopeUntrusted,
        ),
        (
            rooted(&|r| r.scopes[0].window = window(10, 21)),
            ScopeUntrusted,
        ),
        (
            rooted(&|r| {
                r.scopes[0].root_signature = r.signer.as_ref().unwrap().root_signature.clone();
            }),
            ScopeUntrusted,
        ),
        // What a root says makes nothing else good.
        (rooted(&|r| r.revoked = true), PermissionRevoked),
        (rooted(&|r| signer(r).revoked = true), SigningKeyInactive),
        (rooted(&|r| r.sign(&other)), SignatureInvalid),
        (rooted(&|r| r.scopes[0].revoked = true), ScopeMissing),
    ] {
        let shown = format!("{:?}", row.scopes);
        assert_eq!(outcome_under_roots(row), Some(expected), "{shown}");
    }
}

#[test]
fn a_scope_is_worth_nothing_to_another_key_under_the_same_id() {
    let other = SigningKey::from_slice(&[8; 32]).unwrap();
    let scope = Row::good().rooted(&root()).scopes.remove(0);
    // Both keys were vouched for under that id, one after the other.
    let mut row = Row::with(|r| signer(r).key = public(&other)).rooted(&root());
    row.sign(&other);
    row.scopes = vec![scope];
    assert_eq!(outcome_under_roots(row), Some(Reason::ScopeUntrusted));
}

#[test]
fn a_scope_that_no_root_signed_does_not_hide_one_that_a_root_did() {
    let mut row = Row::good().rooted(&root());
    let mut unsigned = row.scopes[0].clone();
    unsigned.root_signature = None;
    row.scopes.insert(0, unsigned);
    assert_eq!(outcome_under_roots(row), None);
}

#[test]
fn codes_are_the_published_ones() {
    use Reason::*;
    let all = [
        (NoClientCertificate, "no_client_certificate"),
        (CertificateUnparseable, "certificate_unparseable"),
        (IdentityExtensionMissing, "identity_extension_missing"),
        (IdentityExtensionInvalid, "identity_extension_invalid"),
        (DestinationInvalid, "destination_invalid"),
        (MethodNotAllowed, "method_not_allowed"),
        (NoPermission, "no_permission"),
        (PermissionNotYetValid, "permission_not_yet_valid"),
        (PermissionExpired, "permission_expired"),
        (PermissionRevoked, "permission_revoked"),
        (SigningKeyUnknown, "signing_key_unknown"),
        (SigningKeyUntrusted, "signing_key_untrusted"),
        (SigningKeyInactive, "signing_key_inactive"),
        (SignatureInvalid, "signature_invalid"),
        (ScopeMissing, "scope_missing"),
        (ScopeUntrusted, "scope_untrusted"),
        (DestinationUnresolvable, "destination_unresolvable"),
        (DestinationAddressForbidden, "destination_address_forbidden"),
        (RegistryUnavailable, "registry_unavailable"),
        (AuditUnavailable, "audit_unavailable"),
    ];
    for (reason, code) in all {
        assert_eq!(reason.code(), code);
    }
}

proptest! {
    /// However a row is built, an allow implies every one of the rules, checked here one by one.
    #[test]
    fn an_allow_implies_every_rule(
        row in (0i64..4, 1i64..4), key in (0i64..4, 1i64..4), scope in (0i64..4, 1i64..4), now in 0i64..8,
        revoked: bool, key_revoked: bool, scope_revoked: bool, signed: bool, other_scope: bool,
    ) {
        let span = |(from, length)| window(from, from + length);
        let row = Row::with(|r| {
            r.permission.window = span(row);
            r.revoked = revoked;
            *signer(r) = Signer {
                key: public(&principal()), window: span(key), revoked: key_revoked, root_signature: None,
            };
            let destination = if other_scope { "other" } else { "docstore" }.parse().unwrap();
            r.scopes = vec![Scope {
                destination, window: span(scope), revoked: scope_revoked, root_signature: None,
            }];
            if signed { r.sign(&principal()) }
        });
        let inside = |w: Window| w.not_before() <= hours(now) && hours(now) < w.not_after();
        let (w, k, s) = (row.permission.window, row.signer.as_ref().unwrap().window, row.scopes[0].window);
        // The unchanged window of the good row is never made here, so unsigned means invalid.
        let rules = inside(w) && !revoked && inside(k) && !key_revoked && signed
            && inside(s) && !scope_revoked && !other_scope
            && s.not_before() <= w.not_before() && s.not_after() >= w.not_after();
        let facts = facts([row]);
        let allowed = matches!(decide(&facts, &request(), hours(now)), Decision::Allow(_));
        prop_assert_eq!(allowed, rules);
    }
}
