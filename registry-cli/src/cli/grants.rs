//! What keys, scopes and grants are made of.

use std::path::PathBuf;

use clap::Args;
use tpm::{Handle, Tcti};

use super::{RootKeyArgs, Selectors};
use crate::principal::NewPin;
use crate::validity::Validity;

/// `register-key`
#[derive(Debug, Args)]
pub struct RegisterKeyArgs {
    /// The name of the key in the registry: 1 to 256 bytes
    pub key_id: String,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub key: NewKeyArgs,
    /// Another holder's public key, in any of the forms that `grant` takes for --spki: no private
    /// key is needed
    #[arg(long, value_name = "FILE|HEX", conflicts_with_all = ["tcti", "handle", "pin", "key_file"])]
    pub public_key: Option<String>,
    /// How long from now the key's signatures count: 365d, 12h, 90m or 45s
    #[arg(long, default_value = "365d", value_name = "DURATION")]
    pub valid: Validity,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub root: RootKeyArgs,
}

/// `grant-scope`
#[derive(Debug, Args)]
pub struct GrantScopeArgs {
    /// A registered key
    pub key_id: String,
    /// What it may delegate, as HOST or HOST:PORT (443 if none)
    #[arg(required = true, value_name = "DEST")]
    pub destinations: Vec<String>,
    /// For how long from now: 365d, 12h, 90m or 45s
    #[arg(long, default_value = "365d", value_name = "DURATION")]
    pub valid: Validity,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub root: RootKeyArgs,
}

/// `grant`
#[derive(Debug, Args)]
pub struct GrantArgs {
    /// The agent's identity, as in its certificate; case-sensitive
    #[arg(long, required_unless_present = "text", conflicts_with = "text")]
    pub identity: Option<String>,
    /// The agent's public key: hex digits, or a file with hex, DER, a PEM public key or its PEM
    /// certificate (a file whose name is only hex digits: write ./NAME)
    #[arg(
        long,
        value_name = "FILE|HEX",
        required_unless_present = "text",
        conflicts_with = "text"
    )]
    pub spki: Option<String>,
    /// What the agent may reach, as HOST or HOST:PORT (443 if none)
    #[arg(
        long = "destination",
        value_name = "DEST",
        num_args = 1..,
        required_unless_present = "text",
        conflicts_with = "text"
    )]
    pub destinations: Vec<String>,
    /// The id of the permission, if not a new one; for one destination
    #[arg(long, value_name = "PERMISSION_ID", conflicts_with = "text")]
    pub id: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub signing: SigningArgs,
}

/// `grant-poca-key`
#[derive(Debug, Args)]
pub struct GrantPocaKeyArgs {
    /// The agent's identity, as in its certificate; case-sensitive
    #[arg(long, required_unless_present = "text", conflicts_with = "text")]
    pub identity: Option<String>,
    /// The agent's Ed25519 public key: what `agent-gateway-sidecar poca keygen` prints, or base64 of
    /// its SubjectPublicKeyInfo; or a file with that, DER or a PEM public key
    #[arg(
        long,
        value_name = "FILE|BASE64",
        required_unless_present = "text",
        conflicts_with = "text"
    )]
    pub public_key: Option<String>,
    /// Tools that the agent is to call, as HOST or HOST:PORT (443 if none): refuse it if the key may
    /// not delegate each of them for all of the time. It counts for others too that the key may
    /// delegate
    #[arg(
        long = "destination",
        value_name = "DEST",
        num_args = 1..,
        conflicts_with_all = ["text", "offline"]
    )]
    pub destinations: Vec<String>,
    /// The id of the row, if not a new one
    #[arg(long, value_name = "POCA_KEY_ID", conflicts_with = "text")]
    pub id: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub signing: SigningArgs,
}

/// Who signs, for how long, and where.
#[derive(Debug, Args)]
pub struct SigningArgs {
    /// The registered key that signs
    #[arg(long = "key", value_name = "KEY_ID", required_unless_present = "text")]
    pub key_id: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub key: KeyArgs,
    /// For how long from now: 30d, 12h, 90m or 45s
    #[arg(long, default_value = "30d", value_name = "DURATION")]
    pub valid: Validity,
    /// Put it in the place of what has this --id, revoked or not
    #[arg(long, requires = "id")]
    pub replace: bool,
    /// Check all, and show the text that would be signed
    #[arg(long)]
    pub dry_run: bool,
    /// Without the registry, by this machine's clock: write what is signed to stdout, for `import`
    #[arg(long, conflicts_with = "replace")]
    pub offline: bool,
    /// The text that --dry-run showed, signed elsewhere (see --signature)
    #[arg(
        long,
        value_name = "FILE",
        requires = "signature",
        conflicts_with_all = ["key_id", "tcti", "handle", "key_file", "valid", "dry_run", "offline"]
    )]
    pub text: Option<PathBuf>,
    /// A signature over --text that another program or device made: ECDSA P-256 with SHA-256, DER
    #[arg(long, value_name = "FILE", requires = "text")]
    pub signature: Option<PathBuf>,
}

/// `import`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// What `export` or --offline wrote; - is stdin
    pub file: PathBuf,
}

/// `export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub selectors: Selectors,
    /// Write the keys that sign, and their scopes, before the others
    #[arg(long)]
    pub keys: bool,
}

/// `rotate-key`
#[derive(Debug, Args)]
pub struct RotateKeyArgs {
    /// The registered key that is to end
    #[arg(value_name = "OLD_KEY_ID")]
    pub old: String,
    /// The name of the key that takes over; it is at --handle or --key-file, or is made there
    #[arg(value_name = "NEW_KEY_ID")]
    pub new: String,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub key: NewKeyArgs,
    /// How long from now the new key's signatures count: 365d, 12h, 90m or 45s
    #[arg(long, default_value = "365d", value_name = "DURATION")]
    pub valid: Validity,
    /// How long from now the old key's signatures still count
    #[arg(long, default_value = "7d", value_name = "DURATION")]
    pub old_ends_in: Validity,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub root: RootKeyArgs,
    /// Don't ask
    #[arg(long)]
    pub yes: bool,
}

/// Where a principal's key is.
#[derive(Debug, Args)]
pub struct KeyArgs {
    // The environment variable is not clap's: there it would count as given, and so exclude
    // --key-file.
    /// How the TPM is reached, such as device:/dev/tpmrm0
    /// [env: AGENT_GATEWAY_TCTI] [default: swtpm:host=127.0.0.1,port=2321]
    #[arg(long, conflicts_with = "key_file")]
    pub tcti: Option<Tcti>,
    /// Persistent handle of the key in the TPM; agents' keys are at another
    #[arg(long, default_value = "0x81010010", conflicts_with = "key_file")]
    pub handle: Handle,
    /// Use a software key in this file instead of the TPM: whoever can read the file can copy the
    /// key
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// Where a principal's key is, or is made.
#[derive(Debug, Args)]
pub struct NewKeyArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub place: KeyArgs,
    /// Protect a key that is made with a PIN: that of AGENT_GATEWAY_TPM_USER_PIN (with which it is
    /// also protected without this), or else you are asked
    #[arg(long, conflicts_with = "key_file")]
    pub pin: bool,
}

impl NewKeyArgs {
    pub(crate) fn new_pin(&self) -> NewPin {
        if self.pin {
            NewPin::Wanted
        } else {
            NewPin::IfSet
        }
    }
}
