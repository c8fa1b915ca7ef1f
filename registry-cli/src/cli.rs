//! The command line.
//!
//! What the registry's rules must judge (ids, identities, destinations, keys) is taken as text
//! here: a bad one is bad data, not wrong usage, and has another exit status.

#![expect(
    clippy::doc_markdown,
    reason = "the comments are the help text, in which backticks would show"
)]

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use permission::Timestamp;
use tpm::{Handle, Tcti};

use crate::replicas::Replica;
use crate::validity::Validity;

const ENVIRONMENT: &str = "\
Environment:
  AGENT_GATEWAY_DATABASE_URL  the registry, as postgres://user:password@host:5432/database
                              (else DATABASE_URL); there is no option for it, because other
                              users can see a program's arguments
  AGENT_GATEWAY_TCTI          the TPM, where --tcti is not given";

const EXIT_STATUS: &str = "\
Exit status:
   0  done
   1  no (can-i), nothing matched (revoke, show), or not agreed to
  64  wrong usage, or no usable database url
  65  bad data: a public key, identity or destination that is none, or a grant that the
      registry's keys and scopes don't bear out
  66  a file, or the key in the TPM, is not there
  69  database or TPM not available
  70  internal failure
  73  can't create: the key or its id is registered already, or a file can't be written
  74  the result could not be written to stdout
  75  done, but not confirmed by the gateway's services in time (--wait)
  77  not permitted: the database role may only read, or a key file is not yours alone
  78  registry schema missing, unreadable or of another version";

const EXAMPLE: &str = "\
Example:
  export AGENT_GATEWAY_DATABASE_URL=postgres://registry_admin@127.0.0.1:5432/registry
  agent-gateway-registry register-key org-alice
  agent-gateway-registry grant-scope org-alice docstore messaging
  agent-gateway-registry grant --key org-alice --identity agent-alpha --spki spki.hex --destination docstore --valid 30d
  agent-gateway-registry list";

/// Keys, scopes and signed permissions of the agent gateway
#[derive(Debug, Parser)]
#[command(
    name = "agent-gateway-registry",
    version,
    after_help = format!("{ENVIRONMENT}\n\n{EXIT_STATUS}\n\n{EXAMPLE}")
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Register a principal's key, which is made if there is none yet
    #[command(after_help = "\
Example:
  agent-gateway-registry register-key org-alice --valid 365d")]
    RegisterKey(RegisterKeyArgs),
    /// Let a key delegate destinations
    #[command(after_help = "\
Example:
  agent-gateway-registry grant-scope org-alice docstore messaging:8443 --valid 365d")]
    GrantScope(GrantScopeArgs),
    /// Sign permissions: one agent's key may reach these destinations for a while
    #[command(after_help = "\
Example:
  agent-gateway-registry grant --key org-alice --identity agent-alpha --spki spki.hex --destination docstore --valid 30d
  agent-gateway-registry grant --text permission.txt --signature permission.sig")]
    Grant(GrantArgs),
    /// Revoke the permissions that match
    ///
    /// Shows what matches and asks; then revokes all of it in one transaction, or nothing.
    #[command(after_help = "\
One of --id, --key, --identity, --spki and --destination must be given; more than one with --all-of.

Example:
  agent-gateway-registry revoke --identity agent-alpha
  agent-gateway-registry revoke --all-of --identity agent-alpha --destination docstore --yes --wait --admin 127.0.0.1:9002")]
    Revoke(RevokeArgs),
    /// Take back what a key may delegate; permissions that rest on it count no longer
    #[command(after_help = "\
Example:
  agent-gateway-registry revoke-scope org-alice docstore")]
    RevokeScope(RevokeScopeArgs),
    /// Revoke a key; nothing that it signed counts any longer
    #[command(after_help = "\
Example:
  agent-gateway-registry revoke-key org-alice")]
    RevokeKey(RevokeKeyArgs),
    /// Show who would lose what by a revocation; nothing is changed
    #[command(after_help = "\
Example:
  agent-gateway-registry impact --revoke --identity agent-alpha
  agent-gateway-registry impact --revoke-scope org-alice docstore
  agent-gateway-registry impact --revoke-key org-alice")]
    Impact(ImpactArgs),
    /// Show what stands in the registry
    ///
    /// The state is that of the row itself, by the database's clock. A permission also needs an
    /// active key and scope, and a signature that verifies.
    #[command(after_help = "\
Example:
  agent-gateway-registry list permissions --json")]
    List(ListArgs),
    /// Say whether the gateway would allow a request, and if not why not
    ///
    /// By the service's own rules, from what the registry holds now. The service also looks where
    /// the destination leads: an address that must not be reached is denied there.
    #[command(after_help = "\
Exit status 0 is yes, 1 is no.

Example:
  agent-gateway-registry can-i --identity agent-alpha --spki spki.hex --destination docstore")]
    CanI(RequestArgs),
    /// Show every permission that a request could rest on, and the check at which each one falls
    #[command(after_help = "\
Example:
  agent-gateway-registry why --identity agent-alpha --spki spki.hex --destination docstore")]
    Why(RequestArgs),
    /// Show all about a permission or a key
    #[command(after_help = "\
Example:
  agent-gateway-registry show perm-7d0c6f0e-4a0b-4f5e-9d57-0f2b8a1c3e55")]
    Show(ShowArgs),
    /// Store signed permissions from a file, all of them or none
    ///
    /// Every signature is verified, and what could not be used is refused, by its line. A
    /// permission that is there already is left as it is, also if it was revoked.
    #[command(after_help = "\
Example:
  agent-gateway-registry import permissions.jsonl")]
    Import(ImportArgs),
    /// Write signed permissions as lines of JSON
    #[command(after_help = "\
Example:
  agent-gateway-registry export --identity agent-alpha")]
    Export(ExportArgs),
}

impl Command {
    /// Whether the command talks with the TPM.
    pub fn uses_tpm(&self) -> bool {
        match self {
            Command::RegisterKey(RegisterKeyArgs {
                key, public_key, ..
            }) => key.key_file.is_none() && public_key.is_none(),
            Command::Grant(GrantArgs { key, text, .. }) => key.key_file.is_none() && text.is_none(),
            Command::GrantScope(_)
            | Command::Revoke(_)
            | Command::RevokeScope(_)
            | Command::RevokeKey(_)
            | Command::Impact(_)
            | Command::List(_)
            | Command::CanI(_)
            | Command::Why(_)
            | Command::Show(_)
            | Command::Import(_)
            | Command::Export(_) => false,
        }
    }
}

/// `register-key`
#[derive(Debug, Args)]
pub struct RegisterKeyArgs {
    /// The name of the key in the registry: 1 to 256 bytes
    pub key_id: String,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub key: KeyArgs,
    /// Another holder's public key, in any of the forms that `grant` takes for --spki: no private
    /// key is needed
    #[arg(long, value_name = "FILE|HEX", conflicts_with_all = ["tcti", "handle", "key_file"])]
    pub public_key: Option<String>,
    /// How long from now the key's signatures count: 365d, 12h, 90m or 45s
    #[arg(long, default_value = "365d", value_name = "DURATION")]
    pub valid: Validity,
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
}

/// `grant`
#[derive(Debug, Args)]
pub struct GrantArgs {
    /// The registered key that signs
    #[arg(long = "key", value_name = "KEY_ID", required_unless_present = "text")]
    pub key_id: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub key: KeyArgs,
    /// The agent's identity, as in its certificate; case-sensitive
    #[arg(long, required_unless_present = "text")]
    pub identity: Option<String>,
    /// The agent's public key: hex digits, or a file with hex, DER, a PEM public key or its PEM
    /// certificate (a file whose name is only hex digits: write ./NAME)
    #[arg(long, value_name = "FILE|HEX", required_unless_present = "text")]
    pub spki: Option<String>,
    /// What the agent may reach, as HOST or HOST:PORT (443 if none)
    #[arg(long = "destination", required_unless_present = "text", num_args = 1.., value_name = "DEST")]
    pub destinations: Vec<String>,
    /// For how long from now: 30d, 12h, 90m or 45s
    #[arg(long, default_value = "30d", value_name = "DURATION")]
    pub valid: Validity,
    /// The id of the permission, if not a new one; for one destination
    #[arg(long, value_name = "PERMISSION_ID")]
    pub id: Option<String>,
    /// Put it in the place of the permission that has this --id, revoked or not
    #[arg(long, requires = "id")]
    pub replace: bool,
    /// Check all, and show the text that would be signed
    #[arg(long)]
    pub dry_run: bool,
    /// Without the registry, by this machine's clock: write the signed permissions to stdout, for
    /// `import`
    #[arg(long, conflicts_with = "replace")]
    pub offline: bool,
    /// The text that --dry-run showed, signed elsewhere (see --signature)
    #[arg(
        long,
        value_name = "FILE",
        requires = "signature",
        conflicts_with_all = ["key_id", "tcti", "handle", "key_file", "identity", "spki",
            "destinations", "valid", "id", "dry_run", "offline"]
    )]
    pub text: Option<PathBuf>,
    /// A signature over --text that another program or device made: ECDSA P-256 with SHA-256, DER
    #[arg(long, value_name = "FILE", requires = "text")]
    pub signature: Option<PathBuf>,
}

/// `import`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// What `export` or `grant --offline` wrote; - is stdin
    pub file: PathBuf,
}

/// `export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub selectors: Selectors,
}

/// `revoke`
#[derive(Debug, Args)]
pub struct RevokeArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub selectors: Selectors,
    /// Several selectors: only permissions that match every one
    #[arg(long)]
    pub all_of: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub how: TakeBackArgs,
}

/// `revoke-scope`
#[derive(Debug, Args)]
pub struct RevokeScopeArgs {
    /// A registered key
    pub key_id: String,
    /// What it may delegate no longer, as HOST or HOST:PORT (443 if none)
    #[arg(required = true, value_name = "DEST")]
    pub destinations: Vec<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub how: TakeBackArgs,
}

/// `revoke-key`
#[derive(Debug, Args)]
pub struct RevokeKeyArgs {
    /// A registered key
    pub key_id: String,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub how: TakeBackArgs,
}

/// How something is revoked.
#[derive(Debug, Args)]
pub struct TakeBackArgs {
    /// Don't ask
    #[arg(long)]
    pub yes: bool,
    /// Return when every service at --admin has confirmed that it knows
    #[arg(long, requires = "admin")]
    pub wait: bool,
    /// The admin interfaces of the gateway's services, as HOST:PORT or unix:/PATH
    #[arg(long, num_args = 1.., value_name = "ADDR", requires = "wait")]
    pub admin: Vec<Replica>,
    /// How long to wait for them at most
    #[arg(
        long,
        default_value = "60s",
        value_name = "DURATION",
        requires = "wait"
    )]
    pub timeout: Validity,
}

/// `impact`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct ImpactArgs {
    /// Of `revoke` with these selectors
    #[arg(long, group = "what")]
    pub revoke: bool,
    /// Of `revoke-scope`
    #[arg(long, group = "what", num_args = 2.., value_names = ["KEY_ID", "DEST"])]
    pub revoke_scope: Vec<String>,
    /// Of `revoke-key`
    #[arg(long, group = "what", value_name = "KEY_ID")]
    pub revoke_key: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub selectors: Selectors,
    /// Several selectors: only permissions that match every one
    #[arg(long, requires = "revoke")]
    pub all_of: bool,
}

/// Which permissions are meant: all that is given must match.
#[derive(Debug, Args)]
pub struct Selectors {
    /// The permission of this id
    #[arg(long, value_name = "PERMISSION_ID")]
    pub id: Option<String>,
    /// What this registered key signed
    #[arg(long, value_name = "KEY_ID")]
    pub key: Option<String>,
    /// Those of this agent
    #[arg(long)]
    pub identity: Option<String>,
    /// Those of this agent's key, in any of the forms that `grant` takes
    #[arg(long, value_name = "FILE|HEX")]
    pub spki: Option<String>,
    /// Those to this destination
    #[arg(long, value_name = "DEST")]
    pub destination: Option<String>,
}

impl Selectors {
    /// How many of them are given.
    pub fn given(&self) -> usize {
        let Self {
            id,
            key,
            identity,
            spki,
            destination,
        } = self;
        [id, key, identity, spki, destination]
            .iter()
            .filter(|option| option.is_some())
            .count()
    }
}

/// `list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// What to show
    #[arg(value_enum, default_value_t = Listed::Permissions)]
    pub what: Listed,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub selectors: Selectors,
    /// Only rows in this state
    #[arg(long, value_enum)]
    pub state: Option<State>,
}

/// A row's own state, by the database's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// Within its window
    Active,
    /// Before its window
    NotYetValid,
    /// After its window
    Expired,
    /// Taken back
    Revoked,
}

impl State {
    /// As rows show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::NotYetValid => "not yet valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// What can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Listed {
    /// Principals' keys
    Keys,
    /// What the keys may delegate
    Scopes,
    /// What agents may reach
    Permissions,
}

/// `can-i` and `why`
#[derive(Debug, Args)]
pub struct RequestArgs {
    /// The agent's identity, as in its certificate; case-sensitive
    #[arg(long)]
    pub identity: String,
    /// The agent's key, in any of the forms that `grant` takes
    #[arg(long, value_name = "FILE|HEX")]
    pub spki: String,
    /// Where the agent wants to go, as HOST or HOST:PORT (443 if none)
    #[arg(long, value_name = "DEST")]
    pub destination: String,
    /// At another time than now, as 2026-12-31T23:59:59Z
    #[arg(long, value_name = "TIME")]
    pub at: Option<Timestamp>,
}

/// `show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The id of a permission or of a key
    pub id: String,
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_help_ends_with_examples_that_parse() {
        let mut program = Cli::command();
        program.build();
        let names: Vec<_> = program
            .get_subcommands()
            .filter(|command| command.get_name() != "help")
            .map(clap::Command::clone)
            .collect();
        assert_eq!(names.len(), 13);
        for mut command in names.into_iter().chain([program]) {
            let help = command.render_long_help().to_string();
            let (_, examples) = help.rsplit_once("Example:\n").unwrap();
            let mut seen = 0;
            let commands = examples
                .lines()
                .filter(|line| !line.starts_with("  export "));
            for line in commands {
                Cli::try_parse_from(line.split_whitespace()).unwrap();
                seen += 1;
            }
            assert!(seen > 0, "{help}");
        }
    }
}
