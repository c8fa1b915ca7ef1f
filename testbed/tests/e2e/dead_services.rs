//! A service that is gone, hangs or is out of reach takes all its tunnels along.

use std::time::Duration;

use testbed::tunnel::Tunnel;
use testbed::{Envoy, EnvoyOptions, Wire};
use tokio::time::{sleep, timeout};

use super::open_tunnels::{PATIENCE, ends, lives};
use super::{Scene, assert_undecided};

/// So soon a tunnel that can't be cut any more has ended.
const PROMISED: Duration = Duration::from_secs(5);
/// What a busy machine may take on top.
const MARGIN: Duration = Duration::from_secs(10);

/// A hundred tunnels over four connections: Envoy takes at most a hundred streams on each.
async fn hundred(scene: &Scene) -> Vec<Tunnel> {
    let mut tunnels = Vec::new();
    for _ in 0..4 {
        let client = scene.client().await;
        let asked = (0..25).map(|_| {
            let (client, destination) = (client.clone(), scene.destination.clone());
            tokio::spawn(async move { client.open(&destination).await })
        });
        for answer in asked.collect::<Vec<_>>() {
            let answer = answer.await.unwrap().unwrap();
            tunnels.push(answer.into_tunnel().unwrap());
        }
    }
    for tunnel in &mut tunnels {
        assert!(lives(tunnel).await);
    }
    tunnels
}

async fn all_end(tunnels: Vec<Tunnel>) {
    let all = async {
        for tunnel in tunnels {
            ends(tunnel).await;
        }
    };
    timeout(PROMISED + MARGIN, all)
        .await
        .expect("not cut in time");
}

/// Waits until tunnels can be opened again, and nothing says otherwise than that none can.
async fn recovers(scene: &Scene) {
    let recovered = async {
        loop {
            let answer = scene.client().await.open(&scene.destination).await.unwrap();
            if answer.status == 200 {
                return;
            }
            assert_undecided(&answer, 503, "registry_unavailable");
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, recovered).await.expect("no recovery");
}

#[tokio::test]
async fn a_hundred_tunnels_end_with_a_service_that_is_killed() {
    let mut scene = Scene::granted().await;
    let tunnels = hundred(&scene).await;
    scene.gateway.authz.process().kill();
    all_end(tunnels).await;
    assert_undecided(&scene.connect().await, 503, "registry_unavailable");
    scene.gateway.authz.start_again().unwrap();
    recovers(&scene).await;
}

#[tokio::test]
async fn a_hundred_tunnels_end_with_a_service_that_hangs() {
    let mut scene = Scene::granted().await;
    let tunnels = hundred(&scene).await;
    scene.gateway.authz.process().pause().unwrap();
    all_end(tunnels).await;
    let client = scene.client().await;
    let answer = client.open(&scene.destination).await.unwrap();
    assert_undecided(&answer, 503, "registry_unavailable");
    scene.gateway.authz.process().resume().unwrap();
    recovers(&scene).await;
    // The places of what Envoy ended are free.
    let freed = async {
        while scene.gateway.authz.open_tunnels().await.unwrap() > 1 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, freed)
        .await
        .expect("dead tunnels are held");
}

#[tokio::test]
async fn a_hundred_tunnels_end_with_a_service_that_is_out_of_reach() {
    let mut scene = Scene::granted().await;
    let gateway = &mut scene.gateway;
    let wire = Wire::to(gateway.authz.grpc_addr()).await.unwrap();
    let options = EnvoyOptions::new(wire.addr(), &gateway.pki);
    gateway.envoy = Envoy::start(options).await.unwrap();
    let tunnels = hundred(&scene).await;
    wire.lose();
    all_end(tunnels).await;
    let answer = scene.connect().await;
    assert_undecided(&answer, 503, "registry_unavailable");
    wire.restore();
    recovers(&scene).await;
}
