//! Who may connect, and what they may call.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::AccessLogServiceServer;
use envoy_types::pb::envoy::service::auth::v3::authorization_server::AuthorizationServer;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::ExternalProcessorServer;
use futures::stream::{BoxStream, pending, select};
use futures::{Stream, StreamExt as _};
use listeners::Inherited;
use proto::admin::v1::debug_server::DebugServer;
use proto::admin::v1::operations_server::OperationsServer;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic_health::pb::health_server::{Health, HealthServer};

use super::ServeError;
use crate::admin::{Explainer, Operations};
use crate::audit::AccessLog;
use crate::check::Checks;
use crate::config::Config;
use crate::connections::{self, Connection, Reloader, Socket, SocketMode, Tls};
use crate::relay::{self, Bodies, Budget};
use crate::timed::Timed;
use crate::tunnels::Tunnels;

/// Largest message taken, in bytes; a Check of a CONNECT is a certificate and a few headers.
const MAX_MESSAGE: usize = 256 * 1024;
/// Most connections at a time on each listener; Envoy opens one for each of its threads.
const MAX_ENVOY_CONNECTIONS: usize = 256;
const MAX_ADMIN_CONNECTIONS: usize = 32;
pub(super) const MAX_HTTP_CONNECTIONS: usize = 32;
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

/// The socket that was handed over for `address`, or else a new one.
pub(super) async fn open(
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

pub(super) async fn open_socket(
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
pub(super) async fn envoy_connections(
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
pub(super) fn admin_connections(
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
pub(super) fn envoy_calls(
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
pub(super) fn admin_calls(
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
