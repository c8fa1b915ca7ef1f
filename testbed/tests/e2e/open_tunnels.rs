//! Tunnels that are open when something is taken back, or when a part fails.

use std::time::Duration;

use testbed::gateway::AGENT;
use testbed::rows::{Grant, Times};
use testbed::tunnel::Tunnel;
use testbed::{AuthzOptions, ClientCertificate};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::{Scene, assert_denied};

pub(crate) use testbed::process::PATIENCE;

impl Scene {
    /// As [`Scene::granted`], with one setting of the service changed.
    pub(crate) async fn granted_with(key: &str, value: &str) -> Self {
        let scene = Self::start_with(settings(&[(key, value)])).await;
        scene.allow();
        scene
    }

    /// A tunnel that has carried something.
    pub(crate) async fn open(&self) -> Tunnel {
        let mut tunnel = self.connect().await.into_tunnel().unwrap();
        assert!(lives(&mut tunnel).await);
        tunnel
    }

    /// Waits for Envoy's record of a tunnel that was cut for `reason`.
    pub(crate) async fn cut_for(&self, reason: &str) {
        let logged = self.gateway.envoy.logged(|entry| {
            entry["type"] == "DownstreamEnd"
                && entry["details"]
                    .as_str()
                    .is_some_and(|details| details.contains(reason))
        });
        logged.await.unwrap();
    }
}

/// The service's settings, by the part of their variables' names that differs.
pub(crate) fn settings(changed: &[(&str, &str)]) -> AuthzOptions {
    let pairs = changed.iter();
    AuthzOptions {
        environment: pairs
            .map(|(key, value)| (format!("AGENT_GATEWAY__{key}"), (*value).to_owned()))
            .collect(),
        ..AuthzOptions::default()
    }
}

/// Whether bytes still come back.
pub(crate) async fn lives(tunnel: &mut Tunnel) -> bool {
    let echo = async {
        tunnel.write_all(b"ping").await?;
        tunnel.read_exact(&mut [0; 4]).await
    };
    timeout(PATIENCE, echo).await.unwrap().is_ok()
}

/// Waits until a tunnel ends.
pub(crate) async fn ends(mut tunnel: Tunnel) {
    // A cut is a reset, or to this client an end; either way nothing more comes.
    let _ = timeout(PATIENCE, tunnel.read_to_end(&mut Vec::new()))
        .await
        .expect("not cut");
}

#[tokio::test]
async fn whatever_a_tunnel_rests_on_cuts_it_when_it_is_taken_back() {
    for (change, reason) in [
        (
            "UPDATE permission_registry SET revoked_at = now()",
            "permission_revoked",
        ),
        (
            "UPDATE principal_signing_keys SET revoked_at = now()",
            "signing_key_inactive",
        ),
        (
            "UPDATE principal_key_permissions SET revoked_at = now()",
            "scope_missing",
        ),
        (
            "UPDATE permission_registry SET permission_id = 'other'",
            "signature_invalid",
        ),
        ("DELETE FROM permission_registry", "no_permission"),
        ("TRUNCATE permission_registry", "no_permission"),
    ] {
        let scene = Scene::granted().await;
        let tunnel = scene.open().await;
        scene.gateway.database.execute(change).unwrap();
        ends(tunnel).await;
        scene.cut_for(reason).await;
        assert_denied(&scene.connect().await, 403, reason);
    }
}

#[tokio::test]
async fn a_revocation_cuts_its_own_tunnels_and_no_others() {
    let scene = Scene::granted().await;
    let gateway = &scene.gateway;
    let other = ClientCertificate::for_identity("agent-beta").unwrap();
    let grant = Grant::new("agent-beta", other.spki_der(), &scene.destination);
    gateway.principal.grant(&gateway.database, &grant).unwrap();
    let (first, second) = (scene.open().await, scene.open().await);
    let answer = gateway.connect(&other, &scene.destination).await.unwrap();
    let mut untouched = answer.into_tunnel().unwrap();
    let revoke = format!(
        "UPDATE permission_registry SET revoked_at = now() WHERE subject_identity = '{AGENT}'"
    );
    gateway.database.execute(&revoke).unwrap();
    ends(first).await;
    ends(second).await;
    assert!(lives(&mut untouched).await);
}

#[tokio::test]
async fn a_row_that_is_granted_again_in_the_same_transaction_keeps_the_tunnel() {
    let scene = Scene::granted().await;
    let mut tunnel = scene.open().await;
    scene
        .gateway
        .database
        .execute(
            "BEGIN;
             UPDATE permission_registry SET revoked_at = now();
             UPDATE permission_registry SET revoked_at = NULL;
             COMMIT",
        )
        .unwrap();
    scene.gateway.authz.settle().await;
    assert!(lives(&mut tunnel).await);
    assert_eq!(scene.connect().await.status, 200);
}

#[tokio::test]
async fn another_permission_takes_over_where_one_ends() {
    let scene = Scene::granted().await;
    let mut second = Grant::new(AGENT, scene.agent.spki_der(), &scene.destination)
        .during(Times::from_now(-60, 86_400));
    "second".clone_into(&mut second.permission_id);
    scene
        .gateway
        .principal
        .grant(&scene.gateway.database, &second)
        .unwrap();
    let mut tunnel = scene.open().await;
    let revoke =
        "UPDATE permission_registry SET revoked_at = now() WHERE permission_id <> 'second'";
    scene.gateway.database.execute(revoke).unwrap();
    scene.gateway.authz.settle().await;
    assert!(lives(&mut tunnel).await);
}

#[tokio::test]
async fn a_service_that_dies_takes_its_tunnels_along_and_one_that_stops_cuts_them() {
    let mut scene = Scene::granted_with("TUNNEL__DRAIN_TIMEOUT_MS", "300").await;
    let tunnel = scene.open().await;
    scene.gateway.authz.process().kill();
    ends(tunnel).await;
    assert_eq!(scene.connect().await.status, 503);

    scene.gateway.authz.start_again().unwrap();
    let tunnel = scene.open().await;
    assert!(scene.gateway.authz.stop().unwrap().success());
    ends(tunnel).await;
    scene.cut_for("service_stopping").await;
}

#[tokio::test]
async fn a_service_that_hangs_loses_its_tunnels() {
    let mut scene = Scene::granted().await;
    let tunnel = scene.open().await;
    scene.gateway.authz.process().pause().unwrap();
    ends(tunnel).await;
    scene.gateway.authz.process().resume().unwrap();
}

#[tokio::test]
async fn a_registry_that_confirms_nothing_ends_tunnels_after_a_bounded_time() {
    let scene = Scene::granted_with("TUNNEL__MAX_UNCONFIRMED_MS", "5000").await;
    let mut tunnel = scene.open().await;
    // The feed alone can't be read; nothing was taken back.
    let database = &scene.gateway.database;
    database
        .execute("ALTER TABLE registry_changes_pruned RENAME TO gone")
        .unwrap();
    assert!(lives(&mut tunnel).await);
    ends(tunnel).await;
    scene.cut_for("registry_unavailable").await;
    let answer = scene.connect().await;
    assert_denied(&answer, 503, "registry_unavailable");
    database
        .execute("ALTER TABLE gone RENAME TO registry_changes_pruned")
        .unwrap();
    assert_eq!(scene.connect().await.status, 200);
}

#[tokio::test]
async fn grounds_that_cannot_be_looked_up_end_a_tunnel_after_a_bounded_time() {
    let scene = Scene::granted_with("TUNNEL__MAX_UNCONFIRMED_MS", "5000").await;
    let tunnel = scene.open().await;
    // The change is known, and what became of the permission is not.
    let database = &scene.gateway.database;
    database
        .execute(
            "ALTER TABLE permission_registry RENAME TO gone;
             UPDATE principal_signing_keys SET updated_at = now()",
        )
        .unwrap();
    ends(tunnel).await;
    scene.cut_for("registry_unavailable").await;
}

#[tokio::test]
async fn a_lookup_that_fails_is_made_up_for() {
    let scene = Scene::granted().await;
    let mut tunnel = scene.open().await;
    let database = &scene.gateway.database;
    database
        .execute(
            "ALTER TABLE permission_registry RENAME TO gone;
             UPDATE gone SET revoked_at = now()",
        )
        .unwrap();
    scene.gateway.authz.settle().await;
    assert!(lives(&mut tunnel).await);
    // Nothing further tells the service.
    database
        .execute("ALTER TABLE gone RENAME TO permission_registry")
        .unwrap();
    ends(tunnel).await;
    scene.cut_for("permission_revoked").await;
}

#[tokio::test]
async fn one_key_has_only_so_many_tunnels() {
    let scene = Scene::granted_with("TUNNEL__MAX_TUNNELS_PER_KEY", "2").await;
    let (first, mut second) = (scene.open().await, scene.open().await);
    let refused = scene.connect().await;
    assert_denied(&refused, 429, "too_many_tunnels");
    assert_eq!(refused.header("retry-after"), Some("5"));
    assert!(lives(&mut second).await);
    drop(first);
    // The place is free when Envoy has told the service of the end.
    let client = scene.client().await;
    let again = async {
        while client.open(&scene.destination).await.unwrap().status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, again)
        .await
        .expect("the place is not given back");
}

#[tokio::test]
async fn all_keys_together_have_only_so_many_tunnels() {
    let scene = Scene::granted_with("TUNNEL__MAX_TUNNELS", "2").await;
    let gateway = &scene.gateway;
    let other = ClientCertificate::for_identity("agent-beta").unwrap();
    let grant = Grant::new("agent-beta", other.spki_der(), &scene.destination);
    gateway.principal.grant(&gateway.database, &grant).unwrap();
    let (first, mut second) = (scene.open().await, scene.open().await);
    let refused = gateway.connect(&other, &scene.destination).await.unwrap();
    assert_denied(&refused, 429, "too_many_tunnels");
    assert_eq!(refused.header("retry-after"), Some("5"));
    assert!(lives(&mut second).await);
    drop(first);
    let again = async {
        let ask = || gateway.connect(&other, &scene.destination);
        while ask().await.unwrap().status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, again)
        .await
        .expect("the place is not given back");
}
