//! Policy: whether this caller may call this tool now, as the operator's Rego says.
//!
//! The same input and result wherever the Rego is evaluated: here ([`rego`]), or by an OPA server
//! ([`opa`]). What can't be evaluated is denied.

pub mod opa;
pub mod rego;

use serde::{Deserialize, Serialize};

/// What the policy is asked about.
#[derive(Debug, Clone, Serialize)]
pub struct Input<'a> {
    /// The certificate's identity.
    pub caller: &'a str,
    /// The tool's name.
    pub tool: &'a str,
    /// Whether the caller proved the context of the call.
    pub poca_verified: bool,
    /// Of the trace that the call is in.
    pub trace_id: &'a str,
    /// The contract that the payload was held against: the one that the call names, else the
    /// tool's own.
    pub schema_id: Option<&'a str>,
}

/// What the policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Yes.
    Allow,
    /// No, and why in the policy's own words; for the operator.
    Deny(Vec<String>),
}

/// Most reasons that are kept, and longest of them, in bytes.
const MAX_REASONS: usize = 8;
const MAX_REASON: usize = 256;

/// `data.mcp.authz`. Whatever else the package defines is left aside.
#[derive(Debug, Deserialize)]
struct Document {
    /// Undefined is no.
    #[serde(default)]
    allow: bool,
    #[serde(default)]
    reason: Vec<String>,
}

impl From<Document> for Answer {
    fn from(document: Document) -> Self {
        if document.allow {
            return Self::Allow;
        }
        let reasons = document.reason.into_iter().take(MAX_REASONS);
        Self::Deny(
            reasons
                .map(|mut reason| {
                    reason.truncate(reason.floor_char_boundary(MAX_REASON));
                    reason
                })
                .collect(),
        )
    }
}
