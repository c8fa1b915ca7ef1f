//! The service as its own process, over its own listeners, with real Postgres.
//!
//! What it decides is tested through Envoy, in testbed; here is what Envoy can't show.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod admin_socket;
mod audit;
mod bounds;
mod cache;
mod checks;
mod cli;
mod explain;
mod grpcurl;
mod http;
mod lock;
mod logs;
mod memory;
mod mtls;
mod operations;
mod probes;
mod server_socket;
mod shutdown;
mod streams;
mod traces;
mod trust;

use std::net::SocketAddr;

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use proto::admin::v1::debug_client::DebugClient;
use testbed::gateway::AGENT;
use testbed::rows::{Grant, Principal, Times};
use testbed::{Authz, AuthzOptions, ClientCertificate, Database, DnsServer, authz};
use tonic::transport::{Channel, Endpoint};

/// Where the agent may go, once [`Scene::grant`] was called; the hosts file has it.
const DESTINATION: &str = "docstore:8443";

/// A service, and an agent whose principal may delegate [`DESTINATION`] and has not.
struct Scene {
    authz: Authz,
    dns: DnsServer,
    agent: ClientCertificate,
    principal: Principal,
    database: Database,
}

impl Scene {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With further environment for the service.
    async fn start_with(environment: &[(&str, &str)]) -> Self {
        let database = testbed::database().await.unwrap();
        authz::migrate(&database.url()).unwrap();
        Self::start_at(database, environment, Database::url).await
    }

    /// On a migrated database, which the service reaches by this URL.
    async fn start_at(
        database: Database,
        environment: &[(&str, &str)],
        url: impl Fn(&Database) -> String,
    ) -> Self {
        let principal = Principal::registered(&database, &[DESTINATION]).unwrap();
        let dns = DnsServer::start().await.unwrap();
        let pairs = environment.iter();
        let authz = Authz::start(&AuthzOptions {
            database_url: url(&database),
            hosts: "127.0.0.1 docstore".to_owned(),
            nameservers: vec![dns.addr()],
            private: vec![(DESTINATION.to_owned(), vec!["127.0.0.1/32".to_owned()])],
            environment: pairs
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..AuthzOptions::default()
        });
        Self {
            authz: authz.unwrap(),
            dns,
            agent: ClientCertificate::for_identity(AGENT).unwrap(),
            principal,
            database,
        }
    }

    /// Allows the agent [`DESTINATION`].
    async fn grant(&self) {
        self.grant_during(Times::default()).await;
    }

    async fn grant_during(&self, times: Times) {
        let grant = Grant::new(AGENT, self.agent.spki_der(), DESTINATION).during(times);
        self.principal.grant(&self.database, &grant).unwrap();
        self.authz.settle().await;
    }

    /// A client of Envoy's listener, on a connection of its own.
    async fn client(&self) -> AuthorizationClient<Channel> {
        self.authz.settle().await;
        AuthorizationClient::new(channel(self.authz.grpc_addr()).await)
    }

    async fn debug(&self) -> DebugClient<Channel> {
        DebugClient::new(channel(self.authz.admin_grpc_addr()).await)
    }

    /// What Envoy sends when the agent asks for [`DESTINATION`].
    fn request(&self) -> CheckRequest {
        connect(self.agent.pem(), DESTINATION)
    }

    /// The agent asks for [`DESTINATION`], on a connection of its own.
    async fn check(&self) -> CheckResponse {
        self.authz.settle().await;
        let mut client = self.client().await;
        client.check(self.request()).await.unwrap().into_inner()
    }
}

async fn channel(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect().await.unwrap()
}

/// What Envoy sends about a CONNECT to `host` by a client with this certificate.
fn connect(certificate: &str, host: &str) -> CheckRequest {
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(Peer {
                certificate: certificate.replace('+', "%2B").replace('\n', "%0A"),
                ..Default::default()
            }),
            request: Some(Request {
                http: Some(HttpRequest {
                    method: "CONNECT".to_owned(),
                    host: host.to_owned(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
    }
}

/// The HTTP part of a request, to be changed.
fn http_of(request: &mut CheckRequest) -> &mut HttpRequest {
    let attributes = request.attributes.as_mut().unwrap();
    attributes.request.as_mut().unwrap().http.as_mut().unwrap()
}

/// The status that the agent sees (200: the tunnel may open), and the reason.
fn verdict(response: &CheckResponse) -> (i32, &str) {
    match &response.http_response {
        Some(HttpResponse::OkResponse(_)) => {
            assert_eq!(response.status.as_ref().unwrap().code, 0);
            (200, "allowed")
        }
        Some(HttpResponse::DeniedResponse(denied)) => {
            let status = response.status.as_ref().unwrap();
            assert_eq!(status.code, 7);
            (denied.status.as_ref().unwrap().code, &status.message)
        }
        other => panic!("{other:?}"),
    }
}
