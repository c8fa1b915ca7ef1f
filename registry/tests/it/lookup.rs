//! What a decision reads.

use permission::{Decision, Reason, decide};
use testbed::Database;
use testbed::rows::{Principal, Times};

use super::{grant, migrated, now, reader, request, soon};

/// The reason of the deny, or `None` for an allow.
async fn outcome(database: &Database) -> Option<Reason> {
    let facts = reader(database)
        .await
        .facts(&request(), soon())
        .await
        .unwrap();
    match decide(&facts, &request(), now()) {
        Decision::Allow(_) => None,
        Decision::Deny(reason) => Some(reason),
    }
}

#[tokio::test]
async fn a_row_as_the_scripts_write_it_allows() {
    let database = migrated().await;
    let principal = Principal::registered(&database, &["docstore:443"]).unwrap();
    assert_eq!(outcome(&database).await, Some(Reason::NoPermission));
    principal.grant(&database, &grant()).unwrap();
    assert_eq!(outcome(&database).await, None);
}

#[tokio::test]
async fn what_is_changed_after_signing_is_denied() {
    for (change, expected) in [
        (
            "UPDATE permission_registry SET revoked_at = now()",
            Reason::PermissionRevoked,
        ),
        (
            "UPDATE permission_registry SET not_after = not_after + interval '1 microsecond'",
            Reason::SignatureInvalid,
        ),
        (
            "UPDATE permission_registry SET permission_id = 'other'",
            Reason::SignatureInvalid,
        ),
        (
            "UPDATE permission_registry SET permission_id = E'a\\nb'",
            Reason::SignatureInvalid,
        ),
        (
            "UPDATE permission_registry SET permission_id = repeat('a', 257)",
            Reason::SignatureInvalid,
        ),
        (
            "UPDATE permission_registry SET signature = ''",
            Reason::SignatureInvalid,
        ),
        (
            "UPDATE permission_registry SET destination = 'DOCSTORE:443'",
            Reason::NoPermission,
        ),
        (
            "UPDATE permission_registry SET subject_identity = 'agent-beta'",
            Reason::NoPermission,
        ),
        (
            "UPDATE principal_signing_keys SET revoked_at = now()",
            Reason::SigningKeyInactive,
        ),
        (
            "UPDATE principal_signing_keys SET not_after = now()",
            Reason::SigningKeyInactive,
        ),
        (
            "UPDATE principal_signing_keys SET public_key_spki_der = '\\x00'",
            Reason::SigningKeyUnknown,
        ),
        (
            "UPDATE principal_key_permissions SET revoked_at = now()",
            Reason::ScopeMissing,
        ),
        (
            "UPDATE principal_key_permissions SET destination = 'docstore:444'",
            Reason::ScopeMissing,
        ),
        (
            "UPDATE principal_key_permissions SET not_after = now() + '1 day'",
            Reason::ScopeMissing,
        ),
        (
            "DELETE FROM principal_key_permissions",
            Reason::ScopeMissing,
        ),
        ("DELETE FROM permission_registry", Reason::NoPermission),
    ] {
        let database = migrated().await;
        let principal = Principal::registered(&database, &["docstore:443"]).unwrap();
        principal.grant(&database, &grant()).unwrap();
        assert_eq!(outcome(&database).await, None);
        database.execute(change).unwrap();
        assert_eq!(outcome(&database).await, Some(expected), "{change}");
    }
}

#[tokio::test]
async fn many_revoked_rows_do_not_hide_the_one_that_counts() {
    let database = migrated().await;
    let principal = Principal::registered(&database, &["docstore:443"]).unwrap();
    for number in 0..20 {
        let mut later = grant().during(Times::from_now(-60, 50 * 86_400 + number));
        later.permission_id = format!("old-{number}");
        principal.grant(&database, &later).unwrap();
    }
    database
        .execute("UPDATE permission_registry SET revoked_at = now()")
        .unwrap();
    assert_eq!(outcome(&database).await, Some(Reason::PermissionRevoked));
    principal.grant(&database, &grant()).unwrap();
    assert_eq!(outcome(&database).await, None);
    let facts = reader(&database)
        .await
        .facts(&request(), soon())
        .await
        .unwrap();
    assert_eq!(facts.candidates.len(), 16);
}

#[tokio::test]
async fn many_revoked_scopes_do_not_hide_the_one_that_counts() {
    let database = migrated().await;
    let principal = Principal::registered(&database, &[]).unwrap();
    for number in 0..20 {
        let times = Times::from_now(-7200, 90 * 86_400 + number);
        principal.scope(&database, "docstore:443", &times).unwrap();
    }
    database
        .execute("UPDATE principal_key_permissions SET revoked_at = now()")
        .unwrap();
    principal.grant(&database, &grant()).unwrap();
    assert_eq!(outcome(&database).await, Some(Reason::ScopeMissing));
    let times = Times::from_now(-7200, 60 * 86_400);
    principal.scope(&database, "docstore:443", &times).unwrap();
    assert_eq!(outcome(&database).await, None);
}

#[tokio::test]
async fn many_later_scopes_do_not_hide_the_one_that_covers() {
    let database = migrated().await;
    let principal = Principal::registered(&database, &["docstore:443"]).unwrap();
    principal.grant(&database, &grant()).unwrap();
    for number in 0..20 {
        let times = Times::from_now(-60, 90 * 86_400 + number);
        principal.scope(&database, "docstore:443", &times).unwrap();
    }
    assert_eq!(outcome(&database).await, None);
}

#[tokio::test]
async fn a_grant_as_the_scripts_repeat_it_renews_the_row() {
    let database = migrated().await;
    let principal = Principal::registered(&database, &["docstore:443"]).unwrap();
    principal.grant(&database, &grant()).unwrap();
    let revoke = "UPDATE permission_registry SET revoked_at = now()";
    database.execute(revoke).unwrap();
    assert_eq!(outcome(&database).await, Some(Reason::PermissionRevoked));
    let grant = grant();
    let again = principal.insertion(&grant, &principal.sign(&grant));
    let again = format!(
        "SET ROLE agent_gateway_writer; {again} ON CONFLICT (permission_id) DO UPDATE SET
             not_before = excluded.not_before, not_after = excluded.not_after,
             signature = excluded.signature, revoked_at = NULL, updated_at = now()"
    );
    database.execute(&again).unwrap();
    assert_eq!(outcome(&database).await, None);
}

#[tokio::test]
async fn the_lookup_reads_the_index_and_not_the_table() {
    let database = migrated().await;
    database
        .execute(
            "INSERT INTO principal_signing_keys VALUES ('k', 'ecdsa_p256_sha256', 'k', now(), now() + '1 day');
             INSERT INTO permission_registry (permission_id, signing_key_id, subject_identity,
                 subject_public_key_spki_der, destination, not_before, not_after, signature)
             SELECT 'p' || n, 'k', 'agent', 'spki', 'd:443', now(), now() + n * interval '1 second', ''
             FROM generate_series(1, 20000) n;
             ANALYZE",
        )
        .unwrap();
    // The very statement, with its parameters written in.
    let source = include_str!("../../src/lookup.rs");
    let (_, statement) = source.split_once("SELECT_CANDIDATES: &str = \"").unwrap();
    let (statement, _) = statement.split_once("\";").unwrap();
    let statement = statement
        .replace("$1", "'agent'")
        .replace("$2", "'d:443'")
        .replace("$3", "'spki'::bytea");
    let plan = database.query(&format!("EXPLAIN {statement}")).unwrap();
    assert!(
        plan.contains("Index Scan using permission_registry_lookup"),
        "{plan}"
    );
    assert!(!plan.contains("Seq Scan on permission_registry"), "{plan}");
}
