//! What is taken back, and how.

use clap::Args;

use super::Selectors;
use crate::replicas::Replica;
use crate::validity::Validity;

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

/// `revoke-poca-key`
#[derive(Debug, Args)]
pub struct RevokePocaKeyArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub selectors: PocaKeySelectors,
    /// Several selectors: only keys that match every one
    #[arg(long)]
    pub all_of: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub how: TakeBackArgs,
}

/// Which agents' keys for proofs of context are meant: all that is given must match.
#[derive(Debug, Args)]
pub struct PocaKeySelectors {
    /// The row of this id
    #[arg(long, value_name = "POCA_KEY_ID")]
    pub id: Option<String>,
    /// What this registered key signed
    #[arg(long, value_name = "KEY_ID")]
    pub key: Option<String>,
    /// Those of this agent
    #[arg(long)]
    pub identity: Option<String>,
    /// Those with this key, in any of the forms that `grant-poca-key` takes
    #[arg(long, value_name = "FILE|BASE64")]
    pub public_key: Option<String>,
}

impl PocaKeySelectors {
    /// How many of them are given.
    pub fn given(&self) -> usize {
        let Self {
            id,
            key,
            identity,
            public_key,
        } = self;
        [id, key, identity, public_key]
            .iter()
            .filter(|option| option.is_some())
            .count()
    }
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
    /// Of `revoke-poca-key` with this --id
    #[arg(long, group = "what", value_name = "POCA_KEY_ID")]
    pub revoke_poca_key: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub selectors: Selectors,
    /// Several selectors: only permissions that match every one
    #[arg(long, requires = "revoke")]
    pub all_of: bool,
}
