//! The command line: `serve`, `migrate` and `check-config`.

mod failure;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use listeners::Inherited;

use crate::config::Config;
use crate::serve::{self, ServeError};
use crate::telemetry;

pub use failure::Failure;

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

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> Result<ExitCode, Failure> {
        // The process has a single thread up to here.
        let inherited = Inherited::from_env().map_err(ServeError::Inherited)?;
        let config = Config::load(&self.config)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let done = runtime.block_on(async {
            match self.command.unwrap_or(Command::Serve) {
                Command::Serve => {
                    let telemetry =
                        telemetry::start(&config.observability).map_err(ServeError::Telemetry)?;
                    let served = serve::run(&config, inherited).await;
                    telemetry.shut_down().await;
                    served?;
                }
                Command::Migrate => migrate(&config).await?,
                Command::CheckConfig => {
                    config.registry()?.check().map_err(ServeError::Registry)?;
                    serve::prepare(&config)?;
                    serve::tls(&config).map_err(ServeError::Tls)?;
                    serve::check_rules(&config)?;
                    telemetry::check(&config.observability).map_err(ServeError::Telemetry)?;
                    println!("{} is valid", self.config.display());
                }
            }
            Ok(ExitCode::SUCCESS)
        });
        // A system call that never returns (the name of the database host, say) holds nobody up.
        runtime.shutdown_background();
        done
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
