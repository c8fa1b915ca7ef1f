//! Measures the gateway: Checks about tunnels and tool calls beside an empty gRPC service, tunnels
//! beside the same path without authorization, and how soon a revocation is felt.
//!
//! Machines differ and are noisy, so what counts are ratios: what is compared is measured in turn
//! (A B A B …), each round gives one ratio, and the median of them is the result. The base against
//! itself, in the same rounds, shows how much of a difference is noise.

#![forbid(unsafe_code)]

mod checks;
mod empty;
mod load;
mod memory;
mod opa;
mod population;
mod question;
mod relay;
mod report;
mod statistics;
mod tunnels;
mod usage;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

use checks::Service;
use report::Report;
use tunnels::{FarEnd, Gateway, Lane};

/// Benchmarks of the gateway; prints a table, and writes the same as JSON.
#[derive(Debug, Parser)]
#[command(after_help = "example: agent-gateway-bench --short checks")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Fewer rounds, Checks, tunnels and permissions: done within two minutes
    #[arg(long)]
    short: bool,
    /// Permissions where there are many [default: 1000000, short: 30000]
    #[arg(long)]
    permissions: Option<usize>,
    /// Where the JSON goes
    #[arg(long, default_value = "target/bench.json")]
    output: PathBuf,
    /// What is measured [default: all]
    #[arg(value_enum)]
    parts: Vec<Part>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be the empty service
    #[command(hide = true)]
    Empty {
        /// Of 127.0.0.1
        port: u16,
        /// Of each answer
        bytes: usize,
    },
    /// Be a policy server that says yes
    #[command(hide = true)]
    Opa {
        /// Of 127.0.0.1
        port: u16,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Checks that are answered from memory
    Warm,
    /// Checks of which half are denied
    Mixed,
    /// Checks from memory whose decisions are recorded
    Audit,
    /// Checks that need the registry
    Misses,
    /// Start and memory, with many permissions
    Memory,
    /// Tool calls, with all that is decided about them
    Relay,
    /// Set-ups and throughput of tunnels
    Tunnels,
    /// From a revocation to what agents see of it
    Revocation,
}

/// Those that need registries with many permissions.
const OF_CHECKS: [Part; 5] = [
    Part::Warm,
    Part::Mixed,
    Part::Audit,
    Part::Misses,
    Part::Memory,
];

/// How much is done.
#[derive(Debug, Clone, Copy)]
struct Effort {
    short: bool,
    permissions: usize,
}

impl Effort {
    fn rounds(self) -> usize {
        if self.short { 3 } else { 7 }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Empty { port, bytes }) => return empty::serve(port, bytes).await,
        Some(Command::Opa { port }) => return opa::serve(port).await,
        None => {}
    }
    let many = if arguments.short { 30_000 } else { 1_000_000 };
    let effort = Effort {
        short: arguments.short,
        permissions: arguments.permissions.unwrap_or(many),
    };
    let mut report = Report::default();
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    let processors = std::thread::available_parallelism()?;
    report.note(format!(
        "{processors} processors; the load before it began was {load}"
    ));
    let measured = measure(&arguments.parts, effort, &mut report).await;
    // What was measured is told, whatever came in between.
    report.finish(&arguments.output)?;
    measured
}

/// Goes on with the other parts where one fails.
async fn measure(parts: &[Part], effort: Effort, report: &mut Report) -> Result<()> {
    let wanted = |part| parts.is_empty() || parts.contains(&part);
    let any = |parts: &[Part]| parts.iter().copied().any(wanted);
    let mut failed = None;
    if any(&OF_CHECKS) {
        report.note(
            "checks: the service as shipped, its log (info) into a file; every answer was \
             compared (allowed by this permission, or denied for this reason)"
                .to_owned(),
        );
        let (mut small, mut large) = registries(effort).await?;
        for part in OF_CHECKS {
            if wanted(part) {
                let done = of_checks(part, effort, &mut small, &mut large, report).await;
                failed = failed.or(done.err());
            }
        }
        if failed.is_some() {
            small.tell_complaints();
            large.tell_complaints();
        }
    }
    if wanted(Part::Relay) {
        failed = failed.or(relay::measure(effort, report).await.err());
    }
    if any(&[Part::Revocation, Part::Tunnels]) {
        let far_end = FarEnd::start().await?;
        let mut gateway = Gateway::start(far_end.address()).await?;
        // Revocation first, while the service has held no tunnel.
        for part in [Part::Revocation, Part::Tunnels] {
            if wanted(part) {
                let done = of_tunnels(part, effort, &far_end, &mut gateway, report).await;
                failed = failed.or(done.err());
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Services before a registry with as many permissions as are asked about, and one with many more.
async fn registries(effort: Effort) -> Result<(Service, Service)> {
    let small = Service::start(checks::WARM).await?;
    Ok((small, Service::start(effort.permissions).await?))
}

async fn of_checks(
    part: Part,
    effort: Effort,
    small: &mut Service,
    large: &mut Service,
    report: &mut Report,
) -> Result<()> {
    match part {
        Part::Warm => checks::warm::measure(small, large, effort, report).await,
        Part::Mixed => checks::mixed::measure(small, effort, report).await,
        Part::Audit => checks::audited::measure(small, effort, report).await,
        Part::Misses => checks::misses::measure(large, effort, report).await,
        _ => {
            memory::start(large, effort, report).await?;
            memory::cached(large, report).await
        }
    }
}

async fn of_tunnels(
    part: Part,
    effort: Effort,
    far_end: &FarEnd,
    gateway: &mut Gateway,
    report: &mut Report,
) -> Result<()> {
    if part == Part::Revocation {
        tunnels::revoked::cut(gateway, effort, report).await?;
        return tunnels::revoked::refused(gateway, effort, report).await;
    }
    let (with, without) = (&gateway.lane, Lane::unauthorized(far_end.address()).await?);
    tunnels::set_ups(with, &without, effort, report).await?;
    tunnels::throughput::measure(far_end, with, &without, effort, report).await?;
    tunnels::throughput::stalled(far_end, with, effort, report).await?;
    // Last: a thousand tunnels that end at once keep everybody busy for a while.
    tunnels::at_once(with, effort, report).await
}
