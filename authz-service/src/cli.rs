//! The command line: `serve`, `migrate` and `check-config`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use registry::{MigrateError, OpenError, SchemaError};

use crate::config::{Config, ConfigError};
use crate::serve;
use crate::telemetry;

/// Decides which agent may reach what, from permissions that a principal signed.
#[derive(Debug, Parser)]
#[command(
    name = "agent-gateway-authz",
    version,
    after_help = "Exit status: 0 done, 64 bad usage or configuration, 69 database or port not \
                  available, 70 internal failure, 78 registry schema missing or of another \
                  version.\n\nExample:\n  agent-gateway-authz migrate --config config.toml\n  \
                  agent-gateway-authz serve --config config.toml"
)]
pub struct Cli {
    /// What to do; `serve` if nothing is said.
    #[command(subcommand)]
    command: Option<Command>,
    /// The configuration file
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = "config.toml"
    )]
    config: PathBuf,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Answer Envoy until SIGTERM or Ctrl-C
    Serve,
    /// Bring the registry's schema up to date, as the role that owns its tables
    /// (`AGENT_GATEWAY_MIGRATE_DATABASE_URL`, else the service's own database URL)
    Migrate,
    /// Read the configuration, say what is wrong with it, and stop
    CheckConfig,
}

/// Why the program ends, for its user.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] OpenError),
    /// A migration.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// Anything else.
    #[error(transparent)]
    Serve(#[from] serve::ServeError),
    /// The operating system has no threads for us.
    #[error("can't start: {0}")]
    Runtime(#[from] std::io::Error),
}

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> Result<ExitCode, Failure> {
        let config = Config::load(&self.config)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            match self.command.unwrap_or(Command::Serve) {
                Command::Serve => {
                    let telemetry = telemetry::start(&config.observability)
                        .map_err(serve::ServeError::Telemetry)?;
                    let served = serve::run(&config).await;
                    telemetry.shut_down().await;
                    served?;
                }
                Command::Migrate => migrate(&config).await?,
                Command::CheckConfig => {
                    config.registry()?;
                    serve::prepare(&config)?;
                    println!("{} is valid", self.config.display());
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

async fn migrate(config: &Config) -> Result<(), Failure> {
    let applied = registry::migrate(&config.migrate_url()?).await?;
    for file in &applied {
        println!("applied {file}");
    }
    if applied.is_empty() {
        println!(
            "nothing to do: the registry has schema version {}",
            registry::SCHEMA_VERSION
        );
    }
    Ok(())
}

impl Failure {
    /// Tells the user, on stderr.
    pub fn report(self) -> ExitCode {
        eprintln!("error: {self}");
        eprintln!("hint: {}", self.hint());
        ExitCode::from(self.exit_status())
    }

    /// What clap says about the arguments; `--help` and `--version` are no failure.
    pub fn report_usage(error: &clap::Error) -> ExitCode {
        let printed = error.print();
        match (error.use_stderr(), printed) {
            (false, Ok(())) => ExitCode::SUCCESS,
            _ => ExitCode::from(64),
        }
    }

    fn hint(&self) -> &'static str {
        const MIGRATE: &str = "run `agent-gateway-authz migrate --config …` with the owner's URL in \
                               AGENT_GATEWAY_MIGRATE_DATABASE_URL";
        match self {
            Self::Config(error) => error.hint(),
            Self::Registry(error) | Self::Migrate(MigrateError::Open(error)) => match error {
                OpenError::BadUrl => "it looks like postgres://user:password@host:5432/database",
                OpenError::TimedOut(_) | OpenError::Unreachable(_) => {
                    "is Postgres running there, and does the role exist with that password"
                }
                OpenError::Schema(error) => Self::schema_hint(error, MIGRATE),
            },
            Self::Migrate(MigrateError::Schema(error)) => Self::schema_hint(error, MIGRATE),
            Self::Migrate(MigrateError::Failed { .. }) => {
                "nothing of that file was kept; the role must own the database or its schema"
            }
            Self::Serve(error) => error.hint(),
            Self::Runtime(_) => "the system refused a thread or a file descriptor",
        }
    }

    fn schema_hint(error: &SchemaError, migrate: &'static str) -> &'static str {
        match error {
            SchemaError::Missing | SchemaError::Older { .. } => migrate,
            SchemaError::Newer { .. } => {
                "run the version of this program that made it, or a newer one"
            }
            SchemaError::Unreadable(_) => {
                "the role needs SELECT there: GRANT agent_gateway_reader TO it"
            }
        }
    }

    /// As in sysexits.h: 64 usage, 69 unavailable, 70 software, 78 configuration.
    fn exit_status(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Serve(serve::ServeError::Dns(_)) => 64,
            Self::Registry(OpenError::Schema(_)) | Self::Migrate(MigrateError::Schema(_)) => 78,
            Self::Registry(_) | Self::Migrate(_) | Self::Serve(serve::ServeError::Bind { .. }) => {
                69
            }
            Self::Serve(serve::ServeError::Registry(error)) => match error {
                OpenError::Schema(_) => 78,
                _ => 69,
            },
            Self::Serve(_) | Self::Runtime(_) => 70,
        }
    }
}
