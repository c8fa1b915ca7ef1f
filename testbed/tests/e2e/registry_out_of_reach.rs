//! A registry that hangs, or can't be reached: nothing is allowed for longer than is promised after
//! it last confirmed, open tunnels end, and all is well again when it is back.

use std::time::{Duration, Instant};

use testbed::{AuthzOptions, Database, Postgres, Wire};
use tokio::time::{sleep, timeout};

use super::open_tunnels::{PATIENCE, ends, lives, settings};
use super::{Scene, assert_denied};

const MAX_STALENESS: Duration = Duration::from_millis(500);
/// Far longer than it takes to see that nothing is allowed.
const MAX_UNCONFIRMED: Duration = Duration::from_secs(15);
/// What a busy machine may take on top.
const MARGIN: Duration = Duration::from_secs(10);

fn limits() -> AuthzOptions {
    settings(&[
        ("POLICY__MAX_STALENESS_MS", "500"),
        ("TUNNEL__MAX_UNCONFIRMED_MS", "15000"),
        // So soon it is known that there is no answer.
        ("SERVER__CHECK_TIMEOUT_MS", "1500"),
    ])
}

/// A service that reaches its registry over a wire.
async fn over_a_wire() -> (Scene, Wire) {
    let database = testbed::database().await.unwrap();
    let wire = Wire::to(database.server_addr().unwrap()).await.unwrap();
    let options = AuthzOptions {
        database_url: database.url_over(&wire).unwrap(),
        ..limits()
    };
    let scene = Scene::start_on(database, options).await;
    scene.allow();
    (scene, wire)
}

/// The registry went out of reach at `gone` at the latest: see what is promised kept.
async fn nothing_is_allowed(scene: &Scene, gone: Instant) {
    let client = scene.client().await;
    let mut refused = 0;
    while refused < 3 {
        let asked = Instant::now();
        let answer = client.open(&scene.destination).await.unwrap();
        if answer.status == 200 {
            let age = asked.duration_since(gone);
            assert!(age <= MAX_STALENESS, "allowed after {age:?}");
            sleep(Duration::from_millis(10)).await;
        } else {
            assert_denied(&answer, 503, "registry_unavailable");
            refused += 1;
        }
    }
}

/// Waits for an answer that is a decision.
async fn is_decided_again(scene: &Scene) -> (u16, String) {
    let client = scene.client().await;
    let decided = async {
        loop {
            let answer = client.open(&scene.destination).await.unwrap();
            if answer.status != 503 {
                return (answer.status.as_u16(), super::reason_of(&answer));
            }
            assert_denied(&answer, 503, "registry_unavailable");
        }
    };
    timeout(PATIENCE, decided).await.expect("no recovery")
}

const ALLOWED: (u16, &str) = (200, "");
const REVOKED: (u16, &str) = (403, "permission_revoked");

#[tokio::test]
async fn a_database_that_hangs_is_trusted_no_longer_than_is_promised() {
    let mut server = Postgres::start().await.unwrap();
    let database: Database = server.database("registry").unwrap();
    let scene = Scene::start_on(database, limits()).await;
    scene.allow();
    let mut tunnel = scene.open().await;

    server.pause().unwrap();
    let gone = Instant::now();
    nothing_is_allowed(&scene, gone).await;
    assert!(lives(&mut tunnel).await, "cut too soon");
    ends(tunnel).await;
    assert!(gone.elapsed() < MAX_UNCONFIRMED + MARGIN);
    scene.cut_for("registry_unavailable").await;

    server.resume().unwrap();
    let (status, reason) = is_decided_again(&scene).await;
    assert_eq!((status, reason.as_str()), ALLOWED);
    assert!(lives(&mut scene.open().await).await);
    drop(scene);
}

#[tokio::test]
async fn a_partition_that_heals_in_time_costs_no_tunnel() {
    let (scene, wire) = over_a_wire().await;
    let mut tunnel = scene.open().await;
    wire.hold();
    nothing_is_allowed(&scene, Instant::now()).await;
    assert!(lives(&mut tunnel).await);
    wire.restore();
    let (status, reason) = is_decided_again(&scene).await;
    assert_eq!((status, reason.as_str()), ALLOWED);
    assert!(lives(&mut tunnel).await);
}

#[tokio::test]
async fn what_is_revoked_during_a_partition_is_never_allowed_again() {
    let (scene, wire) = over_a_wire().await;
    let tunnel = scene.open().await;
    wire.lose();
    let gone = Instant::now();
    let revoke = "UPDATE permission_registry SET revoked_at = now()";
    scene.gateway.database.execute(revoke).unwrap();
    nothing_is_allowed(&scene, gone).await;
    ends(tunnel).await;
    assert!(gone.elapsed() < MAX_UNCONFIRMED + MARGIN);
    scene.cut_for("registry_unavailable").await;
    wire.restore();
    let (status, reason) = is_decided_again(&scene).await;
    assert_eq!((status, reason.as_str()), REVOKED);
}

#[tokio::test]
async fn a_tunnel_whose_grounds_went_during_a_partition_is_cut_when_it_heals() {
    let (scene, wire) = over_a_wire().await;
    let tunnel = scene.open().await;
    wire.hold();
    let revoke = "UPDATE permission_registry SET revoked_at = now()";
    scene.gateway.database.execute(revoke).unwrap();
    nothing_is_allowed(&scene, Instant::now()).await;
    wire.restore();
    ends(tunnel).await;
    scene.cut_for("permission_revoked").await;
}
