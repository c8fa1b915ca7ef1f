//! `agent-gateway-registry`: principals register their keys, say what a key may delegate, and
//! sign permissions; admins revoke and list them.
//!
//! Every command reads its arguments in full before it touches the database, and the database
//! before it touches a key. What couldn't be used is never written: a permission must pass the
//! same `judge` as at the gateway before it is stored.

#![forbid(unsafe_code)]

mod arguments;
pub mod audit;
mod audit_chain;
mod can_i;
pub mod cli;
mod clock;
mod confirm;
mod database;
mod doctor;
mod environment;
mod export;
pub mod failure;
mod grant;
mod grant_poca_key;
mod impact;
pub mod import;
mod interruption;
mod list;
mod poca_key;
mod principal;
mod register_key;
pub mod replicas;
mod revoke;
mod root;
mod rotate_key;
mod scope;
mod selectors;
mod show;
pub mod signed_row;
mod signing;
mod subject;
mod terminal;
pub mod trust;
mod tunnels;
pub mod validity;
mod verify;
mod why;

pub use cli::Cli;
pub use failure::Failure;

use cli::Command;
use terminal::Report;
use trust::Trust;

/// How a command ends that did its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done; and what was asked is so.
    Yes,
    /// What was asked is not so.
    No,
}

/// Does what was asked, and prints the result.
pub fn run(cli: &Cli) -> Result<Outcome, Failure> {
    interruption::heed()?;
    if let Some(url) = &cli.database_url {
        environment::name_database(url);
    }
    // One thread: this program does one thing at a time, so waiting for a TPM may block it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::Runtime)?;
    let trust = Trust::read(&cli.trust)?;
    let (report, outcome) = runtime.block_on(dispatch(&cli.command, &trust, cli.json))?;
    if let Some(report) = report {
        terminal::print(&report, cli.json)?;
    }
    Ok(outcome)
}

/// The report is `None` where a command wrote its result itself.
async fn dispatch(
    command: &Command,
    trust: &Trust,
    as_json: bool,
) -> Result<(Option<Report>, Outcome), Failure> {
    let report = match command {
        Command::RegisterKey(args) => register_key::run(args, trust).await?,
        Command::GrantScope(args) => scope::run(args, trust).await?,
        Command::Grant(args) => match grant::run(args, trust).await? {
            Some(report) => report,
            None => return Ok((None, Outcome::Yes)),
        },
        Command::GrantPocaKey(args) => match grant_poca_key::run(args, trust).await? {
            Some(report) => report,
            None => return Ok((None, Outcome::Yes)),
        },
        Command::Revoke(args) => revoke::run(args, trust).await?,
        Command::RevokeScope(args) => revoke::scope(args, trust).await?,
        Command::RevokeKey(args) => revoke::key(args, trust).await?,
        Command::RevokePocaKey(args) => revoke::poca_key(args, trust).await?,
        Command::RotateKey(args) => rotate_key::run(args, trust).await?,
        Command::Impact(args) => impact::run(args, trust).await?,
        Command::List(args) => list::run(args, trust).await?,
        Command::CanI(args) => {
            let (report, outcome) = can_i::run(args, trust).await?;
            return Ok((Some(report), outcome));
        }
        Command::Why(args) => why::run(args, trust).await?,
        Command::Show(args) => show::run(args, trust).await?,
        Command::Import(args) => import::run(args, trust).await?,
        Command::Audit(args) => {
            let (report, outcome) = audit_chain::run(&args.command)?;
            return Ok((Some(report), outcome));
        }
        Command::Root(command) => return root::run(command, trust).await,
        Command::Verify => return Ok((None, verify::run(trust, as_json).await?)),
        Command::Doctor(args) => {
            let (report, outcome) = doctor::run(args, trust).await;
            return Ok((Some(report), outcome));
        }
        Command::Export(args) => {
            export::run(args, trust).await?;
            return Ok((None, Outcome::Yes));
        }
    };
    Ok((Some(report), Outcome::Yes))
}
