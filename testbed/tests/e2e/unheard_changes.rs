//! Changes that nobody tells of: notifications that are lost, connections that are killed at the
//! worst moment, triggers that are switched off.

use std::time::{Duration, Instant};

use testbed::Database;
use testbed::rows::silence_notifications;
use tokio::time::{sleep, timeout};

use super::open_tunnels::{PATIENCE, ends, settings};
use super::{Scene, assert_denied, reason_of};

/// The service's default.
const MAX_STALENESS: Duration = Duration::from_secs(2);

const REVOKE: &str = "UPDATE permission_registry SET revoked_at = now();";
const ALLOW_AGAIN: &str = "UPDATE permission_registry SET revoked_at = NULL;";

const LISTENER: &str = "query LIKE 'LISTEN%'";
const READER: &str = "query LIKE '%registry_changes%'";

/// Kills those of the service's connections for which `chosen` holds.
fn kill(chosen: &str) -> String {
    format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'agent-gateway' AND ({chosen});"
    )
}

/// Waits until a row of `pg_stat_activity` says that somebody listens.
async fn is_listened_to(database: &Database) {
    let listening = format!(
        "SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND {LISTENER} AND state = 'idle'"
    );
    let listens = async {
        while database.query(&listening).unwrap() != "1" {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, listens).await.expect("nobody listens");
}

/// The permission was revoked at `revoked` at the latest: waits until no tunnel is opened, and
/// sees that none was for longer than is promised.
async fn is_refused(scene: &Scene, revoked: Instant) {
    let client = scene.client().await;
    loop {
        let asked = Instant::now();
        let answer = client.open(&scene.destination).await.unwrap();
        let reason = reason_of(&answer);
        match (answer.status.as_u16(), reason.as_str()) {
            (200, _) => {
                let age = asked.duration_since(revoked);
                assert!(age <= MAX_STALENESS, "allowed after {age:?}");
            }
            // With its connections gone, the service may not know for a moment.
            (503, _) => {
                assert_denied(&answer, 503, "registry_unavailable");
                assert!(revoked.elapsed() < PATIENCE, "no recovery");
            }
            _ => return assert_denied(&answer, 403, "permission_revoked"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn connections_that_are_killed_while_a_row_is_revoked_hide_nothing() {
    let scene = Scene::start_with(settings(&[("POLICY__POLL_INTERVAL_MS", "200")])).await;
    scene.allow();
    let database = &scene.gateway.database;
    for killed in [LISTENER, READER, "true"] {
        for (before, after) in [(kill(killed), String::new()), (String::new(), kill(killed))] {
            is_listened_to(database).await;
            scene.gateway.authz.settle().await;
            let tunnel = scene.open().await;
            database
                .execute(&[&*before, REVOKE, &*after].concat())
                .unwrap();
            let revoked = Instant::now();
            is_refused(&scene, revoked).await;
            ends(tunnel).await;
            database.execute(ALLOW_AGAIN).unwrap();
            scene.gateway.authz.settle().await;
        }
    }
}

#[tokio::test]
async fn connections_that_are_killed_again_and_again_hide_nothing() {
    let scene = Scene::granted().await;
    let tunnel = scene.open().await;
    let database = &scene.gateway.database;
    // One transaction for each, and a look at who is there now.
    let kill = kill("true").replace("SELECT", "PERFORM");
    let kill_all_the_time = format!(
        "DO $$ BEGIN
             FOR i IN 1..30 LOOP
                 {kill}
                 COMMIT;
                 PERFORM pg_stat_clear_snapshot(), pg_sleep(0.05);
             END LOOP;
         END $$"
    );
    std::thread::scope(|threads| {
        let killing = threads.spawn(|| database.execute(&kill_all_the_time));
        database.execute(REVOKE).unwrap();
        killing.join().unwrap().unwrap();
    });
    is_refused(&scene, Instant::now()).await;
    ends(tunnel).await;
}

#[tokio::test]
async fn a_notification_that_is_never_sent_costs_nothing() {
    let scene = Scene::granted().await;
    let tunnel = scene.open().await;
    let database = &scene.gateway.database;
    silence_notifications(database).unwrap();
    database.execute(REVOKE).unwrap();
    is_refused(&scene, Instant::now()).await;
    ends(tunnel).await;
}

#[tokio::test]
async fn a_notification_is_enough_and_what_it_says_does_not_matter() {
    let scene = Scene::start_with(settings(&[
        ("POLICY__POLL_INTERVAL_MS", "60000"),
        ("POLICY__MAX_STALENESS_MS", "60000"),
    ]))
    .await;
    scene.allow();
    let database = &scene.gateway.database;
    let answer = scene.client().await.open(&scene.destination).await.unwrap();
    let tunnel = answer.into_tunnel().unwrap();
    is_listened_to(database).await;
    let nonsense =
        "SELECT pg_notify('agent_gateway_changes', repeat('\"', n)) FROM generate_series(1, 500) n";
    database.execute(nonsense).unwrap();
    database.execute(REVOKE).unwrap();
    ends(tunnel).await;
    let answer = scene.client().await.open(&scene.destination).await.unwrap();
    assert_denied(&answer, 403, "permission_revoked");
}

#[tokio::test]
async fn what_triggers_do_not_see_is_noticed_all_the_same() {
    let scene = Scene::granted_with("CACHE__MAX_AGE_MS", "5000").await;
    let tunnel = scene.open().await;
    let database = &scene.gateway.database;
    database
        .execute("ALTER TABLE permission_registry DISABLE TRIGGER ALL")
        .unwrap();
    database.execute(REVOKE).unwrap();
    ends(tunnel).await;
    scene.cut_for("permission_revoked").await;
    assert_denied(&scene.connect().await, 403, "permission_revoked");
    database.execute(ALLOW_AGAIN).unwrap();
    let allowed = async {
        while scene.connect().await.status != 200 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, allowed).await.expect("kept for ever");
}

#[tokio::test]
async fn what_is_written_as_replication_writes_is_noticed_at_once() {
    let scene = Scene::granted().await;
    let tunnel = scene.open().await;
    let replicated = format!("SET session_replication_role = replica; {REVOKE}");
    scene.gateway.database.execute(&replicated).unwrap();
    // Long before anything is looked up again by itself.
    ends(tunnel).await;
    scene.cut_for("permission_revoked").await;
    assert_denied(&scene.connect().await, 403, "permission_revoked");
}
