//! Agents' keys from the registry's table: only what a principal with scope for the tool signed.

use std::process::Command;

use poca::SecretKey;
use testbed::binary;
use testbed::caller::{Sent, Version};
use testbed::gateway::AGENT;
use testbed::rows::{PocaKeyRow, Principal, Times};
use testbed::tunnel::Answer;
use testbed::{ClientCertificate, Session};
use tokio::task::JoinSet;

use crate::scene::{A_WHILE, Scene, Unlike, assert_denied, manifest, signed};

/// The key of the table, which `agents.yaml` doesn't have.
fn key() -> SecretKey {
    SecretKey::from_seed(&[8; 32])
}

fn row(id: &str) -> PocaKeyRow {
    PocaKeyRow::new(id, AGENT, key().public_key().to_bytes())
}

/// A call of `echo` that this key proves.
async fn call(scene: &Scene, key: &SecretKey) -> Answer {
    let proof = signed(key, &manifest("echo", b"{}"));
    let mut caller = scene.caller(Version::Http2).await;
    let sent = Sent::whole("{}");
    caller.call(&proof.with_json(), sent).await.unwrap()
}

/// A principal whose key may delegate that.
fn principal(scene: &Scene, destination: &str) -> Principal {
    let principal = Principal::new("org-bob", 11).unwrap();
    let database = &scene.gateway.database;
    principal.register(database).unwrap();
    let times = Times::from_now(-7200, 60 * 86_400);
    principal.scope(database, destination, &times).unwrap();
    principal
}

#[tokio::test]
async fn a_key_counts_from_its_row_to_its_revocation_beside_the_files() {
    let scene = Scene::start().await;
    let database = &scene.gateway.database;
    assert_denied(&call(&scene, &key()).await, 403, "poca_sig_invalid");
    let principal = principal(&scene, &scene.destination("echo"));
    // Two at once, as while one takes over from another.
    let next = SecretKey::from_seed(&[9; 32]);
    principal.grant_poca_key(database, &row("poca-1")).unwrap();
    let other = PocaKeyRow::new("poca-2", AGENT, next.public_key().to_bytes());
    principal.grant_poca_key(database, &other).unwrap();
    scene.settle().await;
    for key in [&key(), &next, &crate::scene::key()] {
        assert_eq!(call(&scene, key).await.status, 200);
    }
    database
        .execute("UPDATE poca_keys SET revoked_at = now() WHERE poca_key_id = 'poca-1'")
        .unwrap();
    scene.settle().await;
    assert_denied(&call(&scene, &key()).await, 403, "poca_sig_invalid");
    assert_eq!(call(&scene, &next).await.status, 200);
    assert_eq!(scene.echo.seen().len(), 4);
}

/// Runs the registry's tool, which must succeed.
fn registry(scene: &Scene, arguments: &[&str]) {
    let mut command = Command::new(binary::path("agent-gateway-registry").unwrap());
    command
        .args(arguments)
        .env("AGENT_GATEWAY_DATABASE_URL", scene.gateway.database.url());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

#[tokio::test]
async fn a_key_that_the_registrys_tool_grants_counts_until_the_tool_revokes_it() {
    let scene = Scene::start().await;
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("principal.pem");
    let key_file = key_file.to_str().unwrap();
    let (echo, public_key) = (scene.destination("echo"), key().public_key().to_string());
    registry(
        &scene,
        &["register-key", "org-carol", "--key-file", key_file],
    );
    registry(&scene, &["grant-scope", "org-carol", &echo]);
    let grant = [
        "grant-poca-key",
        "--key=org-carol",
        "--key-file",
        key_file,
        "--identity",
        AGENT,
        "--public-key",
        &public_key,
        "--destination",
        &echo,
        "--id=poca-1",
    ];
    registry(&scene, &grant);
    scene.settle().await;
    assert_eq!(call(&scene, &key()).await.status, 200);
    // It proves no call of what its principal may not delegate.
    let body = br#"{"tool":"todos","payload":{"op":"create","title":"t"}}"#;
    let proof = signed(&key(), &manifest("todos", body));
    let mut caller = scene.caller(Version::Http2).await;
    let sent = Sent::whole(body.as_slice());
    let answer = caller.call(&proof.with_json(), sent).await.unwrap();
    assert_denied(&answer, 403, "poca_sig_invalid");

    // Once the tool returns, the service knows.
    let admin = scene.gateway.authz.admin_grpc_addr().to_string();
    let revoke = [
        "revoke-poca-key",
        "--id=poca-1",
        "--yes",
        "--wait",
        "--admin",
        &admin,
    ];
    registry(&scene, &revoke);
    assert_denied(&call(&scene, &key()).await, 403, "poca_sig_invalid");
    assert_eq!(scene.echo.seen().len(), 1);
    assert!(scene.todos.seen().is_empty());
    registry(&scene, &[&grant[..], &["--replace"]].concat());
    scene.settle().await;
    assert_eq!(call(&scene, &key()).await.status, 200);
}

#[tokio::test]
async fn an_agent_whose_only_keys_do_not_count_has_none() {
    let scene = Scene::start().await;
    let database = &scene.gateway.database;
    let reads = scene.reads().await;
    scene.files.write("agents.yaml", "agents: {}\n");
    scene.reloaded(reads + 1).await;
    let unknown = "poca_unknown_caller_pubkey";
    let echo = scene.destination("echo");
    // Of another tool's principal.
    let principal = principal(&scene, &scene.destination("todos"));
    principal.grant_poca_key(database, &row("poca-1")).unwrap();
    scene.settle().await;
    assert_denied(&call(&scene, &key()).await, 403, unknown);
    principal
        .scope(database, &echo, &Times::from_now(-7200, 60 * 86_400))
        .unwrap();
    scene.settle().await;
    assert_eq!(call(&scene, &key()).await.status, 200);
    // Each undone again: what was denied was denied for this.
    for (harm, undo) in [
        (
            "UPDATE poca_keys SET ed25519_public_key = sha256('other')",
            format!(
                "UPDATE poca_keys SET ed25519_public_key = '\\x{}'",
                hex::encode(key().public_key().to_bytes())
            ),
        ),
        (
            "UPDATE poca_keys SET subject_identity = 'agent-beta'",
            format!("UPDATE poca_keys SET subject_identity = '{AGENT}'"),
        ),
        (
            "UPDATE poca_keys SET not_after = not_after + interval '1 day'",
            "UPDATE poca_keys SET not_after = not_after - interval '1 day'".to_owned(),
        ),
        (
            "UPDATE principal_signing_keys SET revoked_at = now() WHERE key_id = 'org-bob'",
            "UPDATE principal_signing_keys SET revoked_at = NULL WHERE key_id = 'org-bob'"
                .to_owned(),
        ),
    ] {
        database.execute(harm).unwrap();
        scene.settle().await;
        assert_denied(&call(&scene, &key()).await, 403, unknown);
        database.execute(&undo).unwrap();
        scene.settle().await;
        assert_eq!(call(&scene, &key()).await.status, 200, "{undo}");
    }
    database.execute("DELETE FROM poca_keys").unwrap();
    let expired = PocaKeyRow {
        times: Times::from_now(-3600, -1),
        ..row("poca-2")
    };
    principal.grant_poca_key(database, &expired).unwrap();
    let others = PocaKeyRow {
        identity: "agent-beta".to_owned(),
        ..row("poca-3")
    };
    principal.grant_poca_key(database, &others).unwrap();
    scene.settle().await;
    assert_denied(&call(&scene, &key()).await, 403, unknown);
}

#[tokio::test]
async fn a_key_without_a_permission_opens_nothing() {
    let scene = Scene::start().await;
    let principal = principal(&scene, &scene.destination("echo"));
    let database = &scene.gateway.database;
    principal.grant_poca_key(database, &row("poca-1")).unwrap();
    scene.settle().await;
    let stranger = ClientCertificate::for_identity(AGENT).unwrap();
    let proof = signed(&key(), &manifest("echo", b"{}"));
    let mut caller = scene.caller_with(&stranger, Version::Http2).await;
    let sent = Sent::whole("{}");
    let answer = caller.call(&proof.with_json(), sent).await.unwrap();
    assert_denied(&answer, 403, "no_permission");
    assert!(scene.echo.seen().is_empty());
}

#[tokio::test]
async fn keys_that_can_not_be_read_are_no_decision() {
    let scene = Scene::start().await;
    assert_eq!(call(&scene, &crate::scene::key()).await.status, 200);
    scene
        .gateway
        .database
        .execute("DROP TABLE poca_keys; INSERT INTO registry_changes DEFAULT VALUES")
        .unwrap();
    scene.settle().await;
    let answer = call(&scene, &crate::scene::key()).await;
    assert_denied(&answer, 503, "registry_unavailable");
    assert_eq!(scene.echo.seen().len(), 1);
}

/// Were each of them to read for itself, all but one would be refused.
#[tokio::test]
async fn many_calls_at_once_read_an_agents_keys_once() {
    let one = ("AGENT_GATEWAY__CACHE__MAX_LOOKUPS", "1".to_owned());
    let scene = Scene::start_unlike(Unlike {
        environment: vec![one],
        ..Unlike::default()
    });
    let scene = scene.await;
    let database = &scene.gateway.database;
    let principal = principal(&scene, &scene.destination("echo"));
    principal.grant_poca_key(database, &row("poca-1")).unwrap();
    scene.settle().await;
    let mut callers = Vec::new();
    for _ in 0..16 {
        callers.push(scene.caller(Version::Http2).await);
    }
    let mut lock = Session::open(database).unwrap();
    lock.run("BEGIN; LOCK poca_keys").unwrap();
    let mut calls = JoinSet::new();
    for mut caller in callers {
        let proof = signed(&key(), &manifest("echo", b"{}"));
        calls.spawn(async move {
            let sent = Sent::whole("{}");
            caller.call(&proof.with_json(), sent).await.unwrap()
        });
    }
    // Those that come later find the keys there.
    tokio::time::sleep(A_WHILE).await;
    lock.run("COMMIT").unwrap();
    for answer in calls.join_all().await {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(scene.echo.seen().len(), 16);
}
