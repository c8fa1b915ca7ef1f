//! Measures Checks against an empty gRPC service, side by side in one run.
//!
//! Machines differ and are noisy, so what counts are ratios: both services are asked in turn
//! (A B A B …), and each round gives one ratio. The empty service against itself, in the same
//! way, shows how much of a difference is noise.

#![forbid(unsafe_code)]

mod empty;
mod load;
mod population;
mod report;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::{Parser, Subcommand};
use testbed::{Authz, AuthzOptions, Process, authz, binary, database, port};

use load::Measured;
use population::Population;
use report::Report;

/// Benchmarks of the decision point; prints a table, and writes the same as JSON.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// Rounds of each comparison
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Checks in each round
    #[arg(long, default_value_t = 10_000)]
    checks: usize,
    /// Permissions in the registry
    #[arg(long, default_value_t = 10_000)]
    permissions: usize,
    /// Where the JSON goes
    #[arg(long, default_value = "target/bench.json")]
    output: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Be the empty service, on this port
    Empty {
        /// Of 127.0.0.1
        port: u16,
    },
}

/// Checks in flight at a time.
const CONCURRENCY: [usize; 3] = [1, 16, 64];

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Part::Empty { port }) = arguments.part {
        return empty::serve(port).await;
    }

    eprintln!(
        "filling the registry with {} permissions",
        arguments.permissions
    );
    let database = database().await?;
    authz::migrate(&database.url())?;
    let population = Population::fill(&database, arguments.permissions)?;
    let mut ours = Authz::start(&AuthzOptions {
        database_url: database.url(),
        hosts: population.hosts(),
        private: population.private(),
        environment: vec![(
            "AGENT_GATEWAY__OBSERVABILITY__LOG_LEVEL".to_owned(),
            "warn".to_owned(),
        )],
        ..AuthzOptions::default()
    })?;
    let empty_port = port::free_port()?;
    let mut command = Command::new(binary::path("agent-gateway-bench")?);
    command.args(["empty", &empty_port.to_string()]);
    let mut empty = Process::start("empty", &command)?;
    let empty_addr = ([127, 0, 0, 1], empty_port).into();
    empty.wait_for_port(empty_addr)?;

    let requests = population.requests();
    let ours_addr = ours.grpc_addr();
    let (empty_id, ours_id) = (empty.id(), ours.process().id());
    let mut report = Report::new(&arguments.output);
    for concurrency in CONCURRENCY {
        let count = if concurrency == 1 {
            arguments.checks / 10
        } else {
            arguments.checks
        };
        let run = async |address, id| load::run(address, id, &requests, count, concurrency).await;
        run(ours_addr, ours_id).await?;
        run(empty_addr, empty_id).await?;
        let mut rounds: Vec<[Measured; 3]> = Vec::new();
        for round in 0..arguments.rounds {
            eprint!(
                "\rconcurrency {concurrency}: round {} of {} ",
                round + 1,
                arguments.rounds
            );
            rounds.push([
                run(empty_addr, empty_id).await?,
                run(ours_addr, ours_id).await?,
                run(empty_addr, empty_id).await?,
            ]);
        }
        eprintln!();
        report.add(concurrency, &rounds);
    }
    report.finish()
}
