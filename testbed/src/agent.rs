//! An agent's machine: a TPM, and the sidecar as its own process.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::process::{PATIENCE, Process};
use crate::{GatewayPki, Swtpm, binary, scratch};

/// A machine with a TPM on which the sidecar was initialised.
#[derive(Debug)]
pub struct Agent {
    /// The TPM.
    pub tpm: Swtpm,
    folder: TempDir,
}

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    process: Process,
    address: SocketAddr,
    authorization: String,
}

/// What the local proxy answered to a CONNECT.
#[derive(Debug)]
pub struct LocalAnswer {
    /// The status.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The connection: the tunnel, or the rest of the answer.
    pub stream: TcpStream,
}

impl Agent {
    /// Makes the key and the certificate of an agent called `identity`.
    pub fn init(identity: &str) -> Result<Agent> {
        let (tpm, folder) = (Swtpm::start()?, scratch::folder("agent")?);
        let agent = Agent { tpm, folder };
        let done = Command::new(binary::path("agent-gateway-sidecar")?)
            .args([
                "init",
                "--identity",
                identity,
                "--tcti",
                &agent.tpm.tcti(),
                "--state",
            ])
            .arg(agent.state())
            .output()?;
        if !done.status.success() {
            bail!("init: {}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(agent)
    }

    /// The sidecar's state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The key that a principal grants to.
    pub fn spki_der(&self) -> Result<Vec<u8>> {
        let text = fs::read_to_string(self.state().join("spki.hex"))?;
        hex::decode(text.trim()).context("spki.hex")
    }

    /// Starts the sidecar on a free port and waits until it listens.
    pub fn run(&self, gateway: SocketAddr, pki: &GatewayPki) -> Result<Sidecar> {
        self.run_with(&[gateway], pki, &[])
    }

    /// As [`Agent::run`], with several gateways and further arguments.
    pub fn run_with(
        &self,
        gateways: &[SocketAddr],
        pki: &GatewayPki,
        more: &[&str],
    ) -> Result<Sidecar> {
        let mut command = Command::new(binary::path("agent-gateway-sidecar")?);
        command.args(["run", "--listen", "127.0.0.1:0", "--ca"]);
        command.arg(pki.ca_file()).arg("--state").arg(self.state());
        for gateway in gateways {
            command.arg("--gateway").arg(gateway.to_string());
        }
        command.args(more);
        let mut process = Process::start("sidecar", &command)?;
        let file = self.state().join("proxy.url");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(url) = fs::read_to_string(&file) {
                let (address, authorization) = read_url(url.trim_end())?;
                return Ok(Sidecar {
                    process,
                    address,
                    authorization,
                });
            }
            if Instant::now() >= deadline || process.ended()?.is_some() {
                bail!("the sidecar does not listen: {}", process.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Sidecar {
    /// Where the local proxy listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The header line by which the local proxy knows its clients, with its end.
    pub fn authorization(&self) -> &str {
        &self.authorization
    }

    /// The process, to be stopped or read the log of.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Asks the local proxy for a tunnel, as curl does.
    pub async fn connect(&self, authority: &str) -> Result<LocalAnswer> {
        timeout(PATIENCE, self.connect_now(authority))
            .await
            .context("no answer")?
    }

    async fn connect_now(&self, authority: &str) -> Result<LocalAnswer> {
        let mut stream = TcpStream::connect(self.address).await?;
        let token = &self.authorization;
        let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{token}\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.context("the proxy hung up")?);
        }
        let head = String::from_utf8(head)?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        Ok(LocalAnswer {
            status: status.context("no status")?,
            head,
            stream,
        })
    }
}

/// Address and header line, as an HTTP client takes them out of a proxy's URL.
fn read_url(url: &str) -> Result<(SocketAddr, String)> {
    let rest = url.strip_prefix("http://").context("proxy.url")?;
    let (user, address) = rest.split_once('@').context("no token in proxy.url")?;
    let credentials = BASE64_STANDARD.encode(user);
    Ok((
        address.parse()?,
        format!("Proxy-Authorization: Basic {credentials}\r\n"),
    ))
}

impl LocalAnswer {
    /// The rest of the answer, up to the end or the announced length.
    pub async fn body(mut self) -> Result<String> {
        let lower = self.head.to_ascii_lowercase();
        let length = lower
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let mut body = Vec::new();
        match length {
            Some(length) => {
                body.resize(length.trim().parse()?, 0);
                timeout(PATIENCE, self.stream.read_exact(&mut body)).await??;
            }
            None => drop(timeout(PATIENCE, self.stream.read_to_end(&mut body)).await??),
        }
        Ok(String::from_utf8(body)?)
    }
}
