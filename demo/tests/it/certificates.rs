//! What the script for the demo's TLS material leaves behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::Result;

use crate::client::certificates;

#[test]
fn only_the_servers_keys_are_kept_and_for_their_owner_alone() -> Result<()> {
    let folder = certificates()?;
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder.path())? {
        let entry = entry?;
        let mode = entry.metadata()?.permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.path());
        names.insert(entry.file_name().into_string().unwrap());
    }
    let expected = [
        "authz-ca.pem",
        "authz-key.pem",
        "authz.pem",
        "envoy-ca.pem",
        "envoy-key.pem",
        "envoy.pem",
        "mock-ca.pem",
        "mock-services-key.pem",
        "mock-services.pem",
        "server-ca.pem",
        "server-key.pem",
        "server.pem",
        "tools-ca.pem",
    ];
    assert_eq!(names, expected.map(str::to_owned).into());
    Ok(())
}

#[test]
fn each_run_makes_other_keys() -> Result<()> {
    let (first, second) = (certificates()?, certificates()?);
    for name in [
        "server-key.pem",
        "mock-services-key.pem",
        "server-ca.pem",
        "mock-ca.pem",
    ] {
        let read = |folder: &tempfile::TempDir| fs::read(folder.path().join(name));
        assert_ne!(read(&first)?, read(&second)?, "{name}");
    }
    Ok(())
}
