//! `agent-gateway-registry`: principals register their keys, say what a key may delegate, and
//! sign permissions; admins revoke and list them.
//!
//! Every command reads its arguments in full before it touches the database, and the database
//! before it touches a key. What couldn't be used is never written: a permission must pass the
//! same `judge` as at the gateway before it is stored.

#![forbid(unsafe_code)]

mod arguments;
pub mod cli;
mod database;
mod environment;
pub mod failure;
mod grant;
mod list;
mod principal;
mod register_key;
mod revoke;
mod scope;
mod subject;
mod terminal;
pub mod validity;

pub use cli::Cli;
pub use failure::Failure;

use cli::Command;

/// Does what was asked, and prints the result.
pub fn run(cli: &Cli) -> Result<(), Failure> {
    // One thread: this program does one thing at a time, so waiting for a TPM may block it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::Runtime)?;
    let report = runtime.block_on(async {
        match &cli.command {
            Command::RegisterKey(args) => register_key::run(args).await,
            Command::GrantScope(args) => scope::run(args).await,
            Command::Grant(args) => grant::run(args).await,
            Command::Revoke(args) => revoke::run(args).await,
            Command::List(args) => list::run(args).await,
        }
    })?;
    terminal::print(&report, cli.json)
}
