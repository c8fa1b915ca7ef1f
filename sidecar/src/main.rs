//! Command line -> configuration -> run.

use std::process::ExitCode;

use clap::CommandFactory as _;
use sidecar::cli::{Cli, Command, PocaCommand};
use sidecar::{call, config, doctor, exec, failure, init, proof, request, rotate, run, status};
use tpm::tss_log;

fn main() -> ExitCode {
    let cli = match config::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return failure::report_unread(error),
    };
    if cli.command.uses_tpm() {
        tss_log::silence();
    }
    let done = match cli.command {
        Command::Init(args) => init::run(&args),
        Command::Run(args) => run::run(args),
        Command::Exec(args) => exec::run(&args),
        Command::Certificate(args) => request::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Rotate(args) => rotate::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Relay(args) => call::run(args),
        Command::Poca(PocaCommand::Keygen(args)) => proof::keygen(&args),
        Command::Poca(PocaCommand::Sign(args)) => proof::sign(&args),
        Command::Completions { shell } => {
            manual::completions(Cli::command(), shell).map_err(failure::Failure::from)
        }
        Command::ManPages { folder } => {
            manual::pages(Cli::command(), &folder).map_err(failure::Failure::from)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
