//! What goes wrong with roots of trust.

use std::io::{self, ErrorKind};
use std::path::PathBuf;

use permission::{Id, TrustRootsError};

use super::verdict::{Exit, SYSTEM, elsewhere};
use crate::principal::Place;
use crate::signing::elsewhere::ElsewhereError;
use crate::trust::TrustError;

/// Why a root of trust is none, is not there, or has not signed.
#[derive(Debug, thiserror::Error)]
pub enum RootFailure {
    /// A root of trust that can't be one.
    #[error("trust root {text}: {source}")]
    TrustRoot {
        /// As given.
        text: String,
        /// What is wrong.
        source: TrustError,
    },
    /// None of the roots alone is at fault.
    #[error(transparent)]
    TrustRoots(#[from] TrustRootsError),
    /// Nobody says which registry is meant.
    #[error("no registry id: a root's signature counts in one registry")]
    NoRegistryId,
    /// Nobody says whose signature counts.
    #[error("no trust root given to check a root's signature by")]
    NoTrustRoot,
    /// No root's key is named.
    #[error("no root's key given, and what is to be done needs its signature")]
    NoRootKey,
    /// No key where a root's is said to be.
    #[error("there is no root's key {0}")]
    RootAbsent(Place),
    /// A root, but not one of those that count.
    #[error("the root's key {0} is not one of the trust roots")]
    OtherRoot(String),
    /// Another registry than the one that is meant.
    #[error("this is registry {found}, not {expected}")]
    OtherRegistry {
        /// What it calls itself.
        found: String,
        /// What is meant.
        expected: Id,
    },
    /// What a root is to sign, or has signed elsewhere.
    #[error("{}: {source}", path.display())]
    Texts {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: ElsewhereError,
    },
    /// A key or a scope has changed since its text was made.
    #[error("{0} or its scope does not stand in the registry as it was signed")]
    StatementGone(Id),
    /// No trust root has signed the key.
    #[error("key {0} is not signed by a trust root")]
    KeyUntrusted(Id),
    /// The root's key gave something else than a signature.
    #[error("the root's signature does not verify")]
    RootSignature,
    /// The public key can't be written.
    #[error("{}: can't be written", path.display())]
    PublicKeyFile {
        /// Where to.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl RootFailure {
    /// What to do about it.
    pub(super) fn verdict(&self) -> (Exit, String) {
        let (exit, hint) = match self {
            Self::TrustRoot { source, .. } => match source {
                TrustError::Read(_) => (
                    Exit::NoInput,
                    "give hex digits, or a file that holds the key",
                ),
                TrustError::Key(_) => (
                    Exit::Data,
                    "take the public key as `agent-gateway-registry root init` gave it",
                ),
            },
            Self::TrustRoots(_) => (Exit::Usage, "give each root once"),
            Self::NoRegistryId => (
                Exit::Usage,
                "give --registry-id or AGENT_GATEWAY_REGISTRY_ID, as the service's policy.registry_id has it",
            ),
            Self::NoTrustRoot => (
                Exit::Usage,
                "give --trust-root and --registry-id, or AGENT_GATEWAY_TRUST_ROOTS and AGENT_GATEWAY_REGISTRY_ID",
            ),
            Self::NoRootKey => (Exit::Usage, "give --root-handle or --root-key-file"),
            Self::RootAbsent(_) => (
                Exit::NoInput,
                "check --root-tcti and --root-handle, or --root-key-file; `root init` makes a key",
            ),
            Self::OtherRoot(_) => (
                Exit::Data,
                "check which root's key this is, and --trust-root or AGENT_GATEWAY_TRUST_ROOTS",
            ),
            Self::OtherRegistry { .. } => (
                Exit::Data,
                "check --registry-id and the database url; `root show` without --registry-id tells the id",
            ),
            Self::Texts { source, .. } => texts(source),
            Self::StatementGone(_) => (
                Exit::Data,
                "nothing was changed: write the texts again with `root sign --dry-run`",
            ),
            Self::KeyUntrusted(key_id) => {
                let sign =
                    format!("have it signed with `agent-gateway-registry root sign {key_id}`");
                return (Exit::Data, sign);
            }
            Self::RootSignature => (
                Exit::Internal,
                "nothing was written; this should not happen",
            ),
            Self::PublicKeyFile { source, .. } => match source.kind() {
                ErrorKind::PermissionDenied => (Exit::NoPermission, SYSTEM),
                _ => (
                    Exit::CantCreate,
                    "name a file that does not exist yet; the key itself stands",
                ),
            },
        };
        (exit, hint.to_owned())
    }
}

fn texts(error: &ElsewhereError) -> (Exit, &'static str) {
    match error {
        ElsewhereError::TooLarge | ElsewhereError::Text(_) => (
            Exit::Data,
            "give the text exactly as `root sign --dry-run` wrote it; one alone with --text",
        ),
        ElsewhereError::NoRoot => (
            Exit::Data,
            "sign the file's exact bytes with a trust root's key: ECDSA, SHA-256, DER",
        ),
        other => elsewhere(other),
    }
}
