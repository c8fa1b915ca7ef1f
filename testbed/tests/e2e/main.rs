//! Agents' requests through real Envoy, the real service and real Postgres.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod admin;
mod allowed;
mod audit;
mod authority;
mod certificates;
mod data_path;
mod dead_services;
mod destinations;
mod gateways;
mod machine;
mod many_changes;
mod mesh;
mod open_tunnels;
mod other_databases;
mod outages;
mod registry_out_of_reach;
mod replicas;
mod root_of_trust;
mod service_listener;
mod signed_rows;
mod standby;
mod through_the_sidecar;
mod unheard_changes;
mod wire;

use testbed::TunnelClient;
use testbed::gateway::private;
use testbed::tunnel::Answer;
use testbed::{AuthzOptions, Behaviour, ClientCertificate, Database, Gateway, Root, TcpService};

/// A gateway, an agent with the identity that grants go to, and a service named `docstore` that
/// echoes. The principal has no scope and the agent no permission yet.
struct Scene {
    gateway: Gateway,
    agent: ClientCertificate,
    service: TcpService,
    /// `docstore:port`.
    destination: String,
}

impl Scene {
    async fn start() -> Self {
        Self::start_with(AuthzOptions::default()).await
    }

    async fn start_with(options: AuthzOptions) -> Self {
        Self::start_on(testbed::database().await.unwrap(), options).await
    }

    /// On an empty database of the test's own.
    async fn start_on(database: Database, options: AuthzOptions) -> Self {
        Self::start_all(database, options, None).await
    }

    /// Where a key and a scope count only as this root has signed them.
    async fn start_rooted(root: Root) -> Self {
        let database = testbed::database().await.unwrap();
        Self::start_all(database, AuthzOptions::default(), Some(root)).await
    }

    async fn start_all(database: Database, options: AuthzOptions, root: Option<Root>) -> Self {
        let service = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
            .await
            .unwrap();
        let rule = private("docstore", &service);
        let destination = rule.0.clone();
        let mut options = AuthzOptions {
            hosts: "127.0.0.1 docstore".to_owned(),
            ..options
        };
        options.private.push(rule);
        let gateway = match root {
            Some(root) => Gateway::start_rooted(database, root, options).await,
            None => Gateway::start_on(database, options).await,
        };
        let gateway = gateway.unwrap();
        let agent = ClientCertificate::for_identity(testbed::gateway::AGENT).unwrap();
        Self {
            gateway,
            agent,
            service,
            destination,
        }
    }

    /// As [`Scene::start`], with a permission that allows the agent to reach `docstore`.
    async fn granted() -> Self {
        let scene = Self::start().await;
        scene.allow();
        scene
    }

    /// Allows the agent the service.
    fn allow(&self) {
        let Self {
            gateway,
            agent,
            destination,
            ..
        } = self;
        gateway.grant(agent, destination).unwrap();
    }

    /// A connection of the agent's.
    async fn client(&self) -> TunnelClient {
        let Gateway { envoy, pki, .. } = &self.gateway;
        TunnelClient::connect(envoy.addr(), pki, &self.agent)
            .await
            .unwrap()
    }

    /// The agent asks for a tunnel to the service.
    async fn connect(&self) -> Answer {
        self.gateway
            .connect(&self.agent, &self.destination)
            .await
            .unwrap()
    }
}

/// Asserts a deny: the status, a body and headers that say why, and which decision it was.
#[track_caller]
fn assert_denied(answer: &Answer, status: u16, reason: &str) {
    assert_told(answer, status, reason);
    let body = answer.json().unwrap();
    let id = body["decision_id"].as_str().unwrap();
    assert!(!id.is_empty());
    assert_eq!(answer.header("x-agent-gateway-decision-id"), Some(id));
}

/// As [`assert_denied`], of a refusal that Envoy wrote because nobody decided.
#[track_caller]
fn assert_undecided(answer: &Answer, status: u16, reason: &str) {
    assert_told(answer, status, reason);
    assert_eq!(answer.json().unwrap().get("decision_id"), None);
    assert_eq!(answer.header("x-agent-gateway-decision-id"), None);
}

/// Asserts the same words for the same reason, whoever says them.
#[track_caller]
fn assert_told(answer: &Answer, status: u16, reason: &str) {
    assert_eq!(
        (answer.status.as_u16(), reason_of(answer).as_str()),
        (status, reason),
        "{answer:?}"
    );
    let (error, proxy_error) = match (status, reason) {
        (400, _) => ("malformed destination", "http_request_error"),
        (403, "destination_address_forbidden") => {
            ("blocked by policy", "destination_ip_prohibited")
        }
        (403, _) => ("blocked by policy", "http_request_denied"),
        (405, _) => ("method not allowed", "http_request_error"),
        (429, _) => ("too many tunnels", "http_request_denied"),
        (502, "destination_unresolvable") => ("destination not reached", "dns_error"),
        (502, _) => ("destination not reached", "destination_unavailable"),
        (503, _) => ("no decision could be made", "proxy_internal_error"),
        other => panic!("{other:?} is told by nobody"),
    };
    let body = answer.json().unwrap();
    assert_eq!(body["error"], error);
    assert!(!body["hint"].as_str().unwrap().is_empty());
    let proxy_status = format!("agent-gateway; error={proxy_error}; details=\"{reason}\"");
    let seen: Vec<_> = answer.headers.get_all("proxy-status").iter().collect();
    assert_eq!(seen, [&proxy_status]);
}

fn reason_of(answer: &Answer) -> String {
    match answer.json() {
        Ok(body) => body["reason"].as_str().unwrap_or_default().to_owned(),
        Err(_) => String::new(),
    }
}
