//! Starts the listeners, and ends them when told to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::AuthorizationServer;
use proto::admin::v1::debug_server::DebugServer;
use registry::{OpenError, Reader};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::addresses::{AddressPolicy, is_this_machine};
use crate::admin::{Explainer, Probes};
use crate::check::Checks;
use crate::config::{Config, ConfigError};
use crate::decision_point::DecisionPoint;
use crate::metrics::Metrics;
use crate::resolver::{Resolver, ResolverConfigError};
use crate::telemetry::TelemetryError;

/// Largest message taken, in bytes; a Check of a CONNECT is a certificate and a few headers.
const MAX_MESSAGE: usize = 256 * 1024;
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
    /// The registry.
    #[error(transparent)]
    Registry(#[from] OpenError),
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

impl ServeError {
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Config(error) => error.hint(),
            Self::Dns(_) => "see [dns] in config.example.toml",
            Self::Telemetry(_) => "see [observability] in config.example.toml",
            Self::Registry(_) => "the service reads the registry at start, and won't run without",
            Self::Bind { .. } => "another process may have it: `ss -ltnp` tells",
            Self::Reflection(_) | Self::Listener(_) | Self::Io(_) => "the log has more",
        }
    }
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

/// Serves until SIGTERM or SIGINT, then finishes what was begun.
pub async fn run(config: &Config) -> Result<(), ServeError> {
    let (resolver, addresses) = prepare(config)?;
    let options = config.registry()?;
    let registry = Reader::open(&options).await?;
    if registry
        .can_write(Instant::now() + options.query_timeout)
        .await
        == Some(true)
    {
        tracing::warn!(
            "the database role could change permissions; one that is only a member of \
             agent_gateway_reader is enough"
        );
    }
    let oid = config.policy.client_ext_oid.clone();
    let point = Arc::new(DecisionPoint {
        registry,
        resolver,
        addresses,
        oid,
    });
    let metrics = Metrics::default();
    let probes = Probes::new(Arc::clone(&point), metrics.clone());
    let check_timeout = Duration::from_millis(config.server.check_timeout_ms);
    let checks = Checks::new(Arc::clone(&point), metrics, check_timeout);

    let grpc = bind("server.grpc_addr", config.server.grpc_addr).await?;
    let admin_grpc = bind("admin.grpc_addr", config.admin.grpc_addr).await?;
    let admin_http = bind("admin.http_addr", config.admin.http_addr).await?;
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    if !config.admin.http_addr.ip().is_loopback() {
        tracing::warn!(address = %config.admin.http_addr, "metrics are open to the network");
    }

    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let envoy = serve_envoy(config, grpc, checks.clone(), stop.clone()).await;
    let explainer = Explainer::new(point, check_timeout);
    let admin = serve_admin(admin_grpc, checks, explainer, stop.clone()).await?;
    let mut envoy = tasks.spawn(envoy);
    let mut admin = tasks.spawn(admin);
    let stopped = stop.clone().cancelled_owned();
    let router = probes.clone().router();
    tasks.spawn(async {
        axum::serve(admin_http, router)
            .with_graceful_shutdown(stopped)
            .await
    });
    tracing::info!(
        grpc = %config.server.grpc_addr,
        admin_grpc = %config.admin.grpc_addr,
        admin_http = %config.admin.http_addr,
        "serving"
    );

    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = &mut envoy => Some(ended),
        ended = &mut admin => Some(ended),
    };
    tracing::info!("stopping");
    probes.drain();
    stop.cancel();
    tasks.close();
    let drain = Duration::from_millis(config.server.shutdown_timeout_ms);
    if timeout(drain, tasks.wait()).await.is_err() {
        tracing::warn!("Checks were still in progress at the end");
    }
    match failed {
        Some(Ok(ended)) => Ok(ended?),
        Some(Err(panicked)) => Err(std::io::Error::other(panicked).into()),
        None => Ok(()),
    }
}

async fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Bind {
            key,
            address,
            source,
        })
}

type Serving = futures::future::BoxFuture<'static, Result<(), tonic::transport::Error>>;

/// The listener that Envoy talks to: decisions and health, nothing else.
async fn serve_envoy(
    config: &Config,
    listener: TcpListener,
    checks: Checks,
    stop: CancellationToken,
) -> Serving {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AuthorizationServer<Checks>>().await;
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .concurrency_limit_per_connection(config.server.max_concurrent_checks)
        .load_shed(true)
        .add_service(authorization(checks))
        .add_service(health_service);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Box::pin(async move {
        let stopping = async move {
            stop.cancelled().await;
            health
                .set_not_serving::<AuthorizationServer<Checks>>()
                .await;
        };
        router
            .serve_with_incoming_shutdown(incoming, stopping)
            .await
    })
}

/// The listener for people: the same decisions, explained, and gRPC reflection.
async fn serve_admin(
    listener: TcpListener,
    checks: Checks,
    explainer: Explainer,
    stop: CancellationToken,
) -> Result<Serving, ServeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AuthorizationServer<Checks>>().await;
    // grpcurl up to 1.8 speaks only v1alpha, newer tools v1.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(proto::ENVOY_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("agent_gateway.admin.v1.Debug")
            .with_service_name("envoy.service.auth.v3.Authorization")
            .with_service_name("grpc.health.v1.Health")
    };
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .concurrency_limit_per_connection(32)
        .load_shed(true)
        .add_service(authorization(checks))
        .add_service(DebugServer::new(explainer).max_decoding_message_size(MAX_MESSAGE))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(health_service);
    let incoming = TcpIncoming::from(listener);
    Ok(Box::pin(async move {
        router
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await
    }))
}

fn authorization(checks: Checks) -> AuthorizationServer<Checks> {
    AuthorizationServer::new(checks).max_decoding_message_size(MAX_MESSAGE)
}
