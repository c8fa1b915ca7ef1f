//! Migrations, and the check at start.

use std::process::Command;

use registry::{MigrateError, OpenError, Reader, SCHEMA_VERSION, SchemaError, migrate};
use testbed::database;

use super::{migrated, options, reader, soon};

#[tokio::test]
async fn a_database_without_the_schema_is_refused_and_says_what_is_missing() {
    let database = database().await.unwrap();
    let error = Reader::open(&options(&database.url())).await.unwrap_err();
    assert!(
        matches!(error, OpenError::Schema(SchemaError::Missing)),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .contains("0001_signed_authorization_registry.sql"),
        "{error}"
    );
}

#[tokio::test]
async fn another_version_of_the_schema_is_refused() {
    let database = migrated().await;
    let newer = format!("INSERT INTO agent_gateway_schema_version VALUES ({SCHEMA_VERSION} + 1)");
    database.execute(&newer).unwrap();
    let error = Reader::open(&options(&database.url())).await.unwrap_err();
    assert!(
        matches!(error, OpenError::Schema(SchemaError::Newer { .. })),
        "{error:?}"
    );
    let error = migrate(&database.url()).await.unwrap_err();
    assert!(
        matches!(error, MigrateError::Schema(SchemaError::Newer { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn migrating_again_changes_nothing() {
    let database = database().await.unwrap();
    let first = migrate(&database.url()).await.unwrap();
    assert_eq!(first.len(), usize::try_from(SCHEMA_VERSION).unwrap());
    assert_eq!(migrate(&database.url()).await.unwrap(), Vec::<&str>::new());
    assert!(reader(&database).await.is_ready(soon()).await);
}

#[tokio::test]
async fn two_migrations_at_once_both_succeed() {
    let database = database().await.unwrap();
    let (url, again) = (database.url(), database.url());
    let (a, b) = tokio::join!(migrate(&url), migrate(&again));
    assert_eq!(
        a.unwrap().len() + b.unwrap().len(),
        usize::try_from(SCHEMA_VERSION).unwrap()
    );
}

#[tokio::test]
async fn each_migration_also_runs_under_psql() {
    let database = database().await.unwrap();
    let mut files: Vec<_> =
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
    files.sort();
    for file in files {
        let run = Command::new("psql")
            .args(["-q", "-v", "ON_ERROR_STOP=1", &database.url(), "-f"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(
            run.status.success(),
            "{}",
            String::from_utf8_lossy(&run.stderr)
        );
    }
    assert!(reader(&database).await.is_ready(soon()).await);
}

#[tokio::test]
async fn times_without_an_rfc_3339_form_and_empty_windows_are_refused_by_the_tables() {
    let database = migrated().await;
    for window in [
        "now(), 'infinity'",
        "'-infinity', now()",
        "now(), now()",
        "now(), now() - '1 s'::interval",
    ] {
        let insert = format!(
            "INSERT INTO principal_signing_keys VALUES ('k', 'ecdsa_p256_sha256', 'k', {window})"
        );
        assert!(database.execute(&insert).is_err(), "{window}");
    }
}
