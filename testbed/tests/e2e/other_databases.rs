//! The database is replaced by another one: all that was known of the first is forgotten.

use testbed::gateway::AGENT;
use testbed::rows::Grant;
use testbed::{AuthzOptions, ClientCertificate, Postgres};

use super::open_tunnels::{ends, lives};
use super::{Scene, assert_denied};

#[tokio::test]
async fn an_older_copy_of_the_database_is_followed_and_said_to_be_one() {
    let mut server = Postgres::start().await.unwrap();
    let database = server.database("registry").unwrap();
    let mut scene = Scene::start_on(database, AuthzOptions::default()).await;
    scene.allow();
    server.save().await.unwrap();

    // What the copy doesn't know of: one permission taken back, another given.
    let gateway = &scene.gateway;
    let later = ClientCertificate::for_identity("agent-later").unwrap();
    let grant = Grant::new("agent-later", later.spki_der(), &scene.destination);
    gateway.principal.grant(&gateway.database, &grant).unwrap();
    let revoke = format!(
        "UPDATE permission_registry SET revoked_at = now() WHERE subject_identity = '{AGENT}'"
    );
    gateway.database.execute(&revoke).unwrap();
    assert_denied(&scene.connect().await, 403, "permission_revoked");
    let answer = gateway.connect(&later, &scene.destination).await.unwrap();
    let mut tunnel = answer.into_tunnel().unwrap();
    assert!(lives(&mut tunnel).await);

    server.restore().await.unwrap();
    ends(tunnel).await;
    scene.cut_for("no_permission").await;
    let answer = gateway.connect(&later, &scene.destination).await.unwrap();
    assert_denied(&answer, 403, "no_permission");
    assert_eq!(scene.connect().await.status, 200);
    let authz = scene.gateway.authz.process();
    authz
        .wait_for_log("the database's history is not the one that was read before")
        .unwrap();
}

#[tokio::test]
async fn a_failover_is_followed_and_said_to_be_one() {
    let mut server = Postgres::start().await.unwrap();
    let database = server.database("registry").unwrap();
    let mut scene = Scene::start_on(database, AuthzOptions::default()).await;
    scene.allow();
    let mut tunnel = scene.open().await;
    server.fail_over().await.unwrap();
    assert_eq!(scene.connect().await.status, 200);
    assert!(lives(&mut tunnel).await);
    let authz = scene.gateway.authz.process();
    authz
        .wait_for_log("another server, or another timeline")
        .unwrap();
}
