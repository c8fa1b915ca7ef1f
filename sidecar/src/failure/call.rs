//! How calls of tools end, and the making of their proofs.

use std::io::ErrorKind;

use http::StatusCode;

use super::{Exit, Failure, read_exit, state_exit};
use crate::call::CallError;
use crate::proof::ProofError;

const KEYGEN: &str = "make one with `agent-gateway-sidecar poca keygen --state DIR`";

impl From<ProofError> for Failure {
    fn from(error: ProofError) -> Self {
        let (exit, hint) = match &error {
            ProofError::NoKeyNamed => (Exit::Usage, "add --key FILE or --state DIR"),
            ProofError::State(error) => state_exit(error),
            ProofError::Read { source, .. } => read_exit(source, KEYGEN),
            ProofError::Write { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                (Exit::NoPermission, "")
            }
            ProofError::Write { .. } => (Exit::CantCreate, ""),
            ProofError::Exposed(_) => (
                Exit::NoPermission,
                "make it yours alone: chown it, and chmod 600",
            ),
            ProofError::NotAKey { .. } => (Exit::Data, KEYGEN),
            ProofError::Manifest(_) => (Exit::Usage, ""),
            ProofError::NoRandomness => (Exit::Unavailable, ""),
        };
        Failure::new(exit, &error, hint)
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let (exit, hint) = match error {
            CallError::Start(error) => return error.into(),
            CallError::Proof(error) => return error.into(),
            CallError::Output(error) => return error.into(),
            CallError::Body { ref source, .. } => read_exit(source, "give a file, or - for stdin"),
            CallError::TooLarge => (Exit::Data, ""),
            CallError::NotJson(_) => (Exit::Data, "only the tool echo takes other bodies"),
            CallError::Gateway(_) => (
                Exit::Unavailable,
                "`agent-gateway-sidecar doctor` looks for what is wrong",
            ),
            CallError::Cut(_) => (Exit::Unavailable, ""),
            CallError::Answered(status) => (answered(status), "the answer says why"),
        };
        Failure::new(exit, &error, hint)
    }
}

/// Whether the right to call, the body, or the way to the tool is at fault.
fn answered(status: StatusCode) -> Exit {
    match status {
        StatusCode::FORBIDDEN => Exit::NoPermission,
        status if status.is_client_error() => Exit::Data,
        _ => Exit::Unavailable,
    }
}
