//! What holds where neither the file nor the environment says otherwise.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use permission::ExtensionOid;

use crate::check::profiles::TUNNEL;
use crate::connections::SocketMode;

use super::{Admin, Audit, Cache, Dns, Observability, Policy, Relay, Server, Tunnel};

impl Default for Server {
    fn default() -> Self {
        Self {
            grpc_addr: loopback(50051),
            socket: None,
            socket_mode: SocketMode::Owner,
            tls: None,
            check_timeout_ms: 1500,
            max_concurrent_checks: 1024,
            shutdown_timeout_ms: 5000,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            grpc_addr: loopback(50052),
            http_addr: loopback(9464),
            socket: None,
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            client_ext_oid: ExtensionOid::default(),
            profile: TUNNEL.to_owned(),
            database_url: None,
            database_url_env: None,
            trust_roots: Vec::new(),
            registry_id: None,
            max_connections: 5,
            connect_timeout_ms: 5000,
            pool_acquire_timeout_ms: 1000,
            query_timeout_ms: 500,
            poll_interval_ms: 200,
            max_staleness_ms: 2000,
            opa_url: None,
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            max_bytes: 96 * 1024 * 1024,
            max_unknown: 10_000,
            max_lookups: 1024,
            max_age_ms: 60_000,
        }
    }
}

/// Envoy's listener and admin interface as in `envoy/envoy.yaml`.
impl Default for Tunnel {
    fn default() -> Self {
        Self {
            gateway_listeners: vec![loopback(8443), loopback(9901)],
            private: Vec::new(),
            max_tunnels: 10_000,
            max_tunnels_per_key: 1024,
            open_timeout_ms: 900,
            max_unconfirmed_ms: 30_000,
            drain_timeout_ms: 5000,
        }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            path: None,
            stdout: false,
            max_file_bytes: 256 * 1024 * 1024,
            replica: None,
            max_waiting: 4096,
            sync_delay_ms: None,
        }
    }
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            tools_file: None,
            tool_urls: BTreeMap::new(),
            egress_file: None,
            agents_file: None,
            poca_required: true,
            max_manifest_ttl_ms: 3_600_000,
            nonce_database_url: None,
            nonce_database_url_env: None,
            max_nonces: 1_000_000,
            replicas: 1,
            contracts_dir: None,
            policy_dir: None,
            policy_timeout_ms: 100,
            check_timeout_ms: 4500,
            max_bodies_bytes: 128 * 1024 * 1024,
        }
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            hosts_file: None,
            resolv_conf: None,
            nameservers: Vec::new(),
            timeout_ms: 1000,
            cache_entries: 10_000,
            max_ttl_ms: 60_000,
        }
    }
}

impl Default for Observability {
    fn default() -> Self {
        Self {
            log_level: "info".to_owned(),
            otlp_endpoint: None,
            log_stdout: true,
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port)
}
