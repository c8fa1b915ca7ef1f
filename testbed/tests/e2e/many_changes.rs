//! Ten thousand permissions taken back at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use testbed::gateway::AGENT;
use testbed::rows::Grant;
use testbed::{Bulk, ClientCertificate, TunnelClient};
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint};

use super::open_tunnels::{PATIENCE, ends, lives, settings};
use super::{Scene, assert_denied};

/// More than the service's default: it is not optimised here, nor is the machine idle.
const MAX_STALENESS: Duration = Duration::from_secs(5);
const DOOMED: usize = 10;

impl Scene {
    /// What Envoy asks when the scene's agent wants a tunnel, and where it asks.
    fn checks(&self) -> (AuthorizationClient<Channel>, CheckRequest) {
        let address = format!("http://{}", self.gateway.authz.grpc_addr());
        let channel = Endpoint::from_shared(address).unwrap().connect_lazy();
        let source = Peer {
            certificate: self.agent.pem().replace('+', "%2B").replace('\n', "%0A"),
            ..Peer::default()
        };
        let http = HttpRequest {
            method: "CONNECT".to_owned(),
            host: self.destination.clone(),
            ..HttpRequest::default()
        };
        let request = CheckRequest {
            attributes: Some(AttributeContext {
                source: Some(source),
                request: Some(Request {
                    http: Some(http),
                    ..Request::default()
                }),
                ..AttributeContext::default()
            }),
        };
        (AuthorizationClient::new(channel), request)
    }

    async fn connection(&self, agent: &ClientCertificate) -> TunnelClient {
        let gateway = &self.gateway;
        TunnelClient::connect(gateway.envoy.addr(), &gateway.pki, agent)
            .await
            .unwrap()
    }

    /// Connections of agents with a permission each, whose identities begin with `doomed-`.
    async fn doomed(&self) -> Vec<TunnelClient> {
        let gateway = &self.gateway;
        let mut rows = Bulk::begin(&gateway.database, &gateway.principal).unwrap();
        let mut clients = Vec::new();
        for number in 0..DOOMED {
            let identity = format!("doomed-{number}");
            let agent = ClientCertificate::for_identity(&identity).unwrap();
            let grant = Grant::new(&identity, agent.spki_der(), &self.destination);
            rows.grant(&grant).unwrap();
            clients.push(self.connection(&agent).await);
        }
        rows.finish().unwrap();
        clients
    }
}

/// One Check after another, each of which must allow; returns how many.
async fn check_all_the_time(
    (mut client, request): (AuthorizationClient<Channel>, CheckRequest),
    done: Arc<AtomicBool>,
) -> usize {
    let mut allowed = 0;
    while !done.load(Ordering::Relaxed) {
        let answer = client.check(request.clone()).await.unwrap().into_inner();
        let status = answer.status.unwrap();
        assert_eq!((status.code, status.message.as_str()), (0, ""));
        allowed += 1;
        tokio::task::yield_now().await;
    }
    allowed
}

#[tokio::test]
async fn ten_thousand_revocations_at_once_disturb_nobody_else() {
    // Nor are its time limits the defaults: a read that is given up is no answer to anybody.
    let scene = Scene::start_with(settings(&[
        ("POLICY__MAX_STALENESS_MS", "5000"),
        ("POLICY__QUERY_TIMEOUT_MS", "5000"),
        ("SERVER__CHECK_TIMEOUT_MS", "10000"),
    ]))
    .await;
    scene.allow();
    let doomed = scene.doomed().await;
    let database = &scene.gateway.database;
    let others = 10_000 - DOOMED;
    database
        .execute(&format!(
            "INSERT INTO permission_registry
                 (permission_id, signing_key_id, subject_identity, subject_public_key_spki_der,
                  destination, not_before, not_after, signature)
             SELECT 'doomed-many-' || n, signing_key_id, 'doomed-many-' || n,
                    subject_public_key_spki_der, destination, not_before, not_after, signature
             FROM permission_registry, generate_series(1, {others}) n
             WHERE subject_identity = '{AGENT}'"
        ))
        .unwrap();
    scene.gateway.authz.settle().await;
    let mut tunnels = Vec::new();
    for client in &doomed {
        let answer = client.open(&scene.destination).await.unwrap();
        tunnels.push(answer.into_tunnel().unwrap());
    }
    let mut spared = scene.open().await;
    let done = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..4)
        .map(|_| tokio::spawn(check_all_the_time(scene.checks(), Arc::clone(&done))))
        .collect();

    let revoke = "WITH revoked AS (
                      UPDATE permission_registry SET revoked_at = now()
                      WHERE subject_identity LIKE 'doomed-%' RETURNING 1)
                  SELECT count(*) FROM revoked";
    assert_eq!(database.query(revoke).unwrap(), "10000");
    let revoked = Instant::now();
    for (client, tunnel) in doomed.iter().zip(tunnels) {
        loop {
            let asked = Instant::now();
            let answer = client.open(&scene.destination).await.unwrap();
            if answer.status == 403 {
                assert_denied(&answer, 403, "permission_revoked");
                break;
            }
            // A tunnel takes a confirmation of its own, which may take too long.
            if answer.status != 503 {
                let age = asked.duration_since(revoked);
                assert!(age <= MAX_STALENESS, "{} after {age:?}", answer.status);
            }
            assert!(revoked.elapsed() < PATIENCE);
            sleep(Duration::from_millis(10)).await;
        }
        ends(tunnel).await;
    }
    assert!(lives(&mut spared).await);
    done.store(true, Ordering::Relaxed);
    for asking in asking {
        assert!(asking.await.unwrap() > 0);
    }
}
