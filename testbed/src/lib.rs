//! Starts the real parts for tests, demo and bench: Postgres, swtpm, Envoy, a DNS server, small
//! TCP services, and clients that can send what no honest client would.
//!
//! Everything listens on loopback, lives in temporary folders, is killed when dropped, and cannot
//! outlive the process that started it. What is needed on the machine is installed by
//! `make setup`.

#![forbid(unsafe_code)]

pub mod agent;
pub mod authz;
pub mod binary;
pub mod bulk;
pub mod ca;
pub mod caller;
pub mod certificate;
pub mod dns;
pub mod envoy;
pub mod fragile_tpm;
pub mod gateway;
pub mod pki;
pub mod port;
pub mod postgres;
pub mod process;
pub mod raw;
pub mod root;
pub mod rows;
pub mod scratch;
pub mod service;
pub mod session;
pub mod swtpm;
pub mod tls;
pub mod tool;
pub mod transcript;
pub mod tunnel;
pub mod wire;

pub use agent::{Agent, Sidecar};
pub use authz::{Authz, AuthzOptions};
pub use bulk::Bulk;
pub use ca::Ca;
pub use caller::Caller;
pub use certificate::ClientCertificate;
pub use dns::DnsServer;
pub use envoy::{Envoy, EnvoyOptions};
pub use fragile_tpm::FragileTpm;
pub use gateway::Gateway;
pub use pki::GatewayPki;
pub use port::free_port;
pub use postgres::{Database, Postgres, database};
pub use process::Process;
pub use raw::RawClient;
pub use root::Root;
pub use service::{Behaviour, TcpService};
pub use session::Session;
pub use swtpm::Swtpm;
pub use tool::ToolServer;
pub use tunnel::TunnelClient;
pub use wire::Wire;
