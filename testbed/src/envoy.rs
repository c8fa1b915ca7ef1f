//! Envoy with the project's own `envoy/envoy.yaml`, on free ports.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::pki::GatewayPki;
use crate::process::{self, PATIENCE, Process};

/// How long Envoy waits for a decision about a tunnel, for the service to hold it, and for a
/// decision about a call: in tests longer, which a slow and busy machine may need.
const TUNNEL: &str = "                timeout: 2s\n                retry_policy: *next_replica\n";
const HELD: &str = "              message_timeout: 1s\n";
const CALL: &str = "                        timeout: 5s\n";

/// What a test says about the Envoy it wants.
#[derive(Debug)]
pub struct EnvoyOptions<'a> {
    /// Which file of `envoy/`.
    pub file: &'a str,
    /// Where the authorization service listens, or will listen.
    pub authz: SocketAddr,
    /// Where further replicas of it do; they are asked in turn.
    pub replicas: Vec<SocketAddr>,
    /// The server certificate.
    pub pki: &'a GatewayPki,
    /// Which loopback address to listen on.
    pub listen: IpAddr,
    /// Further text of `envoy.yaml` that is there once, and what a test puts in its place.
    pub replace: &'a [(&'a str, &'a str)],
    /// A file of `envoy/mesh/` that takes the place of the cluster `authorization`, and what a test
    /// puts in the place of some of its texts.
    pub authorization: Option<(&'a str, &'a [(&'a str, &'a str)])>,
    /// Asks nobody, and leads every tunnel here: what there is to compare with.
    pub unauthorized: Option<SocketAddr>,
}

impl<'a> EnvoyOptions<'a> {
    /// Listens on 127.0.0.1.
    pub fn new(authz: SocketAddr, pki: &'a GatewayPki) -> EnvoyOptions<'a> {
        EnvoyOptions {
            file: "envoy.yaml",
            authz,
            replicas: Vec::new(),
            pki,
            listen: Ipv4Addr::LOCALHOST.into(),
            replace: &[],
            authorization: None,
            unauthorized: None,
        }
    }
}

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    files: Files,
}

/// What Envoy runs from; it stays the same when Envoy is started again.
#[derive(Debug)]
struct Files {
    folder: TempDir,
    addr: SocketAddr,
    admin: SocketAddr,
}

impl Envoy {
    /// Starts Envoy and waits until it listens.
    pub async fn start(options: EnvoyOptions<'_>) -> Result<Envoy> {
        let files = Files::write(&options)?;
        Ok(Envoy {
            process: files.run().await?,
            files,
        })
    }

    /// Has Envoy check the configuration without running it.
    pub fn validate(options: &EnvoyOptions<'_>) -> Result<()> {
        let files = Files::write(options)?;
        let mut command = files.command()?;
        process::output(command.args(["--mode", "validate"])).map(drop)
    }

    /// Where agents connect.
    pub fn addr(&self) -> SocketAddr {
        self.files.addr
    }

    /// The admin interface.
    pub fn admin_addr(&self) -> SocketAddr {
        self.files.admin
    }

    /// The entries of the access log so far.
    pub fn access_log(&self) -> Result<Vec<Value>> {
        self.files.access_log()
    }

    /// Waits for an access log entry that `wanted` accepts.
    pub async fn logged(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let entries = self.access_log()?;
            if let Some(entry) = entries.iter().find(|entry| wanted(entry)) {
                return Ok(entry.clone());
            }
            if Instant::now() >= deadline {
                bail!("no such entry in the access log: {entries:#?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A counter or gauge, such as `http.gateway.downstream_cx_total`.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        let mut stream = TcpStream::connect(self.admin_addr()).await?;
        let request = "GET /stats HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
        let value = answer
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Ok(value.with_context(|| format!("no {name}"))?.parse()?)
    }

    /// Stops Envoy, which cuts all its tunnels.
    pub fn stop(&mut self) -> Result<()> {
        self.process.terminate().map(drop)
    }

    /// Starts Envoy again on the same ports.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process.kill();
        self.process = self.files.run().await?;
        Ok(())
    }

    /// The Envoy process, to be paused, killed or read the log of.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Files {
    /// Writes the product's configuration with its ports and paths replaced by the test's.
    fn write(options: &EnvoyOptions<'_>) -> Result<Files> {
        let folder = crate::scratch::folder("envoy")?;
        let files = Files {
            addr: SocketAddr::new(options.listen, crate::free_port()?),
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, crate::free_port()?)),
            folder,
        };
        let mut config = read(options.file)?;
        let replicas = std::iter::once(&options.authz).chain(&options.replicas);
        let replicas: Vec<_> = replicas.map(|replica| endpoint(*replica)).collect();
        let defaults = [
            (socket("127.0.0.1:8443".parse()?), socket(files.addr)),
            (socket("127.0.0.1:9901".parse()?), socket(files.admin)),
            (endpoint("127.0.0.1:50051".parse()?), replicas.join(", ")),
            (
                "certs/server.pem".to_owned(),
                text(&options.pki.certificate_file())?,
            ),
            (
                "certs/server-key.pem".to_owned(),
                text(&options.pki.key_file())?,
            ),
        ];
        // Those of a mesh have neither tools, nor a log of their own, nor these limits.
        let further = [
            (
                "certs/tools-ca.pem".to_owned(),
                text(&options.pki.ca_file())?,
            ),
            (
                "logs/access.jsonl".to_owned(),
                text(&files.access_log_file())?,
            ),
            (TUNNEL.to_owned(), TUNNEL.replace("2s", "10s")),
            (HELD.to_owned(), HELD.replace("1s", "10s")),
            (CALL.to_owned(), CALL.replace("5s", "15s")),
        ];
        let ours_alone = options.file == "envoy.yaml";
        let further = further.into_iter().filter(|_| ours_alone);
        let replace = options.replace.iter();
        let replace = replace.map(|(theirs, ours)| ((*theirs).to_owned(), (*ours).to_owned()));
        for (default, ours) in defaults.into_iter().chain(further).chain(replace) {
            if config.matches(&default).count() != 1 {
                bail!(
                    "envoy/{} should hold {default:?} exactly once",
                    options.file
                );
            }
            config = config.replace(&default, &ours);
        }
        if let Some((file, replace)) = options.authorization {
            config = with_authorization(&config, file, replace)?;
        }
        if !options.replicas.is_empty() {
            config = log_to_each(&config, options)?;
        }
        if let Some(destination) = options.unauthorized {
            config = without_authorization(&config, destination)?;
        }
        fs::write(files.config_file(), config)?;
        Ok(files)
    }

    fn config_file(&self) -> PathBuf {
        self.folder.path().join("envoy.yaml")
    }

    fn access_log_file(&self) -> PathBuf {
        self.folder.path().join("access.jsonl")
    }

    fn access_log(&self) -> Result<Vec<Value>> {
        let log = fs::read_to_string(self.access_log_file()).unwrap_or_default();
        // The last line may still be on its way.
        let complete = log.rsplit_once('\n').map_or("", |(complete, _)| complete);
        complete
            .lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command
            .current_dir(self.folder.path())
            .args([
                "--disable-hot-restart",
                "--concurrency",
                "2",
                "--log-level",
                "warning",
            ])
            .args(["--file-flush-interval-msec", "20", "--config-path"])
            .arg(self.config_file());
        Ok(command)
    }

    async fn run(&self) -> Result<Process> {
        let (command, addr) = (self.command()?, self.addr);
        let start = move || {
            let mut process = Process::start("envoy", &command)?;
            process.wait_for_port(addr)?;
            Ok(process)
        };
        tokio::task::spawn_blocking(start).await?
    }
}

/// The text of a file of `envoy/`.
pub fn read(file: &str) -> Result<String> {
    let path = repository().join("envoy").join(file);
    fs::read_to_string(path).with_context(|| format!("read envoy/{file}"))
}

/// As envoy.yaml writes a member of a cluster.
fn endpoint(addr: SocketAddr) -> String {
    let socket = socket(addr);
    format!("{{endpoint: {{address: {{socket_address: {socket}}}}}}}")
}

/// The same configuration with another cluster `authorization`.
fn with_authorization(config: &str, file: &str, replace: &[(&str, &str)]) -> Result<String> {
    let mut cluster = read(&format!("mesh/{file}"))?;
    for (theirs, ours) in replace {
        if !cluster.contains(theirs) {
            bail!("{file} should hold {theirs:?}");
        }
        cluster = cluster.replace(theirs, ours);
    }
    let ours = config.split_once("  - name: authorization\n");
    let (before, ours) = ours.context("no cluster authorization")?;
    let end = ours.split_once("      endpoints: ");
    let (_, end) = end.context("no endpoints of authorization")?;
    let after = end.split_once('\n').map_or("", |(_, after)| after);
    Ok(format!("{before}{cluster}{after}"))
}

/// The same configuration with a log of ends for each replica, as envoy.yaml says.
fn log_to_each(config: &str, options: &EnvoyOptions<'_>) -> Result<String> {
    let (log, after) = (
        "          - name: envoy.access_loggers.http_grpc\n",
        "          # Envoy's own",
    );
    let (before, rest) = config.split_once(log).context("no gRPC log")?;
    let (body, rest) = rest
        .split_once(after)
        .context("nothing after the gRPC log")?;
    let (mut logs, mut clusters) = (String::new(), String::new());
    for (number, replica) in std::iter::once(&options.authz)
        .chain(&options.replicas)
        .enumerate()
    {
        let name = format!("replica_{number}");
        let own = body.replace(
            "cluster_name: authorization",
            &format!("cluster_name: {name}"),
        );
        logs = format!("{logs}{log}{own}");
        clusters = format!(
            "{clusters}\n  - name: {name}\n    type: STATIC\n    typed_extension_protocol_options:\n      \
             envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \"@type\": \
             type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        \
             explicit_http_config: {{http2_protocol_options: {{}}}}\n    load_assignment: \
             {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{}]}}]}}\n",
            endpoint(*replica)
        );
    }
    Ok(format!("{before}{logs}{after}{rest}{clusters}"))
}

/// The same configuration without the filters that ask the service and obey it.
fn without_authorization(config: &str, destination: SocketAddr) -> Result<String> {
    let endpoint = format!(
        "    type: STATIC\n    load_assignment:\n      cluster_name: destination\n      \
         endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {}}}}}}}]}}]\n",
        socket(destination)
    );
    // From the first text to the one before the second, each; they are where they are needed.
    let parts = [
        (
            "          - name: ext_authz\n",
            "          - name: envoy.filters.http.router\n",
            "",
        ),
        // With it all routes but the tunnels'.
        (
            "                typed_per_filter_config:\n",
            "          http_filters:\n",
            "",
        ),
        (
            "    type: ORIGINAL_DST\n",
            "    connect_timeout: 5s\n",
            &endpoint,
        ),
        (
            "        - name: envoy.filters.http.upstream_rbac\n",
            "        - name: envoy.filters.http.upstream_codec\n",
            "",
        ),
    ];
    let mut config = config.to_owned();
    for (from, to, instead) in parts {
        let (before, rest) = config.split_once(from).with_context(|| from.to_owned())?;
        let (_, after) = rest.split_once(to).with_context(|| to.to_owned())?;
        config = format!("{before}{instead}{to}{after}");
    }
    Ok(config)
}

/// As envoy.yaml writes an address.
fn socket(addr: SocketAddr) -> String {
    let (ip, port) = (addr.ip(), addr.port());
    match ip {
        IpAddr::V4(ip) => format!("{{address: {ip}, port_value: {port}}}"),
        IpAddr::V6(ip) => format!("{{address: \"{ip}\", port_value: {port}}}"),
    }
}

fn text(path: &Path) -> Result<String> {
    Ok(path
        .to_str()
        .context("a path that is not UTF-8")?
        .to_owned())
}

fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("AGENT_GATEWAY_ENVOY") {
        return Ok(path.into());
    }
    let ours = repository().join(".tools/bin/envoy");
    if ours.exists() {
        return Ok(ours);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("envoy"))
        .find(|candidate| candidate.is_file())
        .context("no envoy binary: run `make setup`")
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
