//! Parts that stop and come back: never an allow without a decision.

use testbed::gateway::AGENT;
use testbed::rows::Principal;
use testbed::{Authz, AuthzOptions, Behaviour, ClientCertificate, Envoy, EnvoyOptions, GatewayPki};
use testbed::{Postgres, TcpService, TunnelClient, authz};

use super::{Scene, assert_denied, assert_undecided};

#[tokio::test]
async fn a_database_that_stops_means_503_and_one_that_is_back_is_used_again() {
    // A server of its own, to be stopped.
    let mut server = Postgres::start().await.unwrap();
    let database = server.database("registry").unwrap();
    let url = database.url();
    authz::migrate(&url).unwrap();
    let service = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
        .await
        .unwrap();
    let rule = testbed::gateway::private("docstore", &service);
    let destination = rule.0.clone();
    let authz = Authz::start(&AuthzOptions {
        database_url: url.clone(),
        hosts: "127.0.0.1 docstore".to_owned(),
        private: vec![rule],
        ..AuthzOptions::default()
    });
    let authz = authz.unwrap();
    let pki = GatewayPki::generate().unwrap();
    let envoy = Envoy::start(EnvoyOptions::new(authz.grpc_addr(), &pki))
        .await
        .unwrap();
    let agent = ClientCertificate::for_identity(AGENT).unwrap();
    let client = TunnelClient::connect(envoy.addr(), &pki, &agent)
        .await
        .unwrap();

    let principal = Principal::registered(&database, &[&destination]).unwrap();
    let grant = testbed::rows::Grant::new(AGENT, agent.spki_der(), &destination);
    principal.grant(&database, &grant).unwrap();
    authz.settle().await;
    assert_eq!(client.open(&destination).await.unwrap().status, 200);

    server.stop().unwrap();
    assert_denied(
        &client.open(&destination).await.unwrap(),
        503,
        "registry_unavailable",
    );
    server.start_again().await.unwrap();
    assert_eq!(client.open(&destination).await.unwrap().status, 200);

    server.pause().unwrap();
    assert_denied(
        &client.open(&destination).await.unwrap(),
        503,
        "registry_unavailable",
    );
    server.resume().unwrap();
    assert_eq!(client.open(&destination).await.unwrap().status, 200);
    assert_eq!(service.connections(), 3);
}

#[tokio::test]
async fn a_service_that_stops_means_503_and_one_that_is_back_is_asked_again() {
    let mut scene = Scene::granted().await;
    assert_eq!(scene.connect().await.status, 200);

    assert!(scene.gateway.authz.stop().unwrap().success());
    assert_undecided(&scene.connect().await, 503, "registry_unavailable");
    scene.gateway.authz.start_again().unwrap();
    assert_eq!(scene.connect().await.status, 200);

    scene.gateway.authz.process().pause().unwrap();
    assert_undecided(&scene.connect().await, 503, "registry_unavailable");
    scene.gateway.authz.process().resume().unwrap();
    // Envoy gives up on the paused connection and opens another.
    let mut status = scene.connect().await.status.as_u16();
    for _ in 0..50 {
        if status == 200 {
            break;
        }
        assert_eq!(status, 503);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        status = scene.connect().await.status.as_u16();
    }
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_table_that_is_gone_means_503() {
    let scene = Scene::granted().await;
    scene
        .gateway
        .database
        .execute("ALTER TABLE permission_registry RENAME TO gone")
        .unwrap();
    assert_denied(&scene.connect().await, 503, "registry_unavailable");
    scene
        .gateway
        .database
        .execute("ALTER TABLE gone RENAME TO permission_registry")
        .unwrap();
    assert_eq!(scene.connect().await.status, 200);
}
