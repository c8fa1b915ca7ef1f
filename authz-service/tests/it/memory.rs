//! What the service answers from memory, seen from outside: while the registry's tables are
//! locked, whatever is decided was known before.

use std::time::Duration;

use testbed::ClientCertificate;
use testbed::gateway::AGENT;
use testbed::rows::Times;
use tokio::time::{sleep, timeout};

use super::lock::{PATIENT, Session, wait_for_blocked};
use super::{DESTINATION, Scene, connect, verdict};

const GUARD: Duration = testbed::process::PATIENCE;

impl Scene {
    /// Checks until the verdict is another one than this.
    async fn verdict_after(&self, (status, reason): (i32, &str)) -> (i32, String) {
        let mut client = self.client().await;
        let changed = async {
            loop {
                let answer = client.check(self.request()).await.unwrap().into_inner();
                let now = verdict(&answer);
                if now != (status, reason) {
                    return (now.0, now.1.to_owned());
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(GUARD, changed).await.unwrap()
    }

    /// Asks for places that nobody granted, each a key of its own.
    async fn ask_for_unknown(&self, ports: std::ops::Range<u16>) {
        let client = self.client().await;
        let asked = ports.map(|port| {
            let mut client = client.clone();
            let request = connect(self.agent.pem(), &format!("docstore:{port}"));
            tokio::spawn(async move { client.check(request).await })
        });
        for answer in asked.collect::<Vec<_>>() {
            let answer = answer.await.unwrap().unwrap().into_inner();
            assert_eq!(verdict(&answer), (403, "no_permission"));
        }
    }
}

#[tokio::test]
async fn what_is_remembered_is_of_one_identity_one_key_and_one_destination() {
    let scene = Scene::start().await;
    scene.grant().await;
    assert_eq!(verdict(&scene.check().await), (200, "allowed"));
    let another_name = ClientCertificate::builder()
        .identity("agent-beta")
        .key(scene.agent.key_pkcs8_der())
        .build()
        .unwrap();
    let another_key = ClientCertificate::for_identity(AGENT).unwrap();
    let mut client = scene.client().await;
    for (agent, destination) in [
        (&another_name, DESTINATION),
        (&another_key, DESTINATION),
        (&scene.agent, "docstore:8444"),
    ] {
        // As often as it takes to be remembered, and then some.
        for _ in 0..3 {
            let request = connect(agent.pem(), destination);
            let answer = client.check(request).await.unwrap().into_inner();
            assert_eq!(verdict(&answer), (403, "no_permission"));
        }
    }
    let _lock = Session::locking_permissions(&scene.database);
    assert_eq!(verdict(&scene.check().await), (200, "allowed"));
}

#[tokio::test]
async fn windows_are_judged_at_each_check_of_what_is_remembered() {
    let scene = Scene::start().await;
    scene.grant_during(Times::from_now(5, 10)).await;
    let not_yet = (403, "permission_not_yet_valid");
    assert_eq!(verdict(&scene.check().await), not_yet);
    let _lock = Session::locking_permissions(&scene.database);
    assert_eq!(
        scene.verdict_after(not_yet).await,
        (200, "allowed".to_owned())
    );
    let expired = (403, "permission_expired".to_owned());
    assert_eq!(scene.verdict_after((200, "allowed")).await, expired);
}

#[tokio::test]
async fn a_flood_of_unknown_keys_pushes_out_nothing_that_is_known() {
    let scene = Scene::start_with(&[
        ("AGENT_GATEWAY__CACHE__MAX_BYTES", "8192"),
        ("AGENT_GATEWAY__CACHE__MAX_UNKNOWN", "20"),
    ])
    .await;
    scene.grant().await;
    assert_eq!(verdict(&scene.check().await), (200, "allowed"));
    // More than once, so that they are worth remembering.
    for _ in 0..5 {
        scene.ask_for_unknown(1..50).await;
    }
    let _lock = Session::locking_permissions(&scene.database);
    assert_eq!(verdict(&scene.check().await), (200, "allowed"));
}

#[tokio::test]
async fn lookups_beyond_the_bound_are_refused_at_once() {
    let mut environment = PATIENT.to_vec();
    environment.push(("AGENT_GATEWAY__CACHE__MAX_LOOKUPS", "2"));
    let scene = Scene::start_with(&environment).await;
    scene.grant().await;
    let lock = Session::locking_permissions(&scene.database);
    let client = scene.client().await;
    let waiting = ["docstore:1", "docstore:2"].map(|host| {
        let (mut client, request) = (client.clone(), connect(scene.agent.pem(), host));
        tokio::spawn(async move { client.check(request).await })
    });
    wait_for_blocked(&scene.database, 2).await;
    let third = timeout(GUARD, scene.check()).await.unwrap();
    assert_eq!(verdict(&third), (503, "registry_unavailable"));
    drop(lock);
    for check in waiting {
        let answer = check.await.unwrap().unwrap().into_inner();
        assert_eq!(verdict(&answer), (403, "no_permission"));
    }
    assert_eq!(verdict(&scene.check().await), (200, "allowed"));
}

/// Every pooled connection waits for a lock that the change feed has no need of.
#[tokio::test]
async fn a_pool_full_of_lookups_does_not_starve_the_feed() {
    let mut environment = PATIENT.to_vec();
    environment.extend([
        ("AGENT_GATEWAY__SERVER__CHECK_TIMEOUT_MS", "1500"),
        ("AGENT_GATEWAY__POLICY__MAX_CONNECTIONS", "2"),
        ("AGENT_GATEWAY__POLICY__MAX_STALENESS_MS", "2000"),
    ]);
    let scene = Scene::start_with(&environment).await;
    scene.grant().await;
    assert_eq!(verdict(&scene.check().await), (200, "allowed"));
    let lock = Session::holding(&scene.database, "BEGIN; LOCK principal_key_permissions;");
    let mut client = scene.client().await;
    for port in 1..4 {
        let request = connect(scene.agent.pem(), &format!("docstore:{port}"));
        let answer = client.check(request).await.unwrap().into_inner();
        assert_eq!(verdict(&answer), (503, "registry_unavailable"));
    }
    wait_for_blocked(&scene.database, 2).await;
    // Long after the last confirmation, had there been none meanwhile.
    sleep(Duration::from_secs(3)).await;
    assert_eq!(verdict(&scene.check().await), (200, "allowed"));

    scene
        .database
        .execute("UPDATE permission_registry SET revoked_at = now()")
        .unwrap();
    // Noticed; what it means for the agent can't be looked up.
    let unknown = (503, "registry_unavailable");
    assert_eq!(verdict(&scene.check().await), unknown);
    drop(lock);
    let revoked = (403, "permission_revoked".to_owned());
    assert_eq!(scene.verdict_after(unknown).await, revoked);
}
