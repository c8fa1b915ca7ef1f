//! An agent's key for proofs of context (`PoCA`), and the bytes by which a principal vouches for it.

use std::collections::BTreeSet;

use crate::canonical::{CanonicalError, Lines};
use crate::decide::{Scope, Signer};
use crate::destination::Destination;
use crate::identity::Identity;
use crate::key::Verified;
use crate::reason::Reason;
use crate::root::TrustRoots;
use crate::text::Id;
use crate::time::{Position, Timestamp, Window};

/// First line of the signed text.
const V1: &str = "agent-gateway-poca-key-v1";

/// One agent's calls may be proven under one key for a while, says one principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PocaKey {
    /// Names the row.
    pub poca_key_id: Id,
    /// Names the principal's key.
    pub signing_key_id: Id,
    /// The agent.
    pub subject_identity: Identity,
    /// The agent's Ed25519 key (RFC 8032); whether it is a usable one is not looked at here.
    pub ed25519_public_key: [u8; 32],
    /// When.
    pub window: Window,
}

impl PocaKey {
    /// The signed bytes, version 1: seven lines of UTF-8, each ended by LF.
    ///
    /// As for permissions, different keys have different bytes.
    pub fn canonical_bytes(&self) -> Vec<u8> {
        format!(
            "{V1}\n\
             poca_key_id={}\n\
             signing_key_id={}\n\
             subject_identity={}\n\
             ed25519_public_key={}\n\
             not_before={}\n\
             not_after={}\n",
            self.poca_key_id,
            self.signing_key_id,
            self.subject_identity,
            hex::encode(self.ed25519_public_key),
            self.window.not_before(),
            self.window.not_after(),
        )
        .into_bytes()
    }

    /// Reads signed bytes back; accepts exactly what [`PocaKey::canonical_bytes`] writes.
    pub fn from_canonical(bytes: &[u8]) -> Result<Self, CanonicalError> {
        let mut lines = Lines::new(bytes, V1)?;
        lines.version(&[V1])?;
        let key = Self {
            poca_key_id: lines.id("poca_key_id")?,
            signing_key_id: lines.id("signing_key_id")?,
            subject_identity: lines.field("subject_identity", |text| Identity::parse(text).ok())?,
            ed25519_public_key: lines.field("ed25519_public_key", |text| {
                let key: [u8; 32] = hex::decode(text).ok()?.try_into().ok()?;
                (hex::encode(key) == text).then_some(key)
            })?,
            window: lines.window()?,
        };
        lines.end()?;
        Ok(key)
    }
}

/// A row with such a key, together with what its validity hangs on.
///
/// Everything that doesn't depend on the time is settled when this is made, signatures included.
#[derive(Debug, Clone)]
pub struct PocaCandidate {
    key: PocaKey,
    is_signed: bool,
    revoked: bool,
    signer: Option<Standing>,
    scopes: Vec<Delegated>,
}

/// When a signer counts, and whether at all.
#[derive(Debug, Clone, Copy)]
struct Standing {
    window: Window,
    revoked: bool,
    trusted: bool,
}

/// When a scope counts that was not taken back, and whether by the word of the roots.
#[derive(Debug, Clone)]
struct Delegated {
    destination: Destination,
    window: Window,
    trusted: bool,
}

impl PocaCandidate {
    /// Puts a row and what it hangs on together, and checks the signatures: the row's own, and with
    /// `roots` those of key and scopes.
    ///
    /// `signer` is the registered key that the row names, or `None` where there is none that can be
    /// used; `scopes` are that key's, for every destination that will be asked about.
    pub fn new(
        key: PocaKey,
        revoked: bool,
        signature_der: &[u8],
        signer: Option<&Signer>,
        scopes: &[Scope],
        roots: Option<&TrustRoots>,
    ) -> Self {
        let key_id = &key.signing_key_id;
        let scopes = scopes.iter().filter(|scope| !scope.revoked);
        let scopes = scopes.map(|scope| Delegated {
            destination: scope.destination.clone(),
            window: scope.window,
            trusted: signer.is_some_and(|signer| signer.may_delegate(key_id, scope, roots)),
        });
        let scopes = scopes.collect();
        let standing = signer.map(|signer| Standing {
            window: signer.window,
            revoked: signer.revoked,
            trusted: signer.is_trusted(key_id, roots),
        });
        let is_signed = signer.is_some_and(|signer| {
            Verified::of_poca_key(key.clone(), signature_der, &signer.key).is_ok()
        });
        Self {
            key,
            is_signed,
            revoked,
            signer: standing,
            scopes,
        }
    }

    /// The row, as stored.
    pub fn key(&self) -> &PocaKey {
        &self.key
    }

    /// Whether its registered key signed it.
    pub fn is_signed(&self) -> bool {
        self.is_signed
    }

    /// Whether the key that it names is registered, and one that can be used.
    pub fn has_signer(&self) -> bool {
        self.signer.is_some()
    }

    /// Holds the row itself, and who signed it, against an agent and the time: whether it could
    /// count at all. The reasons are a permission's; the row stands for it.
    pub fn vouched(&self, identity: &Identity, now: Timestamp) -> Result<(), Reason> {
        if self.key.subject_identity != *identity {
            return Err(Reason::NoPermission);
        }
        match self.key.window.position(now) {
            Position::Before => return Err(Reason::PermissionNotYetValid),
            Position::After => return Err(Reason::PermissionExpired),
            Position::Within => {}
        }
        if self.revoked {
            return Err(Reason::PermissionRevoked);
        }
        let signer = self.signer.as_ref().ok_or(Reason::SigningKeyUnknown)?;
        if !signer.trusted {
            return Err(Reason::SigningKeyUntrusted);
        }
        if signer.revoked || signer.window.position(now) != Position::Within {
            return Err(Reason::SigningKeyInactive);
        }
        if !self.is_signed {
            return Err(Reason::SignatureInvalid);
        }
        Ok(())
    }

    /// Whether calls of this agent to this destination may be proven under the key now: also whether
    /// who signed it may delegate that destination now.
    pub fn judge(
        &self,
        identity: &Identity,
        destination: &Destination,
        now: Timestamp,
    ) -> Result<(), Reason> {
        self.vouched(identity, now)?;
        let mut active = self
            .active(now)
            .filter(|scope| scope.destination == *destination);
        let first = active.next().ok_or(Reason::ScopeMissing)?;
        if !first.trusted && !active.any(|scope| scope.trusted) {
            return Err(Reason::ScopeUntrusted);
        }
        Ok(())
    }

    /// Where calls of this agent may be proven under the key now: at one destination at least, each
    /// of them named once.
    pub fn reach(
        &self,
        identity: &Identity,
        now: Timestamp,
    ) -> Result<BTreeSet<&Destination>, Reason> {
        self.vouched(identity, now)?;
        if self.active(now).next().is_none() {
            return Err(Reason::ScopeMissing);
        }
        let trusted = self.active(now).filter(|scope| scope.trusted);
        let reach: BTreeSet<_> = trusted.map(|scope| &scope.destination).collect();
        if reach.is_empty() {
            return Err(Reason::ScopeUntrusted);
        }
        Ok(reach)
    }

    fn active(&self, now: Timestamp) -> impl Iterator<Item = &Delegated> {
        (self.scopes.iter()).filter(move |scope| scope.window.position(now) == Position::Within)
    }
}

#[cfg(test)]
mod tests;
