//! A simulated TPM 2.0 (swtpm) on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;

use crate::Process;
use crate::port::free_ports;

/// A simulated TPM whose state survives [`Swtpm::stop`] and [`Swtpm::start_again`].
#[derive(Debug)]
pub struct Swtpm {
    process: Process,
    port: u16,
    state: TempDir,
}

impl Swtpm {
    /// Starts an empty TPM and waits until it answers.
    pub fn start() -> Result<Swtpm> {
        // tss2-tcti-swtpm takes the control port to be the next one.
        let port = free_ports(2)?;
        let state = crate::scratch::folder("tpm-state")?;
        Ok(Swtpm {
            process: run(port, &state)?,
            port,
            state,
        })
    }

    /// How to reach it, as a TCTI configuration: `swtpm:host=127.0.0.1,port=N`.
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// Switches it off; what was persistent stays.
    pub fn stop(&mut self) -> Result<()> {
        self.process.terminate()?;
        Ok(())
    }

    /// Switches it on again with the same state on the same port.
    pub fn start_again(&mut self) -> Result<()> {
        self.process.kill();
        self.process = run(self.port, &self.state)?;
        Ok(())
    }

    /// The swtpm process, to be paused or killed.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn run(port: u16, state: &TempDir) -> Result<Process> {
    let control = port + 1;
    let mut command = Command::new("swtpm");
    command
        .args([
            "socket",
            "--tpm2",
            "--flags",
            "not-need-init,startup-clear",
            "--tpmstate",
        ])
        .arg(format!("dir={},mode=0600", state.path().display()))
        .args([
            "--server",
            &format!("type=tcp,bindaddr=127.0.0.1,port={port}"),
        ])
        .args([
            "--ctrl",
            &format!("type=tcp,bindaddr=127.0.0.1,port={control}"),
        ]);
    let mut process = Process::start("swtpm", &command)?;
    process.wait_for_port(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    Ok(process)
}
