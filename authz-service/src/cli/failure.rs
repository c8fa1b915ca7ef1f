//! Why the program ends: the message, the hint and the exit status.

use std::process::ExitCode;

use registry::{MigrateError, OpenError, SchemaError};

use crate::audit::AuditFileError;
use crate::config::ConfigError;
use crate::connections::SocketError;
use crate::serve::ServeError;

/// Why the program ends, for its user.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A migration.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// The service.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The operating system has no threads for us.
    #[error("can't start: {0}")]
    Runtime(#[from] std::io::Error),
}

/// As in sysexits.h.
const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
const SOFTWARE: u8 = 70;
const CONFIG: u8 = 78;

impl Failure {
    /// Tells the user, on stderr.
    pub fn report(self) -> ExitCode {
        eprintln!("error: {self}");
        let (status, hint) = self.verdict();
        eprintln!("hint: {hint}");
        ExitCode::from(status)
    }

    /// What clap says about the arguments; `--help` and `--version` are no failure.
    pub fn report_usage(error: &clap::Error) -> ExitCode {
        let printed = error.print();
        match (error.use_stderr(), printed) {
            (false, Ok(())) => ExitCode::SUCCESS,
            _ => ExitCode::from(USAGE),
        }
    }

    /// The exit status, and what to do about it.
    fn verdict(&self) -> (u8, &'static str) {
        match self {
            Self::Config(error) | Self::Serve(ServeError::Config(error)) => (USAGE, error.hint()),
            Self::Migrate(MigrateError::Open(error))
            | Self::Serve(ServeError::Registry(error) | ServeError::Nonces(error)) => {
                registry(error)
            }
            Self::Migrate(MigrateError::Schema(error)) => (CONFIG, schema_hint(error)),
            Self::Migrate(MigrateError::Failed { .. }) => (
                UNAVAILABLE,
                "nothing of that file was kept; the role must own the database or its schema",
            ),
            Self::Serve(ServeError::Dns(_)) => (USAGE, "see [dns] in config.example.toml"),
            Self::Serve(ServeError::Rules(_) | ServeError::Opa(_)) => (
                USAGE,
                "see [relay] in config.example.toml, and docs/relay.md",
            ),
            Self::Serve(ServeError::Telemetry(_)) => {
                (USAGE, "see [observability] in config.example.toml")
            }
            Self::Serve(ServeError::Bind { .. }) => {
                (UNAVAILABLE, "another process may have it: `ss -ltnp` tells")
            }
            Self::Serve(ServeError::Socket { source, .. }) => socket(source),
            Self::Serve(ServeError::Inherited(_)) => (
                USAGE,
                "let the socket unit listen where [server] and [admin] say, and nowhere else",
            ),
            Self::Serve(ServeError::Tls(_)) => (USAGE, "see [server.tls] in config.example.toml"),
            Self::Serve(ServeError::Audit(error)) => audit(error),
            Self::Serve(
                ServeError::Reflection(_) | ServeError::Listener(_) | ServeError::Io(_),
            ) => (SOFTWARE, "the log has more"),
            Self::Runtime(_) => (SOFTWARE, "the system refused a thread or a file descriptor"),
        }
    }
}

fn socket(error: &SocketError) -> (u8, &'static str) {
    match error {
        SocketError::UnsafeFolder(_) => (
            USAGE,
            "put it into a folder of the service's own user, mode 0700 or 0750",
        ),
        SocketError::Exposed { .. } => (
            USAGE,
            "let SocketMode= in its socket unit be 0600, or what the configuration says",
        ),
        SocketError::NotASocket(_) => (USAGE, "name a path that is free"),
        SocketError::InUse(_) => (UNAVAILABLE, "each process needs a socket of its own"),
        SocketError::Io { .. } => (
            UNAVAILABLE,
            "its folder must exist, and this user must be able to write there",
        ),
    }
}

fn audit(error: &AuditFileError) -> (u8, &'static str) {
    match error {
        AuditFileError::InUse(_) => (UNAVAILABLE, "each process needs an audit.path of its own"),
        AuditFileError::NotAnAudit(_) => (
            UNAVAILABLE,
            "keep it for `agent-gateway-registry audit verify`, and move it away: a new chain begins",
        ),
        AuditFileError::Io { .. } => (
            UNAVAILABLE,
            "the folder of audit.path must exist, with space, and this user must be able to write there",
        ),
    }
}

fn registry(error: &OpenError) -> (u8, &'static str) {
    match error {
        OpenError::BadUrl => (
            USAGE,
            "it looks like postgres://user:password@host:5432/database",
        ),
        OpenError::TimedOut(_) | OpenError::Unreachable(_) => (
            UNAVAILABLE,
            "is Postgres running there, and does the role exist with that password",
        ),
        OpenError::Schema(error) => (CONFIG, schema_hint(error)),
        OpenError::OtherRegistry { .. } => (
            USAGE,
            "check the database url and policy.registry_id; `agent-gateway-registry root show` \
             tells the id",
        ),
        OpenError::NoRight(_) => (
            CONFIG,
            "let its login role become a member of the one it needs: GRANT agent_gateway_relay TO …",
        ),
    }
}

fn schema_hint(error: &SchemaError) -> &'static str {
    match error {
        SchemaError::Missing | SchemaError::Older { .. } => {
            "run `agent-gateway-authz migrate --config …` with the owner's URL in \
             AGENT_GATEWAY_MIGRATE_DATABASE_URL"
        }
        SchemaError::Newer { .. } => "run the version of this program that made it, or a newer one",
        SchemaError::Unreadable(_) => {
            "the role needs SELECT there: GRANT agent_gateway_reader TO it"
        }
    }
}
