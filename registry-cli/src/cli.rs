//! The command line.
//!
//! What the registry's rules must judge (ids, identities, destinations, keys) is taken as text
//! here: a bad one is bad data, not wrong usage, and has another exit status.

#![expect(
    clippy::doc_markdown,
    reason = "the comments are the help text, in which backticks would show"
)]

mod audits;
mod database_url;
mod grants;
mod listings;
mod revocations;
mod roots;

use clap::{Parser, Subcommand};

pub use self::audits::{AuditArgs, AuditCommand, AuditHeadArgs, AuditVerifyArgs};
pub use self::database_url::DatabaseUrl;
pub use self::grants::{
    ExportArgs, GrantArgs, GrantPocaKeyArgs, GrantScopeArgs, ImportArgs, KeyArgs, NewKeyArgs,
    RegisterKeyArgs, RotateKeyArgs, SigningArgs,
};
pub use self::listings::{DoctorArgs, ListArgs, Listed, RequestArgs, Selectors, ShowArgs, State};
pub use self::revocations::{
    ImpactArgs, PocaKeySelectors, RevokeArgs, RevokeKeyArgs, RevokePocaKeyArgs, RevokeScopeArgs,
    TakeBackArgs,
};
pub use self::roots::{RootCommand, RootInitArgs, RootKeyArgs, RootSignArgs, TrustArgs};

const ENVIRONMENT: &str = "\
Environment:
  AGENT_GATEWAY_DATABASE_URL  the registry, as postgres://user:password@host:5432/database
                              (else DATABASE_URL), where --database-url is not given
  AGENT_GATEWAY_TCTI          the TPM, where --tcti is not given
  AGENT_GATEWAY_TPM_USER_PIN  the PIN of the key in the TPM, if it has one; at a terminal you
                              are asked for what is not set
  AGENT_GATEWAY_TPM_SO_PIN    the PIN of the TPM's owner hierarchy, if it has one: without it
                              no key is made
  AGENT_GATEWAY_TRUST_ROOTS   the roots of trust, where no --trust-root is given
  AGENT_GATEWAY_REGISTRY_ID   the registry's id, where --registry-id is not given";

const EXIT_STATUS: &str = "\
Exit status:
   0  done
   1  no (can-i), a bad row (verify) or record (audit verify), a failed check (doctor),
      nothing matched (revoke, show), or not agreed to
  64  wrong usage, or no usable database url
  65  bad data: a public key, identity or destination that is none, or a grant that the
      registry's keys and scopes don't bear out
  66  a file, or the key in the TPM, is not there
  67  the PIN of the key, or of the TPM's owner, is missing or wrong
  68  the TPM is locked after too many wrong PINs
  69  database or TPM not available
  70  internal failure
  73  can't create: the key or its id is registered already, or a file can't be written
  74  the result could not be written to stdout
  75  done, but not confirmed by the gateway's services in time (--wait)
  77  not permitted: the database role may only read, or a key file is not yours alone
  78  registry schema missing, unreadable or of another version
 130  interrupted by Ctrl-C: what was not finished is not done";

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
    /// The registry, instead of the environment's. A password in it can be seen by other users of
    /// the machine
    #[arg(long, global = true, value_name = "URL")]
    pub database_url: Option<DatabaseUrl>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub trust: TrustArgs,
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
    /// Sign an agent's key for proofs of context (PoCA): its tool calls may be proven under it
    ///
    /// It counts for the tools that the signing key may delegate at the time of the call, and opens
    /// nothing by itself: a call needs the agent's permission too.
    #[command(after_help = "\
Example:
  agent-gateway-registry grant-poca-key --key org-alice --identity agent-alpha --public-key poca.pub --destination echo:8081 --valid 30d
  agent-gateway-registry grant-poca-key --text poca-key.txt --signature poca-key.sig")]
    GrantPocaKey(GrantPocaKeyArgs),
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
    /// Revoke agents' keys for proofs of context that match
    ///
    /// Shows what matches and asks; then revokes all of it in one transaction, or nothing.
    #[command(after_help = "\
Example:
  agent-gateway-registry revoke-poca-key --identity agent-alpha
  agent-gateway-registry revoke-poca-key --id poca-1 --yes --wait --admin 127.0.0.1:9002")]
    RevokePocaKey(RevokePocaKeyArgs),
    /// Let a new key take over an old one's scopes and sign again what that one signed
    ///
    /// Shows first what it will do, and asks. Both keys count until the old one ends.
    #[command(after_help = "\
Example:
  agent-gateway-registry rotate-key org-alice org-alice-2 --handle 0x81010011 --old-ends-in 7d")]
    RotateKey(RotateKeyArgs),
    /// Show who would lose what by a revocation; nothing is changed
    #[command(after_help = "\
Example:
  agent-gateway-registry impact --revoke --identity agent-alpha
  agent-gateway-registry impact --revoke-scope org-alice docstore
  agent-gateway-registry impact --revoke-key org-alice
  agent-gateway-registry impact --revoke-poca-key poca-1")]
    Impact(ImpactArgs),
    /// Show what stands in the registry
    ///
    /// The state is that of the row itself, by the database's clock. A permission also needs an
    /// active key and scope, and a signature that verifies.
    #[command(after_help = "\
Example:
  agent-gateway-registry list permissions --identity agent-alpha --state active --json
  agent-gateway-registry list tunnels --admin 127.0.0.1:9002")]
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
    /// Show all about a permission, an agent's key for proofs of context, or a key
    #[command(after_help = "\
Example:
  agent-gateway-registry show perm-7d0c6f0e-4a0b-4f5e-9d57-0f2b8a1c3e55")]
    Show(ShowArgs),
    /// Store signed rows from a file, all of them or none
    ///
    /// Every line's signature is verified, and what could not be used is refused, by its line. A row
    /// that is there already is left as it is, also if it was revoked.
    #[command(after_help = "\
Example:
  agent-gateway-registry import permissions.jsonl")]
    Import(ImportArgs),
    /// Write signed permissions, and agents' keys for proofs of context, as lines of JSON
    #[command(after_help = "\
Example:
  agent-gateway-registry export --identity agent-alpha")]
    Export(ExportArgs),
    /// Check every row's signature, scope and window, and name each bad one
    ///
    /// Rows that have ended or were revoked must still bear the signature of their key. With
    /// --json each line is an object, the last one the count.
    #[command(after_help = "\
Exit status 1 if there is a bad row.

Example:
  agent-gateway-registry verify")]
    Verify,
    /// Roots of trust: make one, sign keys and scopes with it, see what it has not signed
    ///
    /// Where a service has policy.trust_roots, a key or scope counts only as one of them signed it.
    #[command(
        subcommand,
        after_help = "\
Example:
  agent-gateway-registry root init --root-handle 0x81010020 --public root.pub
  agent-gateway-registry root sign --root-handle 0x81010020"
    )]
    Root(RootCommand),
    /// Hold the gateway's audit files against their chain
    #[command(after_help = "\
Exit status 1 if there is a bad record.

Example:
  agent-gateway-registry audit verify /var/log/agent-gateway/audit-0000000000000001.jsonl /var/log/agent-gateway/audit.jsonl
  agent-gateway-registry audit head /var/log/agent-gateway/audit.jsonl")]
    Audit(AuditArgs),
    /// Check the database, the role, the clock, the key, and what is about to expire
    #[command(after_help = "\
Exit status 1 if anything has failed.

Example:
  agent-gateway-registry doctor")]
    Doctor(DoctorArgs),
}

impl Command {
    /// Whether the command talks with the TPM.
    pub fn uses_tpm(&self) -> bool {
        match self {
            Command::RegisterKey(RegisterKeyArgs {
                key,
                public_key,
                root,
                ..
            }) => {
                (key.place.key_file.is_none() && public_key.is_none()) || root.root_handle.is_some()
            }
            Command::GrantScope(GrantScopeArgs { root, .. })
            | Command::Root(
                RootCommand::Init(RootInitArgs { root, .. })
                | RootCommand::Sign(RootSignArgs { root, .. }),
            ) => root.root_handle.is_some(),
            Command::Doctor(DoctorArgs { key, .. }) => key.key_file.is_none(),
            Command::RotateKey(RotateKeyArgs { key, root, .. }) => {
                key.place.key_file.is_none() || root.root_handle.is_some()
            }
            Command::Grant(GrantArgs { signing, .. })
            | Command::GrantPocaKey(GrantPocaKeyArgs { signing, .. }) => {
                signing.key.key_file.is_none() && signing.text.is_none()
            }
            Command::Revoke(_)
            | Command::RevokePocaKey(_)
            | Command::Root(RootCommand::Show)
            | Command::RevokeScope(_)
            | Command::RevokeKey(_)
            | Command::Impact(_)
            | Command::List(_)
            | Command::CanI(_)
            | Command::Why(_)
            | Command::Show(_)
            | Command::Import(_)
            | Command::Export(_)
            | Command::Audit(_)
            | Command::Verify => false,
        }
    }
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
        assert_eq!(names.len(), 20);
        let root = names.iter().find(|command| command.get_name() == "root");
        let roots: Vec<_> = root
            .unwrap()
            .get_subcommands()
            .filter(|command| command.get_name() != "help")
            .map(clap::Command::clone)
            .collect();
        assert_eq!(roots.len(), 3);
        for mut command in names.into_iter().chain(roots).chain([program]) {
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
