//! The Unix socket for operators: who may use it, and whose it is.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testbed::{Authz, AuthzOptions, Database, authz, scratch};

use super::Scene;
use super::grpcurl::grpcurl_to;

/// A folder that is only ours, and the socket's place in it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = scratch::folder("admin").unwrap();
    let path = folder.path().join("admin.sock");
    (folder, path)
}

async fn migrated() -> Database {
    let database = testbed::database().await.unwrap();
    authz::migrate(&database.url()).unwrap();
    database
}

/// A service with its admin socket there.
fn start(database: &Database, path: &Path) -> Result<Authz, String> {
    let authz = Authz::start(&AuthzOptions {
        database_url: database.url(),
        environment: vec![setting(path)],
        ..AuthzOptions::default()
    });
    authz.map_err(|error| format!("{error:#}"))
}

fn setting(path: &Path) -> (String, String) {
    let path = path.to_str().unwrap().to_owned();
    ("AGENT_GATEWAY__ADMIN__SOCKET".to_owned(), path)
}

/// What the service says when it doesn't start.
fn refused(database: &Database, path: &Path) -> String {
    start(database, path).unwrap_err()
}

fn answers(path: &Path) -> bool {
    let target = ["-unix", "-authority", "localhost", path.to_str().unwrap()];
    grpcurl_to(&target, &["grpc.health.v1.Health/Check"], "{}").is_ok()
}

#[tokio::test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no grpcurl wheel")]
async fn grpcurl_works_over_the_socket() {
    let (_folder, path) = place();
    let (key, value) = setting(&path);
    let scene = Scene::start_with(&[(&key, &value)]).await;
    scene.authz.settle().await;
    let target = ["-unix", "-authority", "localhost", &value];
    let listed = grpcurl_to(&target, &["list"], "").unwrap();
    assert!(listed.contains("agent_gateway.admin.v1.Operations\n"));
    let call = |method: &str, message: &Value| {
        let method = format!("agent_gateway.admin.v1.Operations/{method}");
        let answer = grpcurl_to(&target, &[&method], &message.to_string());
        answer.map(|answer| serde_json::from_str::<Value>(&answer).unwrap())
    };
    assert_eq!(call("Freshness", &json!({})).unwrap()["fresh"], true);
    assert_eq!(call("ListTunnels", &json!({})).unwrap(), json!({}));
    let cut = call("CutTunnels", &json!({"identity": "agent-alpha"})).unwrap();
    assert_eq!(cut.get("cut"), None);
    let notice = cut["notice"].as_str().unwrap();
    assert!(notice.starts_with("nothing was revoked"), "{notice}");
    let refused = call("CutTunnels", &json!({})).unwrap_err();
    assert!(refused.contains("InvalidArgument"), "{refused}");
}

#[tokio::test]
async fn the_socket_is_its_owners_alone_and_goes_with_the_service() {
    let (_folder, path) = place();
    let mut authz = start(&migrated().await, &path).unwrap();
    let found = fs::symlink_metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    assert!(authz.stop().unwrap().success());
    assert!(!path.exists());
}

#[tokio::test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no grpcurl wheel")]
async fn a_dead_process_socket_is_replaced_and_a_live_one_is_not_stolen() {
    let (_folder, path) = place();
    let database = migrated().await;
    let mut dead = start(&database, &path).unwrap();
    dead.process().kill();
    assert!(path.exists());
    let mut live = start(&database, &path).unwrap();
    assert!(answers(&path));

    let expected = format!("another process listens at {}", path.display());
    assert!(refused(&database, &path).contains(&expected));
    assert!(answers(&path));
    // One that hangs is alive.
    live.process().pause().unwrap();
    assert!(refused(&database, &path).contains(&expected));
    live.process().resume().unwrap();
    assert!(answers(&path));
}

#[tokio::test]
async fn what_others_could_replace_or_what_is_not_a_socket_is_refused() {
    let (folder, path) = place();
    let database = migrated().await;
    for mode in [0o770, 0o702, 0o1777] {
        fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
        let said = refused(&database, &path);
        assert!(said.contains("others may write to it"), "{said}");
        assert!(said.contains("hint: "), "{said}");
    }
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    fs::write(&path, "precious").unwrap();
    assert!(refused(&database, &path).contains("is not a socket"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();

    // Nor is anything reached through a link.
    let elsewhere = folder.path().join("elsewhere");
    drop(UnixListener::bind(&elsewhere).unwrap());
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    assert!(refused(&database, &path).contains("is not a socket"));
    fs::remove_file(&path).unwrap();
    assert!(start(&database, &path).is_ok());
    let nowhere = folder.path().join("nowhere/admin.sock");
    assert!(refused(&database, &nowhere).contains("No such file or directory"));
}
