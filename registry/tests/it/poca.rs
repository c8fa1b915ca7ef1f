//! Agents' keys for proofs of context, as a call reads them.

use permission::{Identity, Reason};
use testbed::Database;
use testbed::rows::{PocaKeyRow, Principal, Times};

use super::{migrated, now, reader, soon};

const KEY: [u8; 32] = [5; 32];

fn row() -> PocaKeyRow {
    PocaKeyRow::new("poca-1", "agent-alpha", KEY)
}

/// What becomes of each of the agent's keys for `docstore`, in the order in which they are read.
async fn judged(database: &Database) -> Vec<Result<(), Reason>> {
    let identity = Identity::parse("agent-alpha").unwrap();
    let destination = "docstore".parse().unwrap();
    let reader = reader(database).await;
    let keys = reader.poca_keys(&identity, &destination, soon()).await;
    (keys.unwrap().iter())
        .map(|key| key.judge(&identity, &destination, now()))
        .collect()
}

#[tokio::test]
async fn a_row_counts_as_its_principal_signed_it_and_not_otherwise() {
    for (change, expected) in [
        ("SELECT 1", vec![Ok(())]),
        (
            "UPDATE poca_keys SET revoked_at = now()",
            vec![Err(Reason::PermissionRevoked)],
        ),
        (
            "UPDATE poca_keys SET not_after = not_after + interval '1 microsecond'",
            vec![Err(Reason::SignatureInvalid)],
        ),
        (
            "UPDATE poca_keys SET poca_key_id = 'other'",
            vec![Err(Reason::SignatureInvalid)],
        ),
        (
            "UPDATE poca_keys SET ed25519_public_key = sha256('other')",
            vec![Err(Reason::SignatureInvalid)],
        ),
        (
            "UPDATE poca_keys SET signature = ''",
            vec![Err(Reason::SignatureInvalid)],
        ),
        // What can't be signed is left out.
        ("UPDATE poca_keys SET poca_key_id = E'a\\nb'", vec![]),
        (
            "UPDATE poca_keys SET subject_identity = 'agent-beta'",
            vec![],
        ),
        (
            "UPDATE principal_signing_keys SET revoked_at = now()",
            vec![Err(Reason::SigningKeyInactive)],
        ),
        (
            "UPDATE principal_signing_keys SET public_key_spki_der = '\\x00'",
            vec![Err(Reason::SigningKeyUnknown)],
        ),
        (
            "UPDATE principal_key_permissions SET revoked_at = now()",
            vec![Err(Reason::ScopeMissing)],
        ),
        (
            "UPDATE principal_key_permissions SET not_after = now()",
            vec![Err(Reason::ScopeMissing)],
        ),
        (
            "UPDATE principal_key_permissions SET destination = 'docstore:444'",
            vec![Err(Reason::ScopeMissing)],
        ),
    ] {
        let database = migrated().await;
        let principal = Principal::registered(&database, &["docstore:443"]).unwrap();
        principal.grant_poca_key(&database, &row()).unwrap();
        database.execute(change).unwrap();
        assert_eq!(judged(&database).await, expected, "{change}");
    }
}

#[tokio::test]
async fn several_keys_count_at_once_and_many_revoked_ones_hide_none() {
    let database = migrated().await;
    let principal = Principal::registered(&database, &["docstore:443"]).unwrap();
    for number in 0..20 {
        let old = PocaKeyRow {
            poca_key_id: format!("old-{number}"),
            times: Times::from_now(-60, 50 * 86_400),
            ..row()
        };
        principal.grant_poca_key(&database, &old).unwrap();
    }
    database
        .execute("UPDATE poca_keys SET revoked_at = now()")
        .unwrap();
    for id in ["new-1", "new-2"] {
        let new = PocaKeyRow {
            poca_key_id: id.to_owned(),
            ..row()
        };
        principal.grant_poca_key(&database, &new).unwrap();
    }
    let judged = judged(&database).await;
    assert_eq!(judged.len(), 16);
    assert_eq!(judged[..2], [Ok(()), Ok(())]);
    assert_eq!(judged[2], Err(Reason::PermissionRevoked));
}

#[tokio::test]
async fn the_table_takes_no_key_of_another_length_and_no_window_without_end() {
    let database = migrated().await;
    let principal = Principal::registered(&database, &["docstore:443"]).unwrap();
    principal.grant_poca_key(&database, &row()).unwrap();
    for change in [
        "ed25519_public_key = '\\x00'",
        "not_after = 'infinity'",
        "not_after = not_before",
        "poca_key_id = ''",
        "subject_identity = ''",
        "signing_key_id = 'nobody'",
        "signature = decode(repeat('00', 257), 'hex')",
    ] {
        let update = format!("UPDATE poca_keys SET {change}");
        assert!(database.execute(&update).is_err(), "{change}");
    }
}
