//! What is wrong with a row as it stands, apart from its own end or revocation.

use std::fmt;

use permission::time::Position;
use permission::{Candidate, PocaCandidate, Reason, Request, Timestamp, Window, judge};

/// Why a row can't do what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This column holds what no such row can hold.
    Column(&'static str),
    /// It counts for nothing at the gateway, for this.
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

/// A row, and what it hangs on, as the gateway reads them.
pub(crate) trait Judged {
    fn has_signer(&self) -> bool;

    fn is_signed(&self) -> bool;

    fn window(&self) -> Window;

    /// Whether it does at that time what it says.
    fn holds(&self, at: Timestamp) -> Result<(), Reason>;
}

impl Judged for Candidate {
    fn has_signer(&self) -> bool {
        self.has_signer()
    }

    fn is_signed(&self) -> bool {
        self.is_signed()
    }

    fn window(&self) -> Window {
        self.permission().window
    }

    fn holds(&self, at: Timestamp) -> Result<(), Reason> {
        judge(self, &own_request(self), at).map(drop)
    }
}

impl Judged for PocaCandidate {
    fn has_signer(&self) -> bool {
        self.has_signer()
    }

    fn is_signed(&self) -> bool {
        self.is_signed()
    }

    fn window(&self) -> Window {
        self.key().window
    }

    /// For any destination at all.
    fn holds(&self, at: Timestamp) -> Result<(), Reason> {
        self.reach(&self.key().subject_identity, at).map(drop)
    }
}

/// The signature is checked of every row; key and scope only where they still matter: at `now`,
/// or where the row begins if that is later.
pub(crate) fn fault(
    read: Result<impl Judged, &'static str>,
    revoked: bool,
    now: Timestamp,
) -> Option<Fault> {
    let candidate = match read {
        Ok(candidate) => candidate,
        Err(column) => return Some(Fault::Column(column)),
    };
    if !candidate.has_signer() {
        return Some(Fault::Denied(Reason::SigningKeyUnknown));
    }
    if !candidate.is_signed() {
        return Some(Fault::Denied(Reason::SignatureInvalid));
    }
    let window = candidate.window();
    if revoked || window.position(now) == Position::After {
        return None;
    }
    let at = now.max(window.not_before());
    candidate.holds(at).err().map(Fault::Denied)
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
