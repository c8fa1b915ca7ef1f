//! Rows that are there and still don't allow.

use testbed::gateway::AGENT;
use testbed::rows::{Grant, Principal, Times};

use super::{Scene, assert_denied};

impl Scene {
    fn grant(&self, times: Times) -> Grant {
        Grant::new(AGENT, self.agent.spki_der(), &self.destination).during(times)
    }
}

#[tokio::test]
async fn a_row_counts_only_inside_its_window() {
    let scene = Scene::start().await;
    scene.gateway.scope(&scene.destination).unwrap();
    let Scene { gateway, .. } = &scene;
    for (times, reason) in [
        (Times::from_now(-600, -1), "permission_expired"),
        (Times::from_now(600, 1200), "permission_not_yet_valid"),
    ] {
        gateway
            .database
            .execute("DELETE FROM permission_registry")
            .unwrap();
        gateway
            .principal
            .grant(&gateway.database, &scene.grant(times))
            .unwrap();
        assert_denied(&scene.connect().await, 403, reason);
    }
    let mut good = scene.grant(Times::default());
    good.permission_id = "good".to_owned();
    gateway.principal.grant(&gateway.database, &good).unwrap();
    assert_eq!(scene.connect().await.status, 200);
}

#[tokio::test]
async fn what_is_changed_or_taken_back_after_signing_is_denied_at_once() {
    let scene = Scene::granted().await;
    let database = &scene.gateway.database;
    assert_eq!(scene.connect().await.status, 200);
    for (change, undo, reason) in [
        (
            "UPDATE permission_registry SET revoked_at = now()",
            "UPDATE permission_registry SET revoked_at = NULL",
            "permission_revoked",
        ),
        (
            "UPDATE permission_registry SET not_after = not_after + interval '1 second'",
            "UPDATE permission_registry SET not_after = not_after - interval '1 second'",
            "signature_invalid",
        ),
        (
            "UPDATE principal_signing_keys SET revoked_at = now()",
            "UPDATE principal_signing_keys SET revoked_at = NULL",
            "signing_key_inactive",
        ),
        (
            "UPDATE principal_signing_keys SET not_after = not_after - interval '10 years',
                                               not_before = not_before - interval '10 years'",
            "UPDATE principal_signing_keys SET not_after = not_after + interval '10 years',
                                               not_before = not_before + interval '10 years'",
            "signing_key_inactive",
        ),
        (
            "UPDATE principal_key_permissions SET revoked_at = now()",
            "UPDATE principal_key_permissions SET revoked_at = NULL",
            "scope_missing",
        ),
        (
            "UPDATE principal_key_permissions SET not_after = now() + interval '1 day'",
            "UPDATE principal_key_permissions SET not_after = now() + interval '90 days'",
            "scope_missing",
        ),
    ] {
        database.execute(change).unwrap();
        assert_denied(&scene.connect().await, 403, reason);
        database.execute(undo).unwrap();
        assert_eq!(scene.connect().await.status, 200, "{undo}");
    }
}

#[tokio::test]
async fn a_row_moved_to_another_agent_or_destination_is_denied() {
    for change in [
        "UPDATE permission_registry SET subject_identity = 'agent-alpha'",
        "UPDATE permission_registry SET destination = '{destination}'",
    ] {
        let scene = Scene::start().await;
        let gateway = &scene.gateway;
        gateway.scope(&scene.destination).unwrap();
        let mut other = scene.grant(Times::default());
        if change.contains("identity") {
            "agent-beta".clone_into(&mut other.identity);
        } else {
            "elsewhere:443".clone_into(&mut other.destination);
        }
        gateway.principal.grant(&gateway.database, &other).unwrap();
        assert_denied(&scene.connect().await, 403, "no_permission");
        let change = change.replace("{destination}", &scene.destination);
        gateway.database.execute(&change).unwrap();
        assert_denied(&scene.connect().await, 403, "signature_invalid");
    }
}

#[tokio::test]
async fn a_row_signed_by_another_key_is_denied() {
    let scene = Scene::start().await;
    let gateway = &scene.gateway;
    gateway.scope(&scene.destination).unwrap();
    let mut impostor = Principal::new("org-alice", 8).unwrap();
    let grant = scene.grant(Times::default());
    gateway
        .principal
        .insert(&gateway.database, &grant, &impostor.sign(&grant))
        .unwrap();
    assert_denied(&scene.connect().await, 403, "signature_invalid");

    // Registered, but without that scope.
    "org-mallory".clone_into(&mut impostor.key_id);
    impostor.register(&gateway.database).unwrap();
    let mut own = grant.clone();
    "own".clone_into(&mut own.permission_id);
    impostor.grant(&gateway.database, &own).unwrap();
    assert_denied(&scene.connect().await, 403, "scope_missing");
    assert_eq!(scene.service.connections(), 0);
}

#[tokio::test]
async fn a_scope_narrower_than_the_permission_is_not_enough() {
    let scene = Scene::start().await;
    let gateway = &scene.gateway;
    let narrow = Times::from_now(-60, 86_400);
    gateway
        .principal
        .scope(&gateway.database, &scene.destination, &narrow)
        .unwrap();
    gateway
        .principal
        .grant(&gateway.database, &scene.grant(Times::default()))
        .unwrap();
    assert_denied(&scene.connect().await, 403, "scope_missing");
    let mut inside = scene.grant(Times::from_now(-30, 3600));
    "inside".clone_into(&mut inside.permission_id);
    gateway.principal.grant(&gateway.database, &inside).unwrap();
    assert_eq!(scene.connect().await.status, 200);
}
