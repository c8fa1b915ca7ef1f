//! The whole gateway: a migrated database, the authz-service, DNS and Envoy.

use anyhow::Result;

use crate::authz::{self, Authz, AuthzOptions};
use crate::rows::{Grant, Principal};
use crate::tunnel::{Answer, TunnelClient};
use crate::{
    ClientCertificate, Database, DnsServer, Envoy, EnvoyOptions, GatewayPki, Root, TcpService,
};

/// Everything between an agent and what it wants to reach.
#[derive(Debug)]
pub struct Gateway {
    /// Envoy.
    pub envoy: Envoy,
    /// The decision point.
    pub authz: Authz,
    /// Names to addresses, as the test wants them.
    pub dns: DnsServer,
    /// The registry.
    pub database: Database,
    /// A principal, `org-alice`, that is registered and has no scope yet.
    pub principal: Principal,
    /// Who signs its key and scopes, where the service asks for that.
    pub root: Option<Root>,
    /// The gateway's own certificate.
    pub pki: GatewayPki,
}

impl Gateway {
    /// Starts a gateway whose DNS resolves nothing yet.
    pub async fn start() -> Result<Gateway> {
        Self::start_with(AuthzOptions::default()).await
    }

    /// Starts a gateway; database and DNS server of `options` are filled in.
    pub async fn start_with(options: AuthzOptions) -> Result<Gateway> {
        Self::start_replacing(options, &[]).await
    }

    /// As [`Gateway::start_with`], with other text in `envoy.yaml`: see [`EnvoyOptions::replace`].
    pub async fn start_replacing(
        options: AuthzOptions,
        replace: &[(&str, &str)],
    ) -> Result<Gateway> {
        let database = crate::database().await?;
        Self::start_all(database, options, replace).await
    }

    /// As [`Gateway::start_with`], on an empty database of the test's own, which the service
    /// reaches by the URL in `options` if there is one.
    pub async fn start_on(database: Database, options: AuthzOptions) -> Result<Gateway> {
        Self::start_all(database, options, &[]).await
    }

    /// As [`Gateway::start_on`], with this root of trust, which has signed for the principal.
    pub async fn start_rooted(
        database: Database,
        root: Root,
        options: AuthzOptions,
    ) -> Result<Gateway> {
        authz::migrate(&database.url())?;
        let registry_id = database.query("SELECT registry_id FROM registry_identity")?;
        let root = Some((root, registry_id));
        Self::start_all(database, AuthzOptions { root, ..options }, &[]).await
    }

    async fn start_all(
        database: Database,
        options: AuthzOptions,
        replace: &[(&str, &str)],
    ) -> Result<Gateway> {
        authz::migrate(&database.url())?;
        let principal = Principal::registered(&database, &[])?;
        let root = options.root.as_ref().map(|(root, _)| root.clone());
        if let Some(root) = &root {
            root.sign_all(&database)?;
        }
        let dns = DnsServer::start().await?;
        dns.set_ttl(0);
        let database_url = match &options.database_url {
            url if url.is_empty() => database.url(),
            url => url.clone(),
        };
        let authz = Authz::start(&AuthzOptions {
            database_url,
            nameservers: vec![dns.addr()],
            ..options
        })?;
        let pki = GatewayPki::generate()?;
        let envoy = Envoy::start(EnvoyOptions {
            replace,
            ..EnvoyOptions::new(authz.grpc_addr(), &pki)
        });
        let envoy = envoy.await?;
        Ok(Gateway {
            envoy,
            authz,
            dns,
            database,
            principal,
            root,
            pki,
        })
    }

    /// Gives the principal scope for `destination` and the agent a permission for it.
    pub fn grant(&self, agent: &ClientCertificate, destination: &str) -> Result<()> {
        self.scope(destination)?;
        let grant = Grant::new(AGENT, agent.spki_der(), destination);
        self.principal.grant(&self.database, &grant)
    }

    /// Gives the principal scope for `destination`, for longer than any default permission.
    pub fn scope(&self, destination: &str) -> Result<()> {
        let times = crate::rows::Times::from_now(-7200, 60 * 86_400);
        self.principal.scope(&self.database, destination, &times)?;
        match &self.root {
            Some(root) => root.sign_all(&self.database),
            None => Ok(()),
        }
    }

    /// Asks for a tunnel on a new connection, once the service knows of all that was changed.
    pub async fn connect(&self, agent: &ClientCertificate, authority: &str) -> Result<Answer> {
        self.authz.settle().await;
        let client = TunnelClient::connect(self.envoy.addr(), &self.pki, agent).await?;
        client.open(authority).await
    }
}

/// The identity that [`Gateway::grant`] grants to.
pub const AGENT: &str = "agent-alpha";

/// What [`AuthzOptions::private`] needs so that `name` may lead to `service` alone.
pub fn private(name: &str, service: &TcpService) -> (String, Vec<String>) {
    let address = service.addr();
    let range = format!(
        "{}/{}",
        address.ip(),
        if address.is_ipv4() { 32 } else { 128 }
    );
    (format!("{name}:{}", address.port()), vec![range])
}
