//! What is looked at, and which rows of it.

use clap::{Args, ValueEnum};
use permission::Timestamp;

use super::KeyArgs;
use crate::replicas::Replica;
use crate::validity::Validity;

/// Which permissions are meant: all that is given must match.
#[derive(Debug, Args)]
pub struct Selectors {
    /// That of this id
    #[arg(long, value_name = "ID")]
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
    /// Those with this key, in any of the forms that `grant-poca-key` takes (poca-keys)
    #[arg(long, value_name = "FILE|BASE64")]
    pub public_key: Option<String>,
    /// Only rows in this state
    #[arg(long, value_enum)]
    pub state: Option<State>,
    /// The admin interfaces of the gateway's services, as HOST:PORT or unix:/PATH (tunnels)
    #[arg(long, num_args = 1.., value_name = "ADDR")]
    pub admin: Vec<Replica>,
}

/// `doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub key: KeyArgs,
    /// Count what ends within this time as about to expire
    #[arg(long, default_value = "7d", value_name = "DURATION")]
    pub within: Validity,
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
    /// It could count, but no trust root has signed it (keys and scopes, with --trust-root)
    Untrusted,
}

impl State {
    /// As rows show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::NotYetValid => "not yet valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Untrusted => "untrusted",
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
    /// Agents' keys for proofs of context
    PocaKeys,
    /// What the gateway's services hold open now; they are asked at --admin
    Tunnels,
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
    /// The id of a permission, a PoCA key or a key
    pub id: String,
}
