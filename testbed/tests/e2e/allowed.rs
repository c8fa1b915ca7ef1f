//! What a signed permission gives, and that nothing else does.

use testbed::TunnelClient;
use testbed::rows::{Grant, Times};
use testbed::tunnel::Tunnel;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::open_tunnels::PATIENCE;
use super::{Scene, assert_denied};

#[tokio::test]
async fn a_signed_permission_opens_a_tunnel_that_carries_bytes() {
    let scene = Scene::granted().await;
    let answer = scene.connect().await;
    assert_eq!(answer.status, 200);
    let decision_id = answer
        .header("x-agent-gateway-decision-id")
        .unwrap()
        .to_owned();
    let mut tunnel = answer.into_tunnel().unwrap();
    tunnel.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    tunnel.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"ping");
    assert_eq!(scene.service.connections(), 1);

    tunnel.shutdown().await.unwrap();
    let entry = scene
        .gateway
        .envoy
        .logged(|entry| entry["decision_id"] == decision_id)
        .await;
    let entry = entry.unwrap();
    for (key, expected) in [
        ("identity", testbed::gateway::AGENT),
        ("destination", &scene.destination),
        ("dial", &scene.service.addr().to_string()),
        ("signing_key_id", "org-alice"),
        ("reason", "allowed"),
        (
            "permission_id",
            &format!("agent-alpha-{}", scene.destination),
        ),
    ] {
        assert_eq!(entry[key], expected, "{key}: {entry:#}");
    }
}

#[tokio::test]
async fn without_a_permission_nothing_is_dialled() {
    let scene = Scene::start().await;
    scene.gateway.scope(&scene.destination).unwrap();
    assert_denied(&scene.connect().await, 403, "no_permission");
    assert_eq!(scene.service.connections(), 0);
}

#[tokio::test]
async fn every_spelling_of_the_destination_is_the_granted_one() {
    let scene = Scene::granted().await;
    let port = scene.service.addr().port();
    let answer = scene
        .gateway
        .connect(&scene.agent, &format!("DocStore:{port}"))
        .await
        .unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn another_port_of_a_granted_host_is_denied() {
    let scene = Scene::granted().await;
    let answer = scene
        .gateway
        .connect(&scene.agent, "docstore:1")
        .await
        .unwrap();
    assert_denied(&answer, 403, "no_permission");
}

/// A scene whose permission soon ends; long enough to open a tunnel first.
async fn granted_for_a_moment() -> Scene {
    let scene = Scene::start().await;
    let Scene { gateway, agent, .. } = &scene;
    gateway.scope(&scene.destination).unwrap();
    let grant = Grant::new(
        testbed::gateway::AGENT,
        agent.spki_der(),
        &scene.destination,
    )
    .during(Times::from_now(-60, 15));
    gateway.principal.grant(&gateway.database, &grant).unwrap();
    scene
}

/// What a tunnel still brings until it is over.
async fn rest_of(mut tunnel: Tunnel) -> Vec<u8> {
    let mut rest = Vec::new();
    // Envoy resets the stream or ends it; either way it is over.
    let over = timeout(PATIENCE, tunnel.read_to_end(&mut rest));
    let _ = over.await.expect("the tunnel must end");
    rest
}

#[tokio::test]
async fn a_tunnel_ends_when_its_permission_ends() {
    let scene = granted_for_a_moment().await;
    let mut tunnel = scene.connect().await.into_tunnel().unwrap();
    tunnel.write_all(b"ping").await.unwrap();
    assert_eq!(rest_of(tunnel).await, b"ping");
    assert_denied(&scene.connect().await, 403, "permission_expired");
}

#[tokio::test]
async fn a_client_cannot_lengthen_its_tunnel() {
    let scene = granted_for_a_moment().await;
    let gateway = &scene.gateway;
    gateway.authz.settle().await;
    let client = TunnelClient::connect(gateway.envoy.addr(), &gateway.pki, &scene.agent)
        .await
        .unwrap();
    let longer = [("x-envoy-upstream-stream-duration-ms", "3600000")];
    let answer = client.open_with(&scene.destination, &longer).await.unwrap();
    assert_eq!(rest_of(answer.into_tunnel().unwrap()).await, b"");
    assert_denied(&scene.connect().await, 403, "permission_expired");
}
