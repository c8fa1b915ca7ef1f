//! What is wrong with a configuration, told without repeating what it says: that may be a secret.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use figment::error::Kind;
use permission::{KeyError, TextError, TrustRootsError};

use super::ENVIRONMENT;
use super::relay::{EXISTING_ENVIRONMENT, EXISTING_NAMES};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such file.
    #[error("{} can't be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// Wrong type, unknown key, …
    #[error("{0}")]
    Invalid(String),
    /// A key of the existing gateway whose job is Envoy's now.
    #[error("[server] {0} has moved: Envoy listens for agents and terminates TLS")]
    Moved(&'static str),
    /// `database_url_env` names a variable that isn't set.
    #[error("environment variable {0}, named by policy.database_url_env, is not set")]
    NoSuchVariable(String),
    /// Nowhere to read permissions from.
    #[error("no database: neither policy.database_url nor policy.database_url_env is set")]
    NoDatabase,
    /// Anybody on the network could ask.
    #[error("server.grpc_addr {0} is not a loopback address, and there is no [server.tls]")]
    ServerNotLoopback(SocketAddr),
    /// Anybody on the network could look, and decide by hand.
    #[error("admin.grpc_addr {0} is not a loopback address, and this listener has no mTLS")]
    AdminNotLoopback(SocketAddr),
    /// The socket's mode says who may connect; certificates would be asked of nobody.
    #[error("server.socket takes the place of server.grpc_addr, and [server.tls] is for that")]
    SocketWithTls,
    /// A name that no certificate has.
    #[error("server.tls.client_names holds an empty name")]
    EmptyClientName,
    /// Tool calls would be let through unjudged, or none ever.
    #[error("relay.tools_file or relay.tool_urls is set, and {0}")]
    RelayIncomplete(&'static str),
    /// The built-in profile, whose meaning everything else rests on.
    #[error("profiles.tunnel is built in, and can't be another")]
    TunnelIsBuiltIn,
    /// `policy.profile` names none.
    #[error("policy.profile {0} is not configured")]
    NoSuchProfile(String),
    /// A tunnel goes where the judged address is, or nowhere.
    #[error("profiles.{0}.resolve is false, and it carries tunnels")]
    TunnelNotResolved(String),
    /// No request could be allowed.
    #[error("profiles.{0}.ports holds no port, or 0")]
    NoPorts(String),
    /// A path that depends on where the service is started.
    #[error("{0} must be an absolute path")]
    NotAbsolute(&'static str),
    /// A name that can't be one.
    #[error("{0} must be a short text without control characters")]
    NoName(&'static str),
    /// Roots without a registry, or a registry without roots: either way it is not what was meant.
    #[error("policy.trust_roots and policy.registry_id must be set together")]
    HalfTrust,
    /// Not a root's public key.
    #[error("policy.trust_roots: entry {entry} {fault}")]
    TrustRoot {
        /// Which one, counted from 1.
        entry: usize,
        /// Why.
        fault: TrustRootFault,
    },
    /// None of them alone is at fault.
    #[error("policy.trust_roots: {0}")]
    TrustRoots(#[from] TrustRootsError),
    /// No id that could be signed.
    #[error("policy.registry_id {0}")]
    RegistryId(#[from] TextError),
    /// Zero, or so large that it bounds nothing.
    #[error("{key} must be from 1 to {max}")]
    OutOfRange {
        /// Which key.
        key: &'static str,
        /// The largest value.
        max: u64,
    },
    /// Shorter than what it waits for.
    #[error("{key} must not be shorter than {than}")]
    TooShort {
        /// Which key.
        key: &'static str,
        /// What it is measured by.
        than: &'static str,
    },
}

/// Why an entry of `policy.trust_roots` is no root's public key.
#[derive(Debug, thiserror::Error)]
pub enum TrustRootFault {
    /// Not PEM, not hex, and no file whatever the working folder is.
    #[error("is neither a PEM public key, nor hex digits, nor an absolute path")]
    NeitherKeyNorPath,
    /// A path, but no file there that can be read.
    #[error("can't be read: {0}")]
    Unreadable(#[source] std::io::Error),
    /// Whoever may write it could make itself a root.
    #[error("is a file that others than its owner may write")]
    Exposed,
    /// Another kind of key, or none.
    #[error("is no P-256 public key: {0}")]
    NotAKey(#[source] KeyError),
}

impl ConfigError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "copy config.example.toml and point --config at the copy",
            Self::Invalid(_) => "config.example.toml lists every key with its default",
            Self::Moved(_) => {
                "set the address and the certificate in envoy/envoy.yaml, and remove this key"
            }
            Self::NoSuchVariable(_) => "export it, as postgres://user:password@host/database",
            Self::NoDatabase => {
                "set policy.database_url_env to the name of a variable with the URL"
            }
            Self::ServerNotLoopback(_) => {
                "listen on 127.0.0.1 or [::1], on Envoy's machine, or set up mTLS in [server.tls]"
            }
            Self::AdminNotLoopback(_) => {
                "listen on 127.0.0.1 or [::1], and come there by ssh or `kubectl port-forward`"
            }
            Self::SocketWithTls => "leave out one of them",
            Self::EmptyClientName => "leave client_names out to take whomever the CA vouches for",
            Self::RelayIncomplete(_) => "see [relay] in config.example.toml, and docs/relay.md",
            Self::TunnelIsBuiltIn => "give it another name, and set policy.profile to that",
            Self::NoSuchProfile(_) => "add a section [profiles.NAME], or leave policy.profile out",
            Self::TunnelNotResolved(_) => "leave resolve out, or set requests = \"http\"",
            Self::NoPorts(_) => "list the ports that are served there, such as [443]",
            Self::NotAbsolute(_) => "write it from / on, or leave the key out",
            Self::NoName(_) => "leave it out, and the host name is taken",
            Self::HalfTrust => "`agent-gateway-registry root show` prints both",
            Self::TrustRoot { .. } | Self::TrustRoots(_) => {
                "give each root's public key once, as `agent-gateway-registry root show` prints it"
            }
            Self::RegistryId(_) => "take it as `agent-gateway-registry root show` prints it",
            Self::TooShort { .. } => {
                "what is too old by the time it was read would be read again and again"
            }
            Self::OutOfRange { .. } => "config.example.toml shows the default",
        }
    }

    /// Names each key that is at fault as the operator wrote it.
    pub(super) fn invalid(file: &Path, error: figment::Error) -> Self {
        let faults = error.into_iter().map(|fault| {
            let from_environment = fault
                .metadata
                .as_ref()
                .is_some_and(|source| source.name.contains(ENVIRONMENT));
            let existing = existing_names(&fault);
            let place = if !existing.is_empty() {
                existing.join(" or ")
            } else if from_environment {
                format!("{ENVIRONMENT}{}", fault.path.join("__")).to_ascii_uppercase()
            } else if fault.path.is_empty() {
                file.display().to_string()
            } else {
                format!("{}: {}", file.display(), fault.path.join("."))
            };
            format!("{place}: {}", told(&fault.kind))
        });
        Self::Invalid(faults.collect::<Vec<_>>().join("; "))
    }
}

/// The existing gateway's variables that the fault may be in, if it came from one: of a table of
/// texts only the table's key is known.
fn existing_names(fault: &figment::Error) -> Vec<&'static str> {
    let source = fault.metadata.as_ref();
    if source.is_none_or(|source| source.name != EXISTING_ENVIRONMENT) {
        return Vec::new();
    }
    let key = fault.path.join(".");
    let within = |ours: &str| {
        ours.strip_prefix(&*key)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let names = EXISTING_NAMES.iter().filter(|(_, ours)| within(ours));
    names.map(|(name, _)| *name).collect()
}

fn told(kind: &Kind) -> String {
    match kind {
        Kind::UnknownField(_, known) => format!("unknown key, known are {}", known.join(", ")),
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            format!("expected {expected}")
        }
        Kind::Message(text) => {
            // The parser quotes the faulty line, behind a rule.
            let is_quote = |line: &str| {
                let number = |c: char| c.is_ascii_digit() || c == ' ';
                line.trim_start_matches(number).starts_with('|')
            };
            let lines = text.lines().filter(|line| !is_quote(line));
            lines.collect::<Vec<_>>().join(": ")
        }
        other => other.to_string(),
    }
}
