//! The service's configuration, and the only reader of its environment.
//!
//! Later wins: defaults, the TOML file, the existing gateways' own variables,
//! `AGENT_GATEWAY__SECTION__KEY`. Unknown keys and unsafe combinations are refused.

mod defaults;
mod error;
mod relay;
mod trust;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Env, Format as _, Toml};
use ipnet::IpNet;
use permission::{Destination, ExtensionOid, Id};
use serde::{Deserialize, Deserializer, de};

use crate::addresses::PrivateRule;
use crate::audit::AuditOptions;
use crate::cache::CacheOptions;
use crate::check;
use crate::check::profiles::{ProfileOptions, Profiles, Requests, TUNNEL};
use crate::connections::{SocketMode, TlsFiles};
use crate::follow::FollowOptions;
use crate::relay::rules::Sources;
use crate::resolver::DnsOptions;
use crate::tunnels::Limits;

pub use error::ConfigError;
pub use relay::Relay;
use relay::existing_environment;

/// What the names of our variables begin with.
const ENVIRONMENT: &str = "AGENT_GATEWAY__";

/// In milliseconds.
const MINUTE: u64 = 60_000;

/// Everything that can be set.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[admin]`
    pub admin: Admin,
    /// `[policy]`
    pub policy: Policy,
    /// `[cache]`
    pub cache: Cache,
    /// `[profiles.NAME]`: how Checks are read whose route names it.
    pub profiles: BTreeMap<String, ProfileOptions>,
    /// `[tunnel]`
    pub tunnel: Tunnel,
    /// `[audit]`
    pub audit: Audit,
    /// `[relay]`
    pub relay: Relay,
    /// `[dns]`
    pub dns: Dns,
    /// `[observability]`
    pub observability: Observability,
}

/// The listener that Envoy talks to.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Where `ext_authz` is answered. Loopback only, unless `tls` authenticates who connects.
    pub grpc_addr: SocketAddr,
    /// Path of a Unix socket that is listened on in place of `grpc_addr`. Its folder must not be
    /// writable by others.
    pub socket: Option<PathBuf>,
    /// Who may connect to the socket.
    pub socket_mode: SocketMode,
    /// mTLS on `grpc_addr`.
    pub tls: Option<ServerTls>,
    /// Longest a Check may take, in milliseconds; below Envoy's own `timeout` (2 s).
    pub check_timeout_ms: u64,
    /// Most Checks in progress on one connection from Envoy; further ones fail at once (503).
    pub max_concurrent_checks: usize,
    /// How long Checks in progress may take to finish at shutdown, in milliseconds.
    pub shutdown_timeout_ms: u64,
}

/// How Envoy and this service prove to each other who they are.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerTls {
    /// PEM file: the service's certificate, followed by what leads to its CA.
    pub cert: PathBuf,
    /// PEM file: the certificate's private key.
    pub key: PathBuf,
    /// PEM file: the CAs one of which must have signed Envoy's certificate.
    pub client_ca: PathBuf,
    /// DNS names and URIs (a SPIFFE ID, say) one of which Envoy's certificate must hold; anybody
    /// whom the CAs vouch for may connect if there are none.
    #[serde(default)]
    pub client_names: Vec<String>,
}

/// The listeners for operators.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// gRPC: reflection, health, Explain, and Check by hand. Loopback only.
    pub grpc_addr: SocketAddr,
    /// HTTP: `/healthz`, `/readyz`, `/metrics`.
    pub http_addr: SocketAddr,
    /// Path of a Unix socket for the same gRPC, and for cutting tunnels; none by default. Its folder
    /// must not be writable by others.
    pub socket: Option<PathBuf>,
}

/// Who is trusted, and where the registry is.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// The certificate extension that holds an agent's identity, in dotted notation.
    #[serde(deserialize_with = "from_text")]
    pub client_ext_oid: ExtensionOid,
    /// The profile of Checks whose route names none.
    pub profile: String,
    /// Postgres URL of the registry. Prefer `database_url_env`.
    pub database_url: Option<Secret>,
    /// Name of the environment variable that holds the Postgres URL.
    pub database_url_env: Option<String>,
    /// Public keys of the roots of trust: PEM, hex of the SPKI DER, or the absolute path of a file
    /// with either. Keys and scopes then count only as one of these signed them. Empty: rows count
    /// as they are, and whoever writes the registry decides.
    pub trust_roots: Vec<String>,
    /// The registry's id as the roots sign it (`agent-gateway-registry root show`); needed with
    /// `trust_roots`, and never taken from the registry.
    pub registry_id: Option<String>,
    /// Most connections to Postgres.
    pub max_connections: u32,
    /// Longest wait for the first connection, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Longest wait of a Check for a free connection, in milliseconds.
    pub pool_acquire_timeout_ms: u64,
    /// Longest a registry query may run, in milliseconds.
    pub query_timeout_ms: u64,
    /// How often the registry is asked for changes, in milliseconds, whether or not it notifies.
    pub poll_interval_ms: u64,
    /// A cached permission is used only if the registry confirmed this lately, in milliseconds,
    /// that all changes are known; else it is asked, and if it doesn't answer, nothing is allowed.
    pub max_staleness_ms: u64,
    /// The package `mcp.authz` of an OPA server, such as `http://127.0.0.1:8181/v1/data/mcp/authz`,
    /// which then judges tool calls in place of the Rego in `relay.policy_dir`.
    pub opa_url: Option<String>,
}

/// Permissions in memory.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// About how many bytes of permissions are kept.
    pub max_bytes: u64,
    /// Most requests remembered for which there is no permission; apart from the others.
    pub max_unknown: u64,
    /// Most registry lookups under way or waiting; further ones are refused at once (503).
    pub max_lookups: usize,
    /// A permission is read again after this, in milliseconds, even if no change was reported.
    pub max_age_ms: u64,
}

/// What tunnels may reach.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tunnel {
    /// Envoy's own listeners (`ip:port`), which no tunnel may reach. This service's are known.
    pub gateway_listeners: Vec<SocketAddr>,
    /// Destinations that may resolve to addresses that are not public.
    pub private: Vec<Private>,
    /// Most tunnels open at a time; further ones are refused (429).
    pub max_tunnels: usize,
    /// Most tunnels open at a time with one agent key; further ones are refused (429).
    pub max_tunnels_per_key: usize,
    /// How long opening a tunnel may wait for the registry to confirm that it may be open, in
    /// milliseconds; less than the `message_timeout` of Envoy's `ext_proc`.
    pub open_timeout_ms: u64,
    /// How long tunnels live on while the registry confirms nothing, in milliseconds; then they
    /// are cut.
    pub max_unconfirmed_ms: u64,
    /// How long tunnels live on when this service stops, in milliseconds; then they are cut.
    pub drain_timeout_ms: u64,
}

/// `[[tunnel.private]]`: for one destination, never for all, or a granted name whose DNS an
/// attacker controls would reach the whole range.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Private {
    /// `host:port`.
    #[serde(deserialize_with = "from_text")]
    pub destination: Destination,
    /// The ranges that it may resolve to.
    pub cidrs: Vec<IpNet>,
}

/// A record of each decision.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// The file that records are appended to; nothing is recorded without one. Also `AUDIT_PATH`.
    pub path: Option<PathBuf>,
    /// Whether each record also goes to stdout.
    pub stdout: bool,
    /// The size in bytes at which the file is put aside and a new one begun.
    pub max_file_bytes: u64,
    /// The name of this replica in its records; the machine's host name if not set.
    pub replica: Option<String>,
    /// Most records that wait to be written; further decisions are denied (503).
    pub max_waiting: usize,
    /// How long after its decision was answered, in milliseconds, the disk may get a record that
    /// until then only the operating system has; if not set, the disk has it before.
    pub sync_delay_ms: Option<u64>,
}

/// How names are resolved.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// Names that are looked up before DNS is asked; `/etc/hosts` by default.
    pub hosts_file: Option<PathBuf>,
    /// Names the DNS servers, `/etc/resolv.conf` by default; its search list is not used.
    pub resolv_conf: Option<PathBuf>,
    /// DNS servers (`ip:port`) in place of those in `resolv_conf`.
    pub nameservers: Vec<SocketAddr>,
    /// Longest wait for an answer, in milliseconds.
    pub timeout_ms: u64,
    /// Most answers kept.
    pub cache_entries: u64,
    /// Longest an answer is kept, in milliseconds, whatever its TTL says.
    pub max_ttl_ms: u64,
}

/// Logs and traces.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Observability {
    /// A tracing filter, such as `info` or `authz_service=debug`.
    pub log_level: String,
    /// OTLP gRPC endpoint for traces, such as `http://127.0.0.1:4317`; none by default.
    pub otlp_endpoint: Option<String>,
    /// Whether logs go to stdout; from `AGENT_GATEWAY_LOG_STDOUT` alone.
    #[serde(skip)]
    pub log_stdout: bool,
}

/// Reads a text by the type's own parser.
pub(crate) fn from_text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    String::deserialize(deserializer)?
        .parse()
        .map_err(de::Error::custom)
}

/// A text that is never shown.
#[derive(Clone, Deserialize)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Config {
    /// Reads the file and the environment.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let figment = Figment::from(Toml::string(&text))
            .merge(existing_environment())
            .merge(Env::prefixed(ENVIRONMENT).split("__"));
        for key in ["listen_addr", "tls_cert_path", "tls_key_path"] {
            if figment.find_value(&format!("server.{key}")).is_ok() {
                return Err(ConfigError::Moved(key));
            }
        }
        let mut config: Self = figment
            .extract()
            .map_err(|error| ConfigError::invalid(path, error))?;
        config.observability.log_stdout =
            !std::env::var("AGENT_GATEWAY_LOG_STDOUT").is_ok_and(|value| value == "false");
        config.check()?;
        Ok(config)
    }

    /// Refuses what is well-formed and yet unsafe.
    fn check(&self) -> Result<(), ConfigError> {
        self.check_listeners()?;
        self.check_profiles()?;
        if self
            .audit
            .path
            .as_ref()
            .is_some_and(|path| !path.is_absolute() || path.file_name().is_none())
        {
            return Err(ConfigError::NotAbsolute("audit.path"));
        }
        let replica = self.audit.replica.as_deref();
        if replica.is_some_and(|name| Id::parse(name).is_err()) {
            return Err(ConfigError::NoName("audit.replica"));
        }
        let bounds = self.bounds().into_iter().chain(self.relay.bounds());
        for (key, value, max) in bounds {
            if !(1..=max).contains(&value) {
                return Err(ConfigError::OutOfRange { key, max });
            }
        }
        if self.cache.max_age_ms < self.policy.query_timeout_ms {
            return Err(ConfigError::TooShort {
                key: "cache.max_age_ms",
                than: "policy.query_timeout_ms",
            });
        }
        self.relay.check(&self.policy)
    }

    /// Every number, and the largest that it may be.
    fn bounds(&self) -> impl IntoIterator<Item = (&'static str, u64, u64)> {
        [
            (
                "server.check_timeout_ms",
                self.server.check_timeout_ms,
                MINUTE,
            ),
            (
                "server.shutdown_timeout_ms",
                self.server.shutdown_timeout_ms,
                10 * MINUTE,
            ),
            (
                "server.max_concurrent_checks",
                self.server.max_concurrent_checks as u64,
                1_000_000,
            ),
            (
                "policy.max_connections",
                self.policy.max_connections.into(),
                1000,
            ),
            (
                "policy.connect_timeout_ms",
                self.policy.connect_timeout_ms,
                10 * MINUTE,
            ),
            (
                "policy.pool_acquire_timeout_ms",
                self.policy.pool_acquire_timeout_ms,
                MINUTE,
            ),
            (
                "policy.query_timeout_ms",
                self.policy.query_timeout_ms,
                MINUTE,
            ),
            (
                "policy.poll_interval_ms",
                self.policy.poll_interval_ms,
                MINUTE,
            ),
            (
                "policy.max_staleness_ms",
                self.policy.max_staleness_ms,
                MINUTE,
            ),
            (
                "tunnel.max_tunnels",
                self.tunnel.max_tunnels as u64,
                1_000_000,
            ),
            (
                "tunnel.max_tunnels_per_key",
                self.tunnel.max_tunnels_per_key as u64,
                1_000_000,
            ),
            (
                "tunnel.open_timeout_ms",
                self.tunnel.open_timeout_ms,
                MINUTE,
            ),
            (
                "tunnel.max_unconfirmed_ms",
                self.tunnel.max_unconfirmed_ms,
                10 * MINUTE,
            ),
            (
                "tunnel.drain_timeout_ms",
                self.tunnel.drain_timeout_ms,
                60 * MINUTE,
            ),
            ("audit.max_file_bytes", self.audit.max_file_bytes, 1 << 40),
            (
                "audit.max_waiting",
                self.audit.max_waiting as u64,
                1_000_000,
            ),
            (
                "audit.sync_delay_ms",
                self.audit.sync_delay_ms.unwrap_or(1),
                MINUTE,
            ),
            ("cache.max_bytes", self.cache.max_bytes, 1 << 40),
            ("cache.max_unknown", self.cache.max_unknown, 10_000_000),
            (
                "cache.max_lookups",
                self.cache.max_lookups as u64,
                1_000_000,
            ),
            ("cache.max_age_ms", self.cache.max_age_ms, 60 * MINUTE),
            ("dns.timeout_ms", self.dns.timeout_ms, MINUTE),
            ("dns.cache_entries", self.dns.cache_entries, 10_000_000),
            ("dns.max_ttl_ms", self.dns.max_ttl_ms, 24 * 60 * MINUTE),
        ]
    }

    fn check_listeners(&self) -> Result<(), ConfigError> {
        let Server {
            grpc_addr,
            ref socket,
            ref tls,
            ..
        } = self.server;
        if tls.is_none() && !grpc_addr.ip().is_loopback() {
            return Err(ConfigError::ServerNotLoopback(grpc_addr));
        }
        let admin = self.admin.grpc_addr;
        if !admin.ip().is_loopback() {
            return Err(ConfigError::AdminNotLoopback(admin));
        }
        if tls.is_some() && socket.is_some() {
            return Err(ConfigError::SocketWithTls);
        }
        for (key, path) in [
            ("server.socket", socket),
            ("admin.socket", &self.admin.socket),
        ] {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                return Err(ConfigError::NotAbsolute(key));
            }
        }
        let names = tls.iter().flat_map(|tls| &tls.client_names);
        if names.into_iter().any(String::is_empty) {
            return Err(ConfigError::EmptyClientName);
        }
        Ok(())
    }

    /// Where the rules for tool calls are; `None` where there are to be no calls.
    pub fn relay_sources(&self) -> Option<Sources> {
        self.relay.sources(&self.policy, self.own_listeners())
    }

    fn check_profiles(&self) -> Result<(), ConfigError> {
        if self.profiles.contains_key(TUNNEL) {
            return Err(ConfigError::TunnelIsBuiltIn);
        }
        let default = &self.policy.profile;
        if default != TUNNEL && !self.profiles.contains_key(default) {
            return Err(ConfigError::NoSuchProfile(default.clone()));
        }
        for (name, profile) in &self.profiles {
            if profile.requests == Requests::Connect && !profile.resolve {
                return Err(ConfigError::TunnelNotResolved(name.clone()));
            }
            if profile.ports.is_empty() || profile.ports.contains(&0) {
                return Err(ConfigError::NoPorts(name.clone()));
            }
        }
        Ok(())
    }

    /// How Checks are answered.
    pub fn check_options(&self) -> check::Options {
        let policy = &self.policy;
        check::Options {
            profiles: Profiles::new(&self.profiles, &policy.profile, &policy.client_ext_oid),
            timeout: Duration::from_millis(self.server.check_timeout_ms),
            most: self.server.max_concurrent_checks,
            traced: self.observability.otlp_endpoint.is_some(),
        }
    }

    /// The registry as the service reads it.
    pub fn registry(&self) -> Result<registry::Options, ConfigError> {
        let policy = &self.policy;
        let url = database_url(
            policy.database_url_env.as_ref(),
            policy.database_url.as_ref(),
        )?;
        let url = url.ok_or(ConfigError::NoDatabase)?;
        Ok(registry::Options {
            url,
            max_connections: policy.max_connections,
            connect_timeout: Duration::from_millis(policy.connect_timeout_ms),
            acquire_timeout: Duration::from_millis(policy.pool_acquire_timeout_ms),
            query_timeout: Duration::from_millis(policy.query_timeout_ms),
            trust_roots: trust::roots(&policy.trust_roots, policy.registry_id.as_deref())?,
        })
    }

    /// Where used nonces are remembered; `None` for in memory.
    pub fn nonce_table(&self) -> Result<Option<registry::Options>, ConfigError> {
        let relay = &self.relay;
        let (variable, url) = (&relay.nonce_database_url_env, &relay.nonce_database_url);
        let Some(url) = database_url(variable.as_ref(), url.as_ref())? else {
            return Ok(None);
        };
        Ok(Some(registry::Options {
            url,
            trust_roots: None,
            ..self.registry()?
        }))
    }

    /// The cache as configured.
    pub fn cache_options(&self) -> CacheOptions {
        let policy = &self.policy;
        CacheOptions {
            max_bytes: self.cache.max_bytes,
            max_unknown: self.cache.max_unknown,
            max_lookups: self.cache.max_lookups,
            max_age: Duration::from_millis(self.cache.max_age_ms),
            max_staleness: Duration::from_millis(policy.max_staleness_ms),
            lookup_timeout: Duration::from_millis(
                policy.pool_acquire_timeout_ms + policy.query_timeout_ms,
            ),
        }
    }

    /// How decisions are recorded, if they are.
    pub fn audit_options(&self) -> Option<AuditOptions> {
        let audit = &self.audit;
        let host_name = || {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            match name.trim() {
                "" => "authz".to_owned(),
                name => name.to_owned(),
            }
        };
        Some(AuditOptions {
            path: audit.path.clone()?,
            stdout: audit.stdout,
            max_file_bytes: audit.max_file_bytes,
            replica: audit.replica.clone().unwrap_or_else(host_name),
            max_waiting: audit.max_waiting,
            sync_delay: audit.sync_delay_ms.map(Duration::from_millis),
        })
    }

    /// Where Envoy is listened for, as a text.
    pub(crate) fn grpc_listener(&self) -> String {
        match &self.server.socket {
            Some(path) => path.display().to_string(),
            None => self.server.grpc_addr.to_string(),
        }
    }

    /// Where certificate, key and CA of `[server.tls]` are.
    pub(crate) fn tls_files(&self) -> Option<TlsFiles> {
        self.server.tls.as_ref().map(|tls| TlsFiles {
            certificate: tls.cert.clone(),
            key: tls.key.clone(),
            client_ca: tls.client_ca.clone(),
        })
    }

    /// Bounds on tunnels.
    pub fn tunnel_limits(&self) -> Limits {
        Limits {
            total: self.tunnel.max_tunnels,
            per_key: self.tunnel.max_tunnels_per_key,
            open_timeout: Duration::from_millis(self.tunnel.open_timeout_ms),
            max_unconfirmed: Duration::from_millis(self.tunnel.max_unconfirmed_ms),
        }
    }

    /// How the registry's changes are followed.
    pub fn follow_options(&self) -> FollowOptions {
        FollowOptions {
            poll_interval: Duration::from_millis(self.policy.poll_interval_ms),
            read_timeout: Duration::from_millis(self.policy.query_timeout_ms),
        }
    }

    /// The URL to migrate with: `AGENT_GATEWAY_MIGRATE_DATABASE_URL` where it is set, for the
    /// role that owns the tables; else the service's own.
    pub fn migrate_url(&self) -> Result<String, ConfigError> {
        match std::env::var("AGENT_GATEWAY_MIGRATE_DATABASE_URL") {
            Ok(url) => Ok(url),
            Err(_) => self.registry().map(|options| options.url),
        }
    }

    /// Name resolution as configured.
    pub fn dns_options(&self) -> DnsOptions {
        DnsOptions {
            hosts_file: self.dns.hosts_file.clone(),
            resolv_conf: self.dns.resolv_conf.clone(),
            nameservers: self.dns.nameservers.clone(),
            timeout: Duration::from_millis(self.dns.timeout_ms),
            cache_entries: self.dns.cache_entries,
            max_ttl: Duration::from_millis(self.dns.max_ttl_ms),
            ..DnsOptions::default()
        }
    }

    /// The destinations that may be private.
    pub fn private_rules(&self) -> Vec<PrivateRule> {
        let rule = |private: &Private| PrivateRule {
            destination: private.destination.clone(),
            cidrs: private.cidrs.clone(),
        };
        self.tunnel.private.iter().map(rule).collect()
    }

    /// Every listener of the gateway: this service's, and Envoy's as configured.
    pub fn own_listeners(&self) -> Vec<SocketAddr> {
        let mut listeners = vec![self.admin.grpc_addr, self.admin.http_addr];
        if self.server.socket.is_none() {
            listeners.push(self.server.grpc_addr);
        }
        listeners.extend(&self.tunnel.gateway_listeners);
        listeners
    }
}

/// What the variable holds, or else the URL itself.
fn database_url(
    variable: Option<&String>,
    url: Option<&Secret>,
) -> Result<Option<String>, ConfigError> {
    match (variable, url) {
        (Some(name), _) => {
            let held = std::env::var(name).map_err(|_| ConfigError::NoSuchVariable(name.clone()));
            held.map(Some)
        }
        (None, url) => Ok(url.map(|Secret(url)| url.clone())),
    }
}

#[cfg(test)]
mod tests;
