//! An agent's machine: a TPM, a state folder, and the sidecar's binary.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;
use testbed::{Process, Swtpm};

use crate::client::Proxy;
use crate::gateway::Gateway;

pub(crate) const IDENTITY: &str = "agent-alpha";

pub(crate) struct Agent {
    pub(crate) tpm: Swtpm,
    folder: TempDir,
}

/// A running sidecar; killed when dropped.
pub(crate) struct Sidecar {
    pub(crate) process: Process,
    pub(crate) proxy: Proxy,
}

impl Agent {
    /// A machine on which nothing has been set up.
    pub(crate) fn bare() -> Self {
        Self {
            tpm: Swtpm::start().unwrap(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn initialised() -> Self {
        let agent = Self::bare();
        let done = agent.init(&[]);
        assert!(done.status.success(), "{done:?}");
        agent
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.state().join(name)
    }

    /// A path on the agent's machine outside its state.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    /// The public key that `init` gave for the principal.
    pub(crate) fn spki(&self) -> String {
        self.read("spki.hex").trim_end().to_owned()
    }

    /// `init` with the usual arguments, but for those in `more`.
    pub(crate) fn init(&self, more: &[&str]) -> Output {
        let tcti = self.tpm.tcti();
        let mut command = self.command(&["init"]);
        command.args(with_usual(
            &[("--identity", IDENTITY), ("--tcti", &tcti)],
            more,
        ));
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a command of the sidecar to its end.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Output {
        self.command(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The sidecar's binary for this state.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent-gateway-sidecar"));
        command
            .args(arguments)
            .env("AGENT_GATEWAY_STATE", self.state());
        command
    }

    pub(crate) fn run(&self, gateway: &Gateway) -> Sidecar {
        self.run_with(gateway, &[])
    }

    pub(crate) fn run_with(&self, gateway: &Gateway, more: &[&str]) -> Sidecar {
        self.start(&self.run_command(gateway, more))
    }

    /// `run` with the usual arguments, but for those in `more`.
    pub(crate) fn run_command(&self, gateway: &Gateway, more: &[&str]) -> Command {
        let (address, ca) = (gateway.address.to_string(), gateway.pki.ca_file());
        let ca = ca.to_str().unwrap();
        let usual = [
            ("--listen", "127.0.0.1:0"),
            ("--gateway", &address),
            ("--ca", ca),
        ];
        let mut command = self.command(&["run"]);
        command
            .args(with_usual(&usual, more))
            .env("RUST_LOG", "debug");
        command
    }

    /// Exit code of a `run` that ends by itself, and what it said.
    pub(crate) fn refused_run(&self, gateway: &Gateway, more: &[&str]) -> (i32, String) {
        let mut process = Process::start("sidecar", &self.run_command(gateway, more)).unwrap();
        let status = process.wait(testbed::process::PATIENCE).unwrap();
        (status.code().unwrap(), process.log())
    }

    /// Starts `run` and waits until it listens.
    pub(crate) fn start(&self, command: &Command) -> Sidecar {
        let mut process = Process::start("sidecar", command).unwrap();
        process.wait_for_log(" listening").unwrap();
        Sidecar {
            process,
            proxy: Proxy::at(self.read("proxy.url").trim_end()),
        }
    }
}

/// Exit code, and what was said on stderr.
pub(crate) fn failure(output: &Output) -> (i32, String) {
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stderr.clone()).unwrap(),
    )
}

fn with_usual<'a>(usual: &[(&'a str, &'a str)], more: &[&'a str]) -> Vec<&'a str> {
    let usual = usual.iter().filter(|(name, _)| !more.contains(name));
    usual
        .flat_map(|(name, value)| [*name, *value])
        .chain(more.iter().copied())
        .collect()
}
