//! Starts the listeners, and ends them when told to.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::AccessLogServiceServer;
use envoy_types::pb::envoy::service::auth::v3::authorization_server::AuthorizationServer;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::ExternalProcessorServer;
use futures::stream::{BoxStream, pending, select};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use listeners::{Inherited, InheritedError, notify};
use proto::admin::v1::debug_server::DebugServer;
use proto::admin::v1::operations_server::OperationsServer;
use registry::{Feed, NonceTable, OpenError, Reader};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;
use tracing::field;

use crate::addresses::{AddressPolicy, is_this_machine};
use crate::admin::{Explainer, Operations, Probes};
use crate::audit::{AccessLog, Audit, AuditFileError, AuditWriter};
use crate::cache::Cache;
use crate::check::Checks;
use crate::config::{Config, ConfigError};
use crate::connections::{
    self, Connection, Reloader, Socket, SocketError, SocketMode, Tls, TlsError, Wakers,
};
use crate::decision_point::DecisionPoint;
use crate::follow::{follow, listen};
use crate::freshness::Freshness;
use crate::metrics::Metrics;
use crate::relay::nonces::{Memory, Nonces, Table};
use crate::relay::policy::opa::{Opa, OpaUrlError};
use crate::relay::reload::CurrentRules;
use crate::relay::rules::RulesError;
use crate::relay::{self, Bodies, Budget, Relay};
use crate::resolver::{Resolver, ResolverConfigError};
use crate::telemetry::TelemetryError;
use crate::timed::Timed;
use crate::tunnels::Tunnels;

/// Largest message taken, in bytes; a Check of a CONNECT is a certificate and a few headers.
const MAX_MESSAGE: usize = 256 * 1024;
/// Most connections at a time on each listener; Envoy opens one for each of its threads.
const MAX_ENVOY_CONNECTIONS: usize = 256;
const MAX_ADMIN_CONNECTIONS: usize = 32;
const MAX_HTTP_CONNECTIONS: usize = 32;
/// Most calls in progress on one connection for people.
const MAX_ADMIN_CALLS: usize = 32;
/// What a call may take beyond the Check itself: a message that never comes holds no place.
const MESSAGE_TIMEOUT: Duration = Duration::from_millis(500);
/// Most streams of the access log on one connection, beyond the Checks: Envoy opens one or two.
const MAX_LOG_STREAMS: usize = 4;
/// Streams that Envoy may reset before they are looked at.
const MAX_PENDING_RESETS: usize = 10_000;
/// HTTP/2 keep-alive: an Envoy that is gone is noticed, and its Checks are dropped.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Why the service doesn't start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Name resolution.
    #[error("dns: {0}")]
    Dns(#[from] ResolverConfigError),
    /// Logging or tracing.
    #[error(transparent)]
    Telemetry(TelemetryError),
    /// The rules for tool calls.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The OPA server.
    #[error("policy.opa_url: {0}")]
    Opa(#[from] OpaUrlError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] OpenError),
    /// Where nonces of tool calls are remembered.
    #[error("relay.nonce_database_url: {0}")]
    Nonces(#[source] OpenError),
    /// A port is taken, or not ours to take.
    #[error("{key} {address} can't be listened on: {source}")]
    Bind {
        /// Which key.
        key: &'static str,
        /// What it says.
        address: SocketAddr,
        /// What happened.
        source: std::io::Error,
    },
    /// A Unix socket.
    #[error("{key}: {source}")]
    Socket {
        /// Which key.
        key: &'static str,
        /// What is wrong with it.
        source: SocketError,
    },
    /// What the service manager passed.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// mTLS towards Envoy.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The file of audit records.
    #[error("audit.path: {0}")]
    Audit(#[from] AuditFileError),
    /// Reflection's descriptors are broken; a build without them would not have started either.
    #[error("reflection can't be built: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A listener ended by itself.
    #[error("a listener failed: {0}")]
    Listener(#[from] tonic::transport::Error),
    /// The operating system refuses signal handlers or the HTTP listener.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// What is made from the configuration alone, without touching anything outside.
pub fn prepare(config: &Config) -> Result<(Resolver, AddressPolicy), ServeError> {
    let resolver = Resolver::new(&config.dns_options())?;
    let addresses = AddressPolicy::new(
        config.private_rules(),
        config.own_listeners(),
        is_this_machine,
    );
    Ok((resolver, addresses))
}

/// The mTLS of Envoy's listener, if there is to be any.
pub(crate) fn tls(config: &Config) -> Result<Option<(Tls, Reloader)>, TlsError> {
    match (config.tls_files(), &config.server.tls) {
        (Some(files), Some(server)) => Tls::load(files, &server.client_names).map(Some),
        _ => Ok(None),
    }
}

/// Reads the rules for tool calls, where there are to be any.
pub fn check_rules(config: &Config) -> Result<(), ServeError> {
    if let Some(sources) = config.relay_sources() {
        sources.load()?;
    }
    opa(config)?;
    Ok(())
}

fn opa(config: &Config) -> Result<Option<Opa>, OpaUrlError> {
    config.policy.opa_url.as_deref().map(Opa::new).transpose()
}

/// Serves until SIGTERM or SIGINT, then finishes what was begun. Of the `inherited` sockets each
/// takes the place of one that would be opened.
pub async fn run(config: &Config, inherited: Inherited) -> Result<(), ServeError> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    // Who told it to read files anew did not mean to end it, where there are none.
    let _hangup = signal(SignalKind::hangup())?;
    let mut running = start(config, inherited).await?;
    tell(notify::ready());
    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = &mut running.envoy => Some(ended),
        ended = &mut running.admin => Some(ended),
        ended = &mut running.follower => Some(ended.map(Ok)),
    };
    tell(notify::stopping());
    running.stop(config).await;
    match failed {
        Some(Ok(ended)) => Ok(ended?),
        Some(Err(panicked)) => Err(std::io::Error::other(panicked).into()),
        None => Ok(()),
    }
}

fn tell(told: io::Result<()>) {
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager can't be told");
    }
}

type Listener = JoinHandle<Result<(), tonic::transport::Error>>;

/// What runs, and how to end it.
struct Running {
    envoy: Listener,
    admin: Listener,
    /// Without it no Check could be answered; it never ends by itself.
    follower: JoinHandle<()>,
    probes: Probes,
    health: HealthReporter,
    /// Ends the listeners, when what was begun on them has ended.
    stop: CancellationToken,
    /// Cuts the open tunnels.
    cut: CancellationToken,
    tasks: TaskTracker,
    tunnels: Tunnels,
    audit_writer: Option<AuditWriter>,
}

impl Running {
    async fn stop(self, config: &Config) {
        tracing::info!("stopping");
        self.probes.drain();
        self.health
            .set_not_serving::<AuthorizationServer<Checks>>()
            .await;
        self.stop.cancel();
        self.tasks.close();
        // Open tunnels hold their connection's end back: first they may end by themselves, then
        // they are cut.
        let drain = Duration::from_millis(config.tunnel.drain_timeout_ms);
        let _ = timeout(drain, self.tasks.wait()).await;
        self.cut.cancel();
        let drain = Duration::from_millis(config.server.shutdown_timeout_ms);
        if timeout(drain, self.tasks.wait()).await.is_err() {
            tracing::warn!("Checks were still in progress at the end");
        }
        if let Some(writer) = self.audit_writer {
            if timeout(drain, self.tunnels.recorded()).await.is_err() {
                tracing::error!("the end of some tunnels was not recorded");
            }
            let closed = tokio::task::spawn_blocking(|| writer.close());
            if timeout(drain, closed).await.is_err() {
                tracing::error!("the audit was still being written at the end");
            }
        }
    }
}

/// Opens the registry and the listeners.
async fn start(config: &Config, mut inherited: Inherited) -> Result<Running, ServeError> {
    let options = config.registry()?;
    let tls = tls(config)?;
    let freshness = Arc::new(Freshness::default());
    let point = Arc::new(decision_point(config, &options, &freshness).await?);
    let feed = Feed::new(&options.url, options.query_timeout)?.leading(&point.registry);
    let metrics = Metrics::default();
    let wakers = Wakers::default();
    let (audit, audit_writer) = open_audit(config, &metrics, &wakers)?;
    let (rules, relay) = relay(config, &point, &audit, &metrics).await?.unzip();
    let probes = Probes::new(
        Arc::clone(&point),
        rules,
        Arc::clone(&freshness),
        audit.clone(),
        metrics.clone(),
    );
    let check_timeout = Duration::from_millis(config.server.check_timeout_ms);
    let check_options = config.check_options();
    let explainer = Explainer::new(Arc::clone(&point), &check_options);
    let checks = Checks::new(
        Arc::clone(&point),
        relay,
        audit.clone(),
        metrics.clone(),
        check_options,
    );

    let from = &mut inherited;
    let envoy_incoming = envoy_connections(config, tls, from).await?;
    let envoy_incoming = envoy_incoming.map_ok(move |it| it.woken_by(&wakers));
    let admin_grpc = open("admin.grpc_addr", config.admin.grpc_addr, from).await?;
    let admin_socket = match &config.admin.socket {
        Some(path) => Some(open_socket("admin.socket", path, SocketMode::Owner, from).await?),
        None => None,
    };
    let admin_http = open("admin.http_addr", config.admin.http_addr, from).await?;
    inherited.all_taken()?;
    warn_of_open_metrics(config);

    let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
    let tasks = TaskTracker::new();
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AuthorizationServer<Checks>>().await;
    let cache = point.cache.clone();
    let limits = config.tunnel_limits();
    let tunnels = Tunnels::new(
        cache,
        Arc::clone(&freshness),
        limits,
        audit.clone(),
        metrics,
        cut.clone(),
    );
    let access_log = AccessLog::new(audit, stop.clone());
    let operations = Operations::new(
        Arc::clone(&freshness),
        point.cache.clone(),
        tunnels.clone(),
        Duration::from_millis(config.policy.max_staleness_ms),
        config.admin.socket.clone(),
    );
    let calls = envoy_calls(
        config,
        checks.clone(),
        tunnels.clone(),
        access_log,
        health_service.clone(),
    );
    let stopped = stop.clone().cancelled_owned();
    let envoy = tasks.spawn(calls.serve_with_incoming_shutdown(envoy_incoming, stopped));

    let calls = admin_calls(check_timeout, checks, explainer, operations, health_service)?;
    let incoming = admin_connections(admin_grpc, admin_socket);
    let stopped = stop.clone().cancelled_owned();
    let admin = tasks.spawn(calls.serve_with_incoming_shutdown(incoming, stopped));

    // These end with the program: Checks in progress at the end still rest on current facts, and
    // whoever probes meanwhile is told that it is stopping.
    let following = follow(feed, Arc::clone(&freshness), config.follow_options());
    let follower = tokio::spawn(following);
    tokio::spawn(listen(options.url, freshness));
    let incoming =
        connections::accept(connections::Listener::Tcp(admin_http), MAX_HTTP_CONNECTIONS);
    tokio::spawn(probes.clone().serve(incoming));
    tracing::info!(
        grpc = config.grpc_listener(),
        admin_grpc = %config.admin.grpc_addr,
        admin_http = %config.admin.http_addr,
        admin_socket = config.admin.socket.as_ref().map(|path| field::display(path.display())),
        "serving"
    );
    Ok(Running {
        envoy,
        admin,
        follower,
        probes,
        health,
        stop,
        cut,
        tasks,
        tunnels,
        audit_writer,
    })
}

/// The rules, and what decides by them.
type ToolCalls = (Arc<CurrentRules>, Arc<Relay>);

/// What decides about tool calls, where there are to be any.
async fn relay(
    config: &Config,
    point: &Arc<DecisionPoint>,
    audit: &Audit,
    metrics: &Metrics,
) -> Result<Option<ToolCalls>, ServeError> {
    let Some(sources) = config.relay_sources() else {
        return Ok(None);
    };
    let rules = Arc::new(CurrentRules::load(sources, metrics.clone())?);
    // Ends with the program.
    tokio::spawn(Arc::clone(&rules).follow());
    let relay = Relay::new(
        Arc::clone(point),
        Arc::clone(&rules),
        opa(config)?,
        nonces(config).await?,
        audit.clone(),
        metrics.clone(),
        config.relay.options(),
    );
    Ok(Some((rules, Arc::new(relay))))
}

/// What remembers the nonces of tool calls.
async fn nonces(config: &Config) -> Result<Arc<dyn Nonces>, ServeError> {
    let max = config.relay.max_nonces;
    let Some(options) = config.nonce_table()? else {
        tracing::warn!(
            "nonces of tool calls are remembered in memory: a restart forgets them, and other \
             replicas don't know them"
        );
        return Ok(Arc::new(Memory::new(max)));
    };
    let rows = NonceTable::open(&options)
        .await
        .map_err(ServeError::Nonces)?;
    let table = Arc::new(Table::new(rows, max));
    let kept = Arc::clone(&table);
    // Ends with the program.
    tokio::spawn(async move { kept.keep().await });
    tracing::info!("nonces of tool calls are remembered in Postgres, for all replicas");
    Ok(table)
}

/// What decides; the registry is opened for it.
async fn decision_point(
    config: &Config,
    options: &registry::Options,
    freshness: &Arc<Freshness>,
) -> Result<DecisionPoint, ServeError> {
    let (resolver, addresses) = prepare(config)?;
    let registry = Reader::open(options).await?;
    if options.trust_roots.is_none() {
        tracing::warn!(
            "no policy.trust_roots: whoever writes the registry's tables decides who may reach what"
        );
    }
    let deadline = Instant::now() + options.query_timeout;
    if registry.can_write(deadline).await == Some(true) {
        tracing::warn!(
            "the database role could change permissions; one that is only a member of \
             agent_gateway_reader is enough"
        );
    }
    let freshness = Arc::clone(freshness);
    Ok(DecisionPoint {
        cache: Cache::new(registry.clone(), freshness, config.cache_options()),
        registry,
        resolver,
        addresses,
    })
}

fn warn_of_open_metrics(config: &Config) {
    if !config.admin.http_addr.ip().is_loopback() {
        tracing::warn!(address = %config.admin.http_addr, "metrics are open to the network");
    }
}

fn open_audit(
    config: &Config,
    metrics: &Metrics,
    wakers: &Wakers,
) -> Result<(Audit, Option<AuditWriter>), ServeError> {
    let Some(options) = config.audit_options() else {
        return Ok((Audit::off(), None));
    };
    let (audit, writer) = Audit::open(&options, metrics.clone(), wakers.clone())?;
    Ok((audit, Some(writer)))
}

/// The socket that was handed over for `address`, or else a new one.
async fn open(
    key: &'static str,
    address: SocketAddr,
    inherited: &mut Inherited,
) -> Result<TcpListener, ServeError> {
    let listener = match inherited.tcp(address) {
        Some(listener) => TcpListener::from_std(listener),
        None => TcpListener::bind(address).await,
    };
    listener.map_err(|source| ServeError::Bind {
        key,
        address,
        source,
    })
}

async fn open_socket(
    key: &'static str,
    path: &Path,
    mode: SocketMode,
    inherited: &mut Inherited,
) -> Result<Socket, ServeError> {
    Socket::open(path, mode, inherited)
        .await
        .map_err(|source| ServeError::Socket { key, source })
}

/// Envoy's: over the socket if there is one, else over TCP, with mTLS if that is set up.
async fn envoy_connections(
    config: &Config,
    tls: Option<(Tls, Reloader)>,
    inherited: &mut Inherited,
) -> Result<BoxStream<'static, io::Result<Connection>>, ServeError> {
    let server = &config.server;
    if let Some(path) = &server.socket {
        let socket = open_socket("server.socket", path, server.socket_mode, inherited).await?;
        let listener = connections::Listener::Unix(socket);
        return Ok(connections::accept(listener, MAX_ENVOY_CONNECTIONS).boxed());
    }
    let listener = open("server.grpc_addr", server.grpc_addr, inherited).await?;
    let listener = connections::Listener::Tcp(listener);
    let Some((tls, reloader)) = tls else {
        return Ok(connections::accept(listener, MAX_ENVOY_CONNECTIONS).boxed());
    };
    tokio::spawn(reloader.run(signal(SignalKind::hangup())?));
    Ok(connections::accept_tls(listener, tls, MAX_ENVOY_CONNECTIONS).boxed())
}

/// Those of people. Each listener has its own share: whoever takes all of the one leaves the
/// operator's alone.
fn admin_connections(
    tcp: TcpListener,
    socket: Option<Socket>,
) -> impl Stream<Item = io::Result<Connection>> {
    let tcp = connections::accept(connections::Listener::Tcp(tcp), MAX_ADMIN_CONNECTIONS);
    let socket = socket.map_or_else(
        || pending().boxed(),
        |socket| {
            connections::accept(connections::Listener::Unix(socket), MAX_ADMIN_CONNECTIONS).boxed()
        },
    );
    select(socket, tcp.boxed())
}

/// What Envoy may call: decisions, open tunnels, its access log and health, nothing else.
fn envoy_calls(
    config: &Config,
    checks: Checks,
    tunnels: Tunnels,
    access_log: AccessLog,
    health: HealthServer<impl Health>,
) -> Router {
    let most = config.server.max_concurrent_checks;
    let (mut longest, mut largest) = (config.server.check_timeout_ms, MAX_MESSAGE);
    if config.relay_sources().is_some() {
        longest = longest.max(config.relay.check_timeout_ms);
        largest += relay::MAX_BODY;
    }
    let bodies = Budget::new(config.relay.max_bodies_bytes);
    let check_timeout = Duration::from_millis(longest);
    // Each open tunnel is a stream for as long as it lives.
    let most_streams = u32::try_from(2 * most + config.tunnel.max_tunnels).unwrap_or(u32::MAX);
    let tunnels = ExternalProcessorServer::new(tunnels).max_decoding_message_size(MAX_MESSAGE);
    let access_log = AccessLogServiceServer::new(access_log).max_decoding_message_size(MAX_MESSAGE);
    let longest = check_timeout + MESSAGE_TIMEOUT;
    bounded(most + MAX_LOG_STREAMS)
        .max_concurrent_streams(most_streams)
        .add_service(Timed::new(
            Bodies::counted(authorization(checks, largest), bodies),
            longest,
        ))
        .add_service(Timed::new(tunnels, longest))
        .add_service(access_log)
        .add_service(Timed::new(health, longest))
}

/// What people may call: the same decisions, explained, what is held in memory, and gRPC reflection.
fn admin_calls(
    check_timeout: Duration,
    checks: Checks,
    explainer: Explainer,
    operations: Operations,
    health: HealthServer<impl Health>,
) -> Result<Router, ServeError> {
    // grpcurl up to 1.8 speaks only v1alpha, newer tools v1.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(proto::ENVOY_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("agent_gateway.admin.v1.Debug")
            .with_service_name("agent_gateway.admin.v1.Operations")
            .with_service_name("envoy.service.auth.v3.Authorization")
            .with_service_name("grpc.health.v1.Health")
    };
    Ok(bounded(MAX_ADMIN_CALLS)
        .timeout(check_timeout + MESSAGE_TIMEOUT)
        .add_service(authorization(checks, MAX_MESSAGE))
        .add_service(DebugServer::new(explainer).max_decoding_message_size(MAX_MESSAGE))
        .add_service(OperationsServer::new(operations).max_decoding_message_size(MAX_MESSAGE))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(health))
}

/// A server with at most so many calls in progress on a connection. Further ones are refused at
/// once, but each takes a stream until it has its answer, so there may be twice as many of those.
fn bounded(most_calls: usize) -> Server {
    let most_streams = u32::try_from(2 * most_calls).unwrap_or(u32::MAX);
    Server::builder()
        // Else a client that resets its streams at once would have Envoy's connection closed, and
        // with it everybody's tunnels.
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(most_streams)
        .concurrency_limit_per_connection(most_calls)
        .load_shed(true)
}

fn authorization(checks: Checks, largest: usize) -> AuthorizationServer<Checks> {
    AuthorizationServer::new(checks).max_decoding_message_size(largest)
}
