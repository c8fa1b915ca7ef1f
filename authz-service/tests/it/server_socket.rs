//! Envoy's listener as a Unix socket: who may use it. The rest is as for the admin's.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use testbed::{Authz, AuthzOptions, authz, scratch};
use tokio::net::TcpStream;

use super::grpcurl::grpcurl_to;

async fn start(path: &Path, mode: Option<&str>) -> Result<Authz, String> {
    let database = testbed::database().await.unwrap();
    authz::migrate(&database.url()).unwrap();
    let path = path.to_str().unwrap();
    let mut environment = vec![("AGENT_GATEWAY__SERVER__SOCKET", path)];
    // Quoted, or the environment's reader takes it for a number.
    let mode = mode.map(|mode| format!("\"{mode}\""));
    environment.extend(
        mode.iter()
            .map(|mode| ("AGENT_GATEWAY__SERVER__SOCKET_MODE", &**mode)),
    );
    let environment = environment.iter();
    let authz = Authz::start(&AuthzOptions {
        database_url: database.url(),
        environment: environment
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..AuthzOptions::default()
    });
    authz.map_err(|error| format!("{error:#}"))
}

#[tokio::test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no grpcurl wheel")]
async fn the_socket_has_the_mode_that_was_asked_for_and_takes_the_place_of_the_port() {
    let folder = scratch::folder("server").unwrap();
    let path = folder.path().join("authz.sock");
    for (mode, bits) in [(None, 0o600), (Some("0600"), 0o600), (Some("0660"), 0o660)] {
        let mut authz = start(&path, mode).await.unwrap();
        let found = fs::symlink_metadata(&path).unwrap();
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o7777, bits);
        assert!(TcpStream::connect(authz.grpc_addr()).await.is_err());

        let target = ["-unix", "-authority", "localhost", path.to_str().unwrap()];
        // No reflection for Envoy, so its messages can't be asked for by name; it answers, though.
        let refused = grpcurl_to(&target, &["list"], "").unwrap_err();
        assert!(
            refused.contains("does not support the reflection API"),
            "{refused}"
        );

        assert!(authz.stop().unwrap().success());
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_an_unsafe_folder_refused() {
    let folder = scratch::folder("server").unwrap();
    let path = folder.path().join("authz.sock");
    let mut dead = start(&path, None).await.unwrap();
    dead.process().kill();
    assert!(path.exists());
    let mut live = start(&path, None).await.unwrap();
    let said = start(&path, None).await.unwrap_err();
    let expected = format!(
        "error: server.socket: another process listens at {}",
        path.display()
    );
    assert!(said.contains(&expected), "{said}");
    live.stop().unwrap();

    fs::set_permissions(folder.path(), Permissions::from_mode(0o770)).unwrap();
    let said = start(&path, None).await.unwrap_err();
    assert!(said.contains("others may write to it"), "{said}");
}
