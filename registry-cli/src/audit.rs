//! What is wrong with a row as it stands, apart from its own end or revocation.

use std::fmt;

use permission::time::Position;
use permission::{Candidate, Reason, Request, Timestamp, judge};
use registry::Stored;

/// Why a row can't do what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This column holds what no permission can hold.
    Column(&'static str),
    /// The gateway would deny it for this.
    Denied(Reason),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Column(column) => write!(f, "unusable {column}"),
            Self::Denied(reason) => reason.fmt(f),
        }
    }
}

/// The signature is checked of every row; key and scope only where they still matter: at `now`,
/// or where the row begins if that is later.
pub(crate) fn fault(stored: &Stored, now: Timestamp) -> Option<Fault> {
    let candidate = match stored.candidate() {
        Ok(candidate) => candidate,
        Err(column) => return Some(Fault::Column(column)),
    };
    if !candidate.has_signer() {
        return Some(Fault::Denied(Reason::SigningKeyUnknown));
    }
    if !candidate.is_signed() {
        return Some(Fault::Denied(Reason::SignatureInvalid));
    }
    let window = candidate.permission().window;
    if stored.is_revoked() || window.position(now) == Position::After {
        return None;
    }
    let at = now.max(window.not_before());
    judge(&candidate, &own_request(&candidate), at)
        .err()
        .map(Fault::Denied)
}

/// What the agent that a row names would ask.
pub(crate) fn own_request(candidate: &Candidate) -> Request {
    let permission = candidate.permission();
    Request {
        identity: permission.subject_identity.clone(),
        spki: permission.subject_spki.clone(),
        destination: permission.destination.clone(),
    }
}
