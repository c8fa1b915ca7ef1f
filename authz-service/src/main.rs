//! `agent-gateway-authz`: arguments, then configuration, then run.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use authz_service::cli::{Cli, Failure};
use clap::Parser as _;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => cli.run().unwrap_or_else(Failure::report),
        Err(error) => Failure::report_usage(&error),
    }
}
