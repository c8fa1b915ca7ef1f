//! Why the service doesn't start, or ends.

use std::net::SocketAddr;

use listeners::InheritedError;
use registry::OpenError;

use crate::audit::AuditFileError;
use crate::config::ConfigError;
use crate::connections::{SocketError, TlsError};
use crate::relay::policy::opa::OpaUrlError;
use crate::relay::rules::RulesError;
use crate::resolver::ResolverConfigError;
use crate::telemetry::TelemetryError;

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
