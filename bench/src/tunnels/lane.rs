//! Ways from an agent to the far end.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use testbed::rows::{Grant, Principal};
use testbed::{
    Agent, Authz, AuthzOptions, Database, Envoy, EnvoyOptions, GatewayPki, Sidecar, authz,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::population::setting;

/// The one agent.
const AGENT: &str = "agent-alpha";

/// As many tunnels as one agent will have at a time, beside those of the part before that are closing.
const MAX_TUNNELS: &str = "2000";

/// A TPM, a sidecar and an Envoy.
#[derive(Debug)]
pub(crate) struct Lane {
    sidecar: Sidecar,
    authority: String,
    /// Kept alive.
    _parts: (Agent, Envoy, GatewayPki),
}

/// The product: a lane whose Envoy asks the service.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) lane: Lane,
    pub(crate) authz: Authz,
    pub(crate) database: Database,
}

/// What it takes to open a tunnel.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    proxy: SocketAddr,
    request: String,
}

impl Lane {
    /// A lane to `far_end` whose Envoy asks nobody.
    pub(crate) async fn unauthorized(far_end: SocketAddr) -> Result<Self> {
        // Nothing listens there, and nobody asks.
        let authz = ([127, 0, 0, 1], 1).into();
        Self::start(Agent::init(AGENT)?, authz, far_end, Some(far_end)).await
    }

    async fn start(
        agent: Agent,
        authz: SocketAddr,
        far_end: SocketAddr,
        unauthorized: Option<SocketAddr>,
    ) -> Result<Self> {
        let pki = GatewayPki::generate()?;
        let envoy = Envoy::start(EnvoyOptions {
            unauthorized,
            ..EnvoyOptions::new(authz, &pki)
        })
        .await?;
        Ok(Self {
            sidecar: agent.run(envoy.addr(), &pki)?,
            authority: authority(far_end),
            _parts: (agent, envoy, pki),
        })
    }

    pub(crate) fn way(&self) -> Way {
        let (authority, token) = (&self.authority, self.sidecar.authorization());
        Way {
            proxy: self.sidecar.addr(),
            request: format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{token}\r\n"),
        }
    }
}

impl Gateway {
    /// A gateway whose one agent may reach `far_end`.
    pub(crate) async fn start(far_end: SocketAddr) -> Result<Self> {
        let database = testbed::database().await?;
        authz::migrate(&database.url())?;
        let authority = authority(far_end);
        let agent = Agent::init(AGENT)?;
        let principal = Principal::registered(&database, &[&authority])?;
        let grant = Grant::new(AGENT, &agent.spki_der()?, &authority);
        principal.grant(&database, &grant)?;
        let name = authority.split(':').next().context("a name")?;
        let authz = Authz::start(&AuthzOptions {
            database_url: database.url(),
            hosts: format!("127.0.0.1 {name}\n"),
            private: vec![(authority.clone(), vec!["127.0.0.1/32".to_owned()])],
            environment: vec![
                // The product's default, in place of the tests' shorter one.
                setting("POLICY__POLL_INTERVAL_MS", "200"),
                // 256 by default: one agent opens them all here.
                setting("TUNNEL__MAX_TUNNELS_PER_KEY", MAX_TUNNELS),
            ],
            ..AuthzOptions::default()
        })?;
        let lane = Lane::start(agent, authz.grpc_addr(), far_end, None).await?;
        Ok(Self {
            lane,
            authz,
            database,
        })
    }
}

/// The far end, as agents name it.
fn authority(far_end: SocketAddr) -> String {
    format!("far-end.test:{}", far_end.port())
}

impl Way {
    /// Asks for a tunnel: the connection, and the head of the answer.
    pub(crate) async fn connect(&self) -> Result<(TcpStream, String)> {
        let mut stream = TcpStream::connect(self.proxy).await?;
        stream.set_nodelay(true)?;
        stream.write_all(self.request.as_bytes()).await?;
        // Nothing comes after the head before the client has sent something.
        let (mut head, mut length) = ([0; 2048], 0);
        loop {
            let rest = head.get_mut(length..).unwrap_or_default();
            let read = stream.read(rest).await?;
            ensure!(read > 0, "the proxy hung up");
            length += read;
            let head = head.get(..length).unwrap_or_default();
            if head.windows(4).any(|end| end == b"\r\n\r\n") {
                return Ok((stream, String::from_utf8_lossy(head).into_owned()));
            }
        }
    }

    /// An open tunnel.
    pub(crate) async fn open(&self) -> Result<TcpStream> {
        let (stream, head) = self.connect().await?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "no tunnel: {head}");
        Ok(stream)
    }
}
