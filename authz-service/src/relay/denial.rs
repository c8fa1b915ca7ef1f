//! Why a tool is not called.

use std::fmt;

use super::contracts::Violation;
use super::reason::Reason;
use crate::decision_point;

/// No leave.
#[derive(Debug)]
pub struct Denial {
    /// What the agent is told.
    pub reason: Reason,
    /// Where the payload doesn't meet its contract.
    pub violation: Option<Violation>,
    /// What stood in the way, for the operator alone.
    pub cause: Option<String>,
}

impl From<Reason> for Denial {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            violation: None,
            cause: None,
        }
    }
}

impl From<permission::Reason> for Denial {
    fn from(reason: permission::Reason) -> Self {
        Reason::from(reason).into()
    }
}

impl From<decision_point::Denial> for Denial {
    fn from(denial: decision_point::Denial) -> Self {
        Self {
            cause: denial.cause,
            ..denial.reason.into()
        }
    }
}

impl Denial {
    pub(super) fn because(reason: Reason, cause: &(impl fmt::Display + ?Sized)) -> Self {
        Self {
            cause: Some(cause.to_string()),
            ..reason.into()
        }
    }
}
