//! `agent-gateway-registry`: arguments, then run.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use registry_cli::{Cli, Outcome, failure};
use tpm::tss_log;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::report_usage(&error),
    };
    if cli.command.uses_tpm() {
        tss_log::silence();
    }
    match registry_cli::run(&cli) {
        Ok(Outcome::Yes) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::FAILURE,
        Err(failure) => failure.report(),
    }
}
