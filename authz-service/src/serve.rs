//! Starts the listeners, and ends them when told to.

mod error;
mod listening;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::AuthorizationServer;
use futures::TryStreamExt as _;
use listeners::{Inherited, notify};
use registry::{Feed, NonceTable, Reader};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic_health::server::HealthReporter;
use tracing::field;

use crate::addresses::{AddressPolicy, is_this_machine};
use crate::admin::{Explainer, Operations, Probes};
use crate::audit::{AccessLog, Audit, AuditWriter};
use crate::cache::Cache;
use crate::check::Checks;
use crate::config::Config;
use crate::connections::{self, Reloader, SocketMode, Tls, TlsError, Wakers};
use crate::decision_point::DecisionPoint;
use crate::follow::{follow, listen};
use crate::freshness::Freshness;
use crate::metrics::Metrics;
use crate::relay::Relay;
use crate::relay::nonces::{Memory, Nonces, Table};
use crate::relay::policy::opa::{Opa, OpaUrlError};
use crate::relay::reload::CurrentRules;
use crate::resolver::Resolver;
use crate::tunnels::Tunnels;

pub use error::ServeError;
use listening::{
    MAX_HTTP_CONNECTIONS, admin_calls, admin_connections, envoy_calls, envoy_connections, open,
    open_socket,
};

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
            if timeout(drain, writer.close()).await.is_err() {
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
