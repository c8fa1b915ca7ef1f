//! The decision: what the registry says, what is asked and the time in, allow or deny out.

use crate::certificate::CertificateError;
use crate::destination::Destination;
use crate::identity::Identity;
use crate::key::{PrincipalKey, Verified};
use crate::permission::Permission;
use crate::reason::Reason;
use crate::root::{Claim, Statement, TrustRoots};
use crate::spki::Spki;
use crate::text::Id;
use crate::time::{Position, Timestamp, Window};

/// A tunnel that was allowed ends after this long at the latest, in microseconds (24 h).
const MAX_TUNNEL_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

/// Who asks for what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Request {
    /// From the certificate's extension.
    pub identity: Identity,
    /// The key that the TLS handshake proved.
    pub spki: Spki,
    /// From the CONNECT's authority.
    pub destination: Destination,
}

/// What the registry says about a request: candidate rows, in the order of preference.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Rows for the request's identity, key and destination; any one that passes allows.
    pub candidates: Vec<Candidate>,
    /// How many further rows there are that hold what can't be signed (a control character, a
    /// destination not in normal form): they never allow, and count as wrongly signed.
    pub unreadable: usize,
}

/// A permission row together with what its validity hangs on.
///
/// Everything that doesn't depend on the time is settled when this is made, signature included.
#[derive(Debug, Clone)]
pub struct Candidate {
    row: Row,
    revoked: bool,
    /// The signer's standing; `None` where no usable key is registered.
    signer: Option<Standing>,
    scope: Covered,
}

/// Whether a scope that was not taken back covers a row's destination and its whole window; then it
/// counts whenever the row does.
#[derive(Debug, Clone, Copy)]
enum Covered {
    Not,
    /// By none that a trust root signed.
    Untrusted,
    Trusted,
}

/// A row whose signature was checked, and how that came out.
#[derive(Debug, Clone)]
enum Row {
    Signed(Verified<Permission>),
    Unsigned(Permission),
}

/// When something counts, and whether a trust root says so; where none is asked for, all do.
#[derive(Debug, Clone, Copy)]
struct Standing {
    window: Window,
    revoked: bool,
    trusted: bool,
}

impl Standing {
    fn is_active(&self, now: Timestamp) -> bool {
        !self.revoked && self.window.position(now) == Position::Within
    }
}

/// A registered principal's key.
#[derive(Debug, Clone)]
pub struct Signer {
    /// The key itself.
    pub key: PrincipalKey,
    /// When its signatures count.
    pub window: Window,
    /// Taken back.
    pub revoked: bool,
    /// What a root is said to have made of that, in DER.
    pub root_signature: Option<Vec<u8>>,
}

/// A destination that a key may delegate.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The destination.
    pub destination: Destination,
    /// When; it must also cover a permission's whole window.
    pub window: Window,
    /// Taken back.
    pub revoked: bool,
    /// What a root is said to have made of that, in DER.
    pub root_signature: Option<Vec<u8>>,
}

impl Signer {
    /// Whether the key of that id counts by the word of `roots`; where there are none, it does.
    pub fn is_trusted(&self, key_id: &Id, roots: Option<&TrustRoots>) -> bool {
        let claim = Claim::Signs;
        self.vouched(
            key_id,
            claim,
            self.window,
            self.root_signature.as_deref(),
            roots,
        )
    }

    /// As [`Signer::is_trusted`], of what the key of that id may delegate.
    pub fn may_delegate(&self, key_id: &Id, scope: &Scope, roots: Option<&TrustRoots>) -> bool {
        let claim = Claim::Delegates(scope.destination.clone());
        self.vouched(
            key_id,
            claim,
            scope.window,
            scope.root_signature.as_deref(),
            roots,
        )
    }

    fn vouched(
        &self,
        key_id: &Id,
        claim: Claim,
        window: Window,
        signature_der: Option<&[u8]>,
        roots: Option<&TrustRoots>,
    ) -> bool {
        let Some(roots) = roots else {
            return true;
        };
        signature_der.is_some_and(|signature_der| {
            let statement = Statement {
                registry_id: roots.registry_id().clone(),
                key_id: key_id.clone(),
                key: self.key.clone(),
                claim,
                window,
            };
            roots.vouch_for(&statement, signature_der)
        })
    }
}

/// Yes or no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<'a> {
    /// This permission allows it.
    Allow(Permit<'a>),
    /// Nothing allows it.
    Deny(Reason),
}

/// Leave to open one tunnel; only [`judge`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit<'a> {
    permission: &'a Verified<Permission>,
    ends_at: Timestamp,
}

impl<'a> Permit<'a> {
    /// The permission that allows the tunnel.
    pub fn permission(&self) -> &'a Permission {
        self.permission.get()
    }

    /// When the tunnel must end: the earliest end of permission, key and scope, or 24 h from now.
    pub fn ends_at(&self) -> Timestamp {
        self.ends_at
    }
}

impl Candidate {
    /// Puts a row and what it hangs on together, and checks the signatures: the row's own, and
    /// with `roots` those of key and scopes.
    ///
    /// `signer` is the registered key that the row names, or `None` where there is none that can
    /// be used.
    pub fn new(
        permission: Permission,
        revoked: bool,
        signature_der: &[u8],
        signer: Option<&Signer>,
        scopes: &[Scope],
        roots: Option<&TrustRoots>,
    ) -> Self {
        let key_id = &permission.signing_key_id;
        let covers = |scope: &&Scope| {
            !scope.revoked
                && scope.destination == permission.destination
                && scope.window.covers(&permission.window)
        };
        let mut covering = scopes.iter().filter(covers).peekable();
        let trusts = |scope| signer.is_some_and(|key| key.may_delegate(key_id, scope, roots));
        let scope = if covering.peek().is_none() {
            Covered::Not
        } else if covering.any(trusts) {
            Covered::Trusted
        } else {
            Covered::Untrusted
        };
        let standing = signer.map(|signer| Standing {
            window: signer.window,
            revoked: signer.revoked,
            trusted: signer.is_trusted(key_id, roots),
        });
        let verified = signer
            .and_then(|signer| Verified::new(permission.clone(), signature_der, &signer.key).ok());
        Self {
            row: verified.map_or(Row::Unsigned(permission), Row::Signed),
            revoked,
            signer: standing,
            scope,
        }
    }

    /// The row, as stored.
    pub fn permission(&self) -> &Permission {
        match &self.row {
            Row::Signed(verified) => verified.get(),
            Row::Unsigned(permission) => permission,
        }
    }

    /// Whether its registered key signed it; who audits rows asks this of revoked ones, too.
    pub fn is_signed(&self) -> bool {
        matches!(self.row, Row::Signed(_))
    }

    /// Whether the key that it names is registered, and one that can be used.
    pub fn has_signer(&self) -> bool {
        self.signer.is_some()
    }
}

/// Decides `request` at the time `now`.
///
/// Of several candidates the first that passes allows; a deny reports the reason of the one that
/// got furthest.
pub fn decide<'a>(facts: &'a Facts, request: &Request, now: Timestamp) -> Decision<'a> {
    let unreadable = facts.unreadable > 0;
    let mut furthest = if unreadable {
        Reason::SignatureInvalid
    } else {
        Reason::NoPermission
    };
    for candidate in &facts.candidates {
        match judge(candidate, request, now) {
            Ok(permit) => return Decision::Allow(permit),
            Err(reason) => furthest = furthest.max(reason),
        }
    }
    Decision::Deny(furthest)
}

/// Holds one candidate against a request, in the order of [`Reason`]'s variants.
pub fn judge<'a>(
    candidate: &'a Candidate,
    request: &Request,
    now: Timestamp,
) -> Result<Permit<'a>, Reason> {
    let row = candidate.permission();
    let matches = row.subject_identity == request.identity
        && row.subject_spki == request.spki
        && row.destination == request.destination;
    if !matches {
        return Err(Reason::NoPermission);
    }
    match row.window.position(now) {
        Position::Before => return Err(Reason::PermissionNotYetValid),
        Position::After => return Err(Reason::PermissionExpired),
        Position::Within => {}
    }
    if candidate.revoked {
        return Err(Reason::PermissionRevoked);
    }
    let signer = candidate.signer.as_ref().ok_or(Reason::SigningKeyUnknown)?;
    if !signer.trusted {
        return Err(Reason::SigningKeyUntrusted);
    }
    if !signer.is_active(now) {
        return Err(Reason::SigningKeyInactive);
    }
    let Row::Signed(permission) = &candidate.row else {
        return Err(Reason::SignatureInvalid);
    };
    match candidate.scope {
        Covered::Not => return Err(Reason::ScopeMissing),
        Covered::Untrusted => return Err(Reason::ScopeUntrusted),
        Covered::Trusted => {}
    }
    // A scope that covers the permission's window never ends before it.
    let ends_at = now
        .saturating_add_micros(MAX_TUNNEL_MICROS)
        .min(row.window.not_after())
        .min(signer.window.not_after());
    Ok(Permit {
        permission,
        ends_at,
    })
}

impl From<CertificateError> for Reason {
    fn from(error: CertificateError) -> Self {
        match error {
            CertificateError::Unparseable => Self::CertificateUnparseable,
            CertificateError::ExtensionMissing => Self::IdentityExtensionMissing,
            CertificateError::ExtensionInvalid => Self::IdentityExtensionInvalid,
        }
    }
}

#[cfg(test)]
mod tests;
