//! The authz-service, as its own process.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::process::Process;
use crate::{binary, port, scratch};

/// The variable that the generated configuration takes the database's URL from.
const DATABASE_URL: &str = "AUTHZ_TEST_DATABASE_URL";

/// What a test says about the service it wants; the rest is the product's default.
#[derive(Debug, Clone, Default)]
pub struct AuthzOptions {
    /// Postgres URL of a migrated database.
    pub database_url: String,
    /// Lines of an `/etc/hosts` file.
    pub hosts: String,
    /// DNS servers; without any, only `hosts` is left.
    pub nameservers: Vec<SocketAddr>,
    /// Destinations that may resolve to these ranges.
    pub private: Vec<(String, Vec<String>)>,
    /// Envoy's listeners.
    pub gateway_listeners: Vec<SocketAddr>,
    /// Further environment, such as `AGENT_GATEWAY__DNS__TIMEOUT_MS`.
    pub environment: Vec<(String, String)>,
}

/// A running (or ended) authz-service.
#[derive(Debug)]
pub struct Authz {
    process: Process,
    files: Files,
}

#[derive(Debug)]
struct Files {
    folder: TempDir,
    grpc: SocketAddr,
    admin_grpc: SocketAddr,
    admin_http: SocketAddr,
    environment: Vec<(String, String)>,
}

/// Brings a database to the schema that the service needs, by the service's own command.
pub fn migrate(database_url: &str) -> Result<()> {
    let folder = scratch::folder("migrate")?;
    let config = folder.path().join("config.toml");
    fs::write(&config, "")?;
    let run = Command::new(binary::path("agent-gateway-authz")?)
        .args(["migrate", "--config"])
        .arg(&config)
        .env("AGENT_GATEWAY_MIGRATE_DATABASE_URL", database_url)
        .output()?;
    if !run.status.success() {
        bail!("migrate: {}", String::from_utf8_lossy(&run.stderr));
    }
    Ok(())
}

impl Authz {
    /// Starts the service and waits until it answers Checks.
    pub fn start(options: &AuthzOptions) -> Result<Authz> {
        let files = Files::write(options)?;
        Ok(Authz {
            process: files.run()?,
            files,
        })
    }

    /// Where Envoy asks.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.files.grpc
    }

    /// Where people ask.
    pub fn admin_grpc_addr(&self) -> SocketAddr {
        self.files.admin_grpc
    }

    /// `/healthz`, `/readyz`, `/metrics`.
    pub fn admin_http_addr(&self) -> SocketAddr {
        self.files.admin_http
    }

    /// Stops the service by SIGTERM and says how it ended.
    pub fn stop(&mut self) -> Result<std::process::ExitStatus> {
        self.process.terminate()
    }

    /// Starts the service again on the same ports.
    pub fn start_again(&mut self) -> Result<()> {
        self.process.kill();
        self.process = self.files.run()?;
        Ok(())
    }

    /// The process, to be paused, killed or read the log of.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Files {
    fn write(options: &AuthzOptions) -> Result<Files> {
        let first = port::free_ports(3)?;
        let at = |offset: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, first + offset));
        let folder = scratch::folder("authz")?;
        let (grpc, admin_grpc, admin_http) = (at(0), at(1), at(2));
        let hosts = folder.path().join("hosts");
        fs::write(&hosts, &options.hosts)?;
        let resolv_conf = folder.path().join("resolv.conf");
        // A name server that refuses at once, where the test has none of its own.
        fs::write(&resolv_conf, "nameserver 127.0.0.1\n")?;
        let mut config = format!(
            "[server]\ngrpc_addr = \"{grpc}\"\n\
             [admin]\ngrpc_addr = \"{admin_grpc}\"\nhttp_addr = \"{admin_http}\"\n\
             [policy]\ndatabase_url_env = \"{DATABASE_URL}\"\n\
             [dns]\nhosts_file = '{}'\nresolv_conf = '{}'\nnameservers = {:?}\n\
             [tunnel]\ngateway_listeners = {:?}\n",
            hosts.display(),
            resolv_conf.display(),
            texts(&options.nameservers),
            texts(&options.gateway_listeners),
        );
        for (destination, cidrs) in &options.private {
            write!(
                config,
                "[[tunnel.private]]\ndestination = {destination:?}\ncidrs = {cidrs:?}\n"
            )?;
        }
        fs::write(folder.path().join("config.toml"), config)?;
        let mut environment = options.environment.clone();
        environment.push((DATABASE_URL.to_owned(), options.database_url.clone()));
        Ok(Files {
            folder,
            grpc,
            admin_grpc,
            admin_http,
            environment,
        })
    }

    fn run(&self) -> Result<Process> {
        let mut command = Command::new(binary::path("agent-gateway-authz")?);
        command.arg("serve").arg("--config").arg(self.config());
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        let mut process = Process::start("authz", &command)?;
        process
            .wait_for_log("\"serving\"")
            .with_context(|| format!("authz-service: {}", process.log()))?;
        Ok(process)
    }

    fn config(&self) -> std::path::PathBuf {
        Path::new(self.folder.path()).join("config.toml")
    }
}

fn texts(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}
