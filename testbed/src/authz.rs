//! The authz-service, as its own process.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::process::{PATIENCE, Process};
use crate::{Root, binary, port, scratch};

/// The variable that the generated configuration takes the database's URL from.
const DATABASE_URL: &str = "AUTHZ_TEST_DATABASE_URL";

/// What differs from the product's defaults for all tests that say nothing else: tests wait for the
/// service to know what they changed, so not for long; and its time limits are those of a slow and
/// busy machine, below Envoy's in [`crate::envoy`].
const DEFAULTS: [(&str, &str); 7] = [
    ("AGENT_GATEWAY__POLICY__POLL_INTERVAL_MS", "20"),
    ("AGENT_GATEWAY__POLICY__QUERY_TIMEOUT_MS", "5000"),
    ("AGENT_GATEWAY__POLICY__POOL_ACQUIRE_TIMEOUT_MS", "5000"),
    ("AGENT_GATEWAY__SERVER__CHECK_TIMEOUT_MS", "8000"),
    ("AGENT_GATEWAY__TUNNEL__OPEN_TIMEOUT_MS", "8000"),
    ("AGENT_GATEWAY__RELAY__CHECK_TIMEOUT_MS", "12000"),
    ("AGENT_GATEWAY__RELAY__POLICY_TIMEOUT_MS", "2000"),
];

/// A service or registry that says nothing for so long is away.
const AWAY: Duration = Duration::from_secs(10);

/// What a test says about the service it wants; the rest is the product's default, but for the time
/// limits of a slow machine.
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
    /// The root of trust, and the id of the registry that it vouches in; without one, rows count
    /// as they are.
    pub root: Option<(Root, String)>,
    /// A folder that is a disk of 256 KiB of its own, for the service alone.
    pub small_disk: Option<PathBuf>,
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
    small_disk: Option<PathBuf>,
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

    /// Waits until the service knows every change that was committed before this call. Returns
    /// all the same when the service or its database is away: then there is nothing to wait for.
    pub async fn settle(&self) {
        let called = Instant::now();
        let settled = async {
            while let Ok(age) = self.confirmed_age().await {
                if age < called.elapsed() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = timeout(AWAY, settled).await;
    }

    /// How long ago the registry confirmed that all changes are known.
    async fn confirmed_age(&self) -> Result<Duration> {
        let age = self.metric("agent_gateway_registry_confirmed_age_seconds");
        Ok(Duration::try_from_secs_f64(age.await?).unwrap_or(Duration::MAX))
    }

    /// How many tunnels the service holds.
    pub async fn open_tunnels(&self) -> Result<usize> {
        let open = self.metric("agent_gateway_open_tunnels").await?;
        format!("{open:.0}").parse().context("metric")
    }

    /// One value of `/metrics`, by its name with any labels.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let answer = self.http("/metrics").await?;
        let value = answer
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| name.to_owned())?.parse()?)
    }

    /// Waits until the service says that it is ready to answer Checks.
    pub async fn ready(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.http("/readyz").await?.starts_with("HTTP/1.1 200 ") {
            if Instant::now() >= deadline {
                bail!("authz-service is not ready: {}", self.process.log());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// The whole answer of the readiness probe.
    pub async fn readyz(&self) -> Result<String> {
        self.http("/readyz").await
    }

    /// The whole answer of the service's own HTTP.
    async fn http(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.admin_http_addr()).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
        Ok(answer)
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

    /// As [`Authz::start_again`], with other options: for what depends on the ports.
    pub fn start_again_with(&mut self, options: &AuthzOptions) -> Result<()> {
        self.files.configure(options)?;
        self.start_again()
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
        let mut files = Files {
            folder: scratch::folder("authz")?,
            grpc: at(0),
            admin_grpc: at(1),
            admin_http: at(2),
            environment: Vec::new(),
            small_disk: options.small_disk.clone(),
        };
        files.configure(options)?;
        Ok(files)
    }

    fn configure(&mut self, options: &AuthzOptions) -> Result<()> {
        let hosts = self.folder.path().join("hosts");
        fs::write(&hosts, &options.hosts)?;
        let resolv_conf = self.folder.path().join("resolv.conf");
        // A name server that refuses at once, where the test has none of its own.
        fs::write(&resolv_conf, "nameserver 127.0.0.1\n")?;
        let mut config = format!(
            "[server]\ngrpc_addr = \"{}\"\n\
             [admin]\ngrpc_addr = \"{}\"\nhttp_addr = \"{}\"\n\
             [policy]\ndatabase_url_env = \"{DATABASE_URL}\"\n\
             [dns]\nhosts_file = '{}'\nresolv_conf = '{}'\nnameservers = {:?}\n\
             [tunnel]\ngateway_listeners = {:?}\n",
            self.grpc,
            self.admin_grpc,
            self.admin_http,
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
        fs::write(self.config(), config)?;
        let defaults = DEFAULTS.map(|(key, value)| (key.to_owned(), value.to_owned()));
        self.environment = defaults.to_vec();
        if let Some((root, registry_id)) = &options.root {
            let mut set = |key: &str, value| {
                let name = format!("AGENT_GATEWAY__POLICY__{key}");
                self.environment.push((name, value));
            };
            set("TRUST_ROOTS", format!("[{:?}]", root.public_hex()?));
            set("REGISTRY_ID", format!("{registry_id:?}"));
        }
        self.environment.extend(options.environment.iter().cloned());
        let database = (DATABASE_URL.to_owned(), options.database_url.clone());
        self.environment.push(database);
        Ok(())
    }

    fn run(&self) -> Result<Process> {
        let mut command = Command::new(binary::path("agent-gateway-authz")?);
        command.arg("serve").arg("--config").arg(self.config());
        if let Some(folder) = &self.small_disk {
            command = with_small_disk(folder, &command);
        }
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        let mut process = Process::start("authz", &command)?;
        process
            // The last of its ports to be bound.
            .wait_for_port(self.admin_http)
            .with_context(|| format!("authz-service: {}", process.log()))?;
        Ok(process)
    }

    fn config(&self) -> std::path::PathBuf {
        Path::new(self.folder.path()).join("config.toml")
    }
}

/// The same command, where nobody else sees what is mounted for it. It keeps its process id.
fn with_small_disk(folder: &Path, command: &Command) -> Command {
    let mut wrapped = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        wrapped.arg("--map-root-user");
    }
    let mount = "mount -t tmpfs -o size=256k tmpfs \"$0\" && exec \"$@\"";
    wrapped
        .args(["--mount", "sh", "-c", mount])
        .arg(folder)
        .arg(command.get_program())
        .args(command.get_args());
    wrapped
}

fn texts(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}
