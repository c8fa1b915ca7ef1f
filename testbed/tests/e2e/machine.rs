//! An agent's machine before a gateway: a TPM key, the sidecar, and what it may reach.

use std::net::SocketAddr;

use testbed::agent::LocalAnswer;
use testbed::gateway::{AGENT, private};
use testbed::rows::Grant;
use testbed::{Agent, AuthzOptions, Behaviour, Envoy, Gateway, Sidecar, TcpService};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::open_tunnels::PATIENCE;

pub(crate) struct Machine {
    pub(crate) gateway: Gateway,
    pub(crate) agent: Agent,
    pub(crate) sidecar: Sidecar,
    pub(crate) service: TcpService,
    pub(crate) destination: String,
    /// A second service, which floods, and where it is.
    pub(crate) flood: (TcpService, String),
    /// A third one, which reads nothing.
    pub(crate) silent: (TcpService, String),
}

impl Machine {
    /// An agent whose TPM key may reach a service that behaves as told.
    pub(crate) async fn granted(behaviour: Behaviour) -> Self {
        Self::granted_replacing(behaviour, &[]).await
    }

    /// As [`Machine::granted`], with other text in `envoy.yaml`.
    pub(crate) async fn granted_replacing(behaviour: Behaviour, replace: &[(&str, &str)]) -> Self {
        let (service, rule) = service("docstore", behaviour).await;
        let (flood, flood_rule) = self::service("flood", Behaviour::Flood).await;
        let (silent, silent_rule) = self::service("silent", Behaviour::Silent).await;
        let destination = rule.0.clone();
        let (flood, silent) = (
            (flood, flood_rule.0.clone()),
            (silent, silent_rule.0.clone()),
        );
        let options = AuthzOptions {
            hosts: "127.0.0.1 docstore flood silent".to_owned(),
            private: vec![rule, flood_rule, silent_rule],
            // As many tunnels with one key as a test may want.
            environment: vec![(
                "AGENT_GATEWAY__TUNNEL__MAX_TUNNELS_PER_KEY".to_owned(),
                "2000".to_owned(),
            )],
            ..AuthzOptions::default()
        };
        let gateway = Gateway::start_replacing(options, replace).await.unwrap();
        let agent = Agent::init(AGENT).unwrap();
        for destination in [&destination, &flood.1, &silent.1] {
            grant(&gateway, &agent, destination);
        }
        gateway.authz.settle().await;
        let sidecar = agent.run(gateway.envoy.addr(), &gateway.pki).unwrap();
        Self {
            gateway,
            agent,
            sidecar,
            service,
            destination,
            flood,
            silent,
        }
    }

    /// Gives the agent a permission for one more destination.
    pub(crate) fn grant(&self, destination: &str) {
        grant(&self.gateway, &self.agent, destination);
    }

    /// Replaces the sidecar by one that knows these gateways.
    pub(crate) fn run_with(&mut self, gateways: &[SocketAddr], more: &[&str]) {
        self.sidecar.process().terminate().unwrap();
        self.sidecar = self
            .agent
            .run_with(gateways, &self.gateway.pki, more)
            .unwrap();
    }

    /// Asks for a tunnel to the service.
    pub(crate) async fn connect(&self) -> LocalAnswer {
        self.sidecar.connect(&self.destination).await.unwrap()
    }

    pub(crate) async fn connect_status(&self) -> u16 {
        self.connect().await.status
    }

    /// An open tunnel.
    pub(crate) async fn tunnel(&self, destination: &str) -> TcpStream {
        let answer = self.sidecar.connect(destination).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.stream
    }

    /// Connections that were made to the gateway since its start.
    pub(crate) async fn connections(&self) -> u64 {
        connections(&self.gateway.envoy).await
    }
}

/// Handshakes with this Envoy since its start: connections of sidecars, each with a signature.
pub(crate) async fn connections(envoy: &Envoy) -> u64 {
    let addr = envoy.addr();
    let name = format!("listener.{}_{}.ssl.handshake", addr.ip(), addr.port());
    envoy.stat(&name).await.unwrap()
}

fn grant(gateway: &Gateway, agent: &Agent, destination: &str) {
    gateway.scope(destination).unwrap();
    let grant = Grant::new(AGENT, &agent.spki_der().unwrap(), destination);
    gateway.principal.grant(&gateway.database, &grant).unwrap();
}

async fn service(name: &str, behaviour: Behaviour) -> (TcpService, (String, Vec<String>)) {
    let service = TcpService::start([127, 0, 0, 1], behaviour).await.unwrap();
    let rule = private(name, &service);
    (service, rule)
}

/// Whether bytes come back from a service that echoes.
pub(crate) async fn lives(tunnel: &mut TcpStream) -> bool {
    let echo = async {
        tunnel.write_all(b"ping").await?;
        let mut echoed = [0; 4];
        tunnel.read_exact(&mut echoed).await.map(|_| echoed)
    };
    matches!(timeout(PATIENCE, echo).await.unwrap(), Ok(echoed) if &echoed == b"ping")
}

pub(crate) fn bytes(length: usize) -> Vec<u8> {
    (0..=250u8).cycle().take(length).collect()
}
