//! A registry that is read from a streaming standby: as fresh as is promised, or not used.

use std::time::{Duration, Instant};

use testbed::gateway::AGENT;
use testbed::{Authz, AuthzOptions, Postgres, authz};
use tokio::time::{sleep, timeout};

use super::open_tunnels::{PATIENCE, ends, lives, settings};
use super::{Scene, assert_denied};

/// `policy.max_staleness_ms`, and how wrong a clock may be. More than the service's default: what is
/// read from a standby is as old as its last heartbeat, and the machine is not idle.
const MAX_STALENESS: Duration = Duration::from_millis(5000 + 250);

/// A primary with a service that follows it, and a gateway whose service reads a standby.
struct Replicated {
    scene: Scene,
    standby: Postgres,
    beating: Authz,
    primary: Postgres,
}

impl Replicated {
    async fn granted() -> Self {
        let primary = Postgres::start().await.unwrap();
        let database = primary.database("registry").unwrap();
        authz::migrate(&database.url()).unwrap();
        let standby = primary.standby().await.unwrap();
        let beating = Authz::start(&AuthzOptions {
            database_url: database.url(),
            ..AuthzOptions::default()
        })
        .unwrap();
        let options = AuthzOptions {
            database_url: standby.url("registry"),
            ..settings(&[("POLICY__MAX_STALENESS_MS", "5000")])
        };
        let scene = Scene::start_on(database, options).await;
        scene.allow();
        let replicated = Self {
            scene,
            standby,
            beating,
            primary,
        };
        replicated.is_allowed().await;
        replicated
    }

    /// Waits until the agent is let through.
    async fn is_allowed(&self) {
        let client = self.scene.client().await;
        let allowed = async {
            while client.open(&self.scene.destination).await.unwrap().status != 200 {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, allowed).await.unwrap();
    }

    /// The standby learns of nothing since `gone`: see what is promised kept.
    async fn nothing_is_allowed(&self, gone: Instant) {
        let client = self.scene.client().await;
        let mut refused = 0;
        while refused < 3 {
            let asked = Instant::now();
            let answer = client.open(&self.scene.destination).await.unwrap();
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
}

#[tokio::test]
async fn a_revocation_at_the_primary_is_felt_through_a_standby() {
    let replicated = Replicated::granted().await;
    let scene = &replicated.scene;
    let mut tunnel = scene.open().await;
    assert!(lives(&mut tunnel).await);
    let revoke = format!(
        "UPDATE permission_registry SET revoked_at = now() WHERE subject_identity = '{AGENT}'"
    );
    scene.gateway.database.execute(&revoke).unwrap();
    ends(tunnel).await;
    scene.cut_for("permission_revoked").await;
    assert_denied(&scene.connect().await, 403, "permission_revoked");
}

#[tokio::test]
async fn a_standby_that_is_behind_allows_nothing_and_is_used_again_when_it_has_caught_up() {
    let mut replicated = Replicated::granted().await;
    let pause = "DO $$ BEGIN
        PERFORM pg_wal_replay_pause();
        WHILE pg_get_wal_replay_pause_state() <> 'paused' LOOP PERFORM pg_sleep(0.01); END LOOP;
    END $$";
    replicated.standby.execute("registry", pause).unwrap();
    replicated.nothing_is_allowed(Instant::now()).await;
    let log = replicated.scene.gateway.authz.process().log();
    assert!(
        log.contains("it is behind, or its primary has no heartbeat"),
        "{log}"
    );
    let resume = "SELECT pg_wal_replay_resume()";
    replicated.standby.execute("registry", resume).unwrap();
    replicated.is_allowed().await;
}

#[tokio::test]
async fn a_standby_of_an_idle_primary_lives_by_the_heartbeat_of_services_there() {
    let mut replicated = Replicated::granted().await;
    replicated.beating.process().pause().unwrap();
    replicated.nothing_is_allowed(Instant::now()).await;
    replicated.beating.process().resume().unwrap();
    replicated.is_allowed().await;
}

#[tokio::test]
async fn a_standby_that_is_promoted_is_followed_as_another_server() {
    let mut replicated = Replicated::granted().await;
    let mut tunnel = replicated.scene.open().await;
    replicated.primary.stop().unwrap();
    replicated
        .standby
        .execute("registry", "SELECT pg_promote()")
        .unwrap();
    let authz = replicated.scene.gateway.authz.process();
    authz
        .wait_for_log("another server, or another timeline")
        .unwrap();
    replicated.is_allowed().await;
    assert!(lives(&mut tunnel).await);
    // It is written to now, and followed without delay.
    let revoke = "UPDATE permission_registry SET revoked_at = now()";
    replicated.standby.execute("registry", revoke).unwrap();
    ends(tunnel).await;
}
