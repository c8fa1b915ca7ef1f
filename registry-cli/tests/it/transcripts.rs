//! Every command's help, success and failure, as people see them: `tests/transcripts`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory as _;
use registry_cli::Cli;
use testbed::{Swtpm, transcript};

use crate::office::Office;

fn file(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    folder.join(name)
}

/// A shell in the office's folder, with the binary in its path; both streams in their order.
fn shell(office: &Office, tcti: &str, line: &str) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_agent-gateway-registry"));
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", binary.parent().unwrap().display());
    let mut command = Command::new("bash");
    command
        .args([
            "-o",
            "pipefail",
            "-c",
            &format!("exec 2>&1 </dev/null; {line}"),
        ])
        .current_dir(office.path("").as_path())
        .env_clear()
        .env("PATH", path)
        .env("AGENT_GATEWAY_DATABASE_URL", office.database.url())
        .env("AGENT_GATEWAY_TCTI", tcti);
    command
}

#[tokio::test]
async fn help_is_as_in_the_transcript() {
    let office = Office::new().await;
    let help = file("help");
    let kept = fs::read_to_string(&help).unwrap();
    for command in Cli::command().get_subcommands() {
        let line = format!("\n$ agent-gateway-registry {} --help\n", command.get_name());
        assert!(kept.contains(&line), "{line}");
    }
    transcript::replay(&help, |line| shell(&office, "swtpm", line)).unwrap();
}

#[tokio::test]
async fn commands_do_as_in_the_transcript() {
    let office = Office::new().await;
    let tpm = Swtpm::start().unwrap();
    office.file("agent.pem", office.agent.pem());
    office.file("spki.hex", office.spki());
    office.file("poca.pub", format!("{}\n", office.poca_key()));
    let tour = file("tour");
    let kept = fs::read_to_string(&tour).unwrap();
    for command in Cli::command().get_subcommands() {
        let name = format!("agent-gateway-registry {}", command.get_name());
        assert!(kept.contains(&name), "{name}");
    }
    transcript::replay(&tour, |line| shell(&office, &tpm.tcti(), line)).unwrap();
}
