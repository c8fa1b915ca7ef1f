//! Roots of trust: whose word counts, and where a root's key is.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tpm::{Handle, Tcti};

use crate::principal::NewPin;

/// Whose word counts for keys and scopes; of every command that judges.
#[derive(Debug, Args)]
pub struct TrustArgs {
    /// A root of trust, as hex digits or a file with its public key: judge as a service with these
    /// policy.trust_roots does [env: AGENT_GATEWAY_TRUST_ROOTS, separated by commas]
    #[arg(
        long = "trust-root",
        global = true,
        value_name = "FILE|HEX",
        help_heading = "Roots of trust"
    )]
    pub trust_roots: Vec<String>,
    /// The registry's id, as the service's policy.registry_id has it
    /// [env: AGENT_GATEWAY_REGISTRY_ID]
    #[arg(
        long,
        global = true,
        value_name = "ID",
        help_heading = "Roots of trust"
    )]
    pub registry_id: Option<String>,
}

/// `root`
#[derive(Debug, Subcommand)]
pub enum RootCommand {
    /// Make a root's key, or find it, and print its public half
    ///
    /// Needs no registry. What whoever holds this key signs is believed, so keep it in a TPM or a
    /// token of a machine that does nothing else.
    #[command(after_help = "\
Example:
  agent-gateway-registry root init --root-handle 0x81010020
  agent-gateway-registry root init --root-key-file root.pem")]
    Init(RootInitArgs),
    /// Sign keys and scopes that stand in the registry
    ///
    /// Shows what a trust root has not signed yet and asks; then all of it is signed, or nothing.
    /// Where the root's key is on another machine, --dry-run writes the texts, --offline signs
    /// them there, and `import` takes what that wrote. Any other program can sign a single text:
    /// see --text.
    #[command(after_help = "\
Example:
  agent-gateway-registry root sign org-alice --root-handle 0x81010020
  agent-gateway-registry root sign org-alice --dry-run
  agent-gateway-registry root sign --offline unsigned.txt --root-key-file root.pem
  agent-gateway-registry root sign --text key.txt --signature key.sig")]
    Sign(RootSignArgs),
    /// Show the registry's id, its roots, and what none of them has signed
    #[command(after_help = "\
Example:
  agent-gateway-registry root show --trust-root root.pub")]
    Show,
}

/// `root init`
#[derive(Debug, Args)]
pub struct RootInitArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub root: RootKeyArgs,
    /// Protect a key that is made with a PIN, as `register-key` does
    #[arg(long, conflicts_with = "root_key_file")]
    pub pin: bool,
    /// Write the public key there, as PEM; a file that exists is not overwritten
    #[arg(long, value_name = "FILE")]
    pub public: Option<PathBuf>,
}

impl RootInitArgs {
    pub(crate) fn new_pin(&self) -> NewPin {
        if self.pin {
            NewPin::Wanted
        } else {
            NewPin::IfSet
        }
    }
}

/// `root sign`
#[derive(Debug, Args)]
pub struct RootSignArgs {
    /// The registered keys to sign, and what they may delegate; all if none is named
    #[arg(value_name = "KEY_ID")]
    pub keys: Vec<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub root: RootKeyArgs,
    /// Only the keys themselves, not their scopes
    #[arg(long)]
    pub keys_only: bool,
    /// Only the scopes for this destination, not the keys
    #[arg(long, value_name = "DEST", conflicts_with = "keys_only")]
    pub destination: Option<String>,
    /// Don't ask
    #[arg(long)]
    pub yes: bool,
    /// Write the texts that would be signed to stdout, one after the other
    #[arg(long, conflicts_with_all = ["root_tcti", "root_handle", "root_key_file", "yes"])]
    pub dry_run: bool,
    /// Without the registry: sign the texts in FILE that --dry-run wrote, and write lines to stdout
    /// that `import` takes
    #[arg(long, value_name = "FILE", conflicts_with_all = ["keys", "keys_only", "destination", "dry_run"])]
    pub offline: Option<PathBuf>,
    /// One text that --dry-run wrote, signed elsewhere (see --signature)
    #[arg(
        long,
        value_name = "FILE",
        requires = "signature",
        conflicts_with_all = ["keys", "keys_only", "destination", "dry_run", "offline", "root_tcti",
            "root_handle", "root_key_file"]
    )]
    pub text: Option<PathBuf>,
    /// A signature over --text that another program or device made: ECDSA P-256 with SHA-256, DER
    #[arg(long, value_name = "FILE", requires = "text")]
    pub signature: Option<PathBuf>,
}

/// Where a root's key is.
#[derive(Debug, Args)]
pub struct RootKeyArgs {
    /// How the TPM with the root's key is reached; as --tcti if not given
    #[arg(
        long,
        value_name = "TCTI",
        requires = "root_handle",
        help_heading = "Root's key"
    )]
    pub root_tcti: Option<Tcti>,
    /// Persistent handle of the root's key in that TPM, such as 0x81010020
    #[arg(
        long,
        value_name = "HANDLE",
        conflicts_with = "root_key_file",
        help_heading = "Root's key"
    )]
    pub root_handle: Option<Handle>,
    /// Use a software key in this file instead: whoever can read the file is a root
    #[arg(long, value_name = "FILE", help_heading = "Root's key")]
    pub root_key_file: Option<PathBuf>,
}

impl RootKeyArgs {
    /// Whether a root's key is named at all.
    pub fn is_given(&self) -> bool {
        self.root_handle.is_some() || self.root_key_file.is_some()
    }
}
