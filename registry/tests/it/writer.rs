//! What the CLI writes, and that the service then reads it.

use permission::{Decision, Id, Permission, PrincipalKey, Scope, Timestamp, Window, decide};
use registry::{Filter, OnExisting, Revocation, WriteError, Writer};
use testbed::rows::Principal;

use super::{grant, migrated, now, reader, request, soon};

fn window() -> Window {
    let hour = 3_600_000_000;
    Window::new(
        now().saturating_add_micros(-hour),
        now().saturating_add_micros(hour),
    )
    .unwrap()
}

fn key(principal: &Principal) -> PrincipalKey {
    PrincipalKey::from_stored("ecdsa_p256_sha256", &principal.spki()).unwrap()
}

#[tokio::test]
async fn what_the_writer_writes_is_what_the_reader_reads() {
    let database = migrated().await;
    let mut writer = Writer::open(&database.url()).await.unwrap();
    let alice = Principal::new("org-alice", 7).unwrap();
    let id = Id::parse("org-alice").unwrap();
    let window = window();
    writer
        .register_key(&id, &key(&alice), &window, None)
        .await
        .unwrap();
    let scope = Scope {
        destination: "docstore".parse().unwrap(),
        window,
        revoked: false,
        root_signature: None,
    };
    writer.grant_scope(&id, &[scope]).await.unwrap();
    assert_eq!(writer.signer(&id).await.unwrap().unwrap().window, window);
    let scopes = writer.scopes(&id).await.unwrap();
    assert_eq!(scopes.len(), 1);
    assert_eq!(scopes[0].destination, "docstore".parse().unwrap());
    let nobody = Id::parse("org-bob").unwrap();
    assert!(writer.scopes(&nobody).await.unwrap().is_empty());

    let permission = Permission {
        permission_id: Id::parse("p1").unwrap(),
        signing_key_id: id,
        subject_identity: request().identity,
        subject_spki: request().spki,
        destination: request().destination,
        window,
    };
    let mut as_text = grant();
    as_text.permission_id = "p1".to_owned();
    as_text.times.not_before = window.not_before().to_string();
    as_text.times.not_after = window.not_after().to_string();
    let signed = (permission.clone(), alice.sign(&as_text));
    writer
        .grant(std::slice::from_ref(&signed), OnExisting::Refuse)
        .await
        .unwrap();
    assert!(matches!(
        writer.grant(&[signed], OnExisting::Refuse).await,
        Err(WriteError::Exists("permission id"))
    ));

    let reader = reader(&database).await;
    let facts = reader.facts(&request(), soon()).await.unwrap();
    let Decision::Allow(permit) = decide(&facts, &request(), now()) else {
        panic!("denied")
    };
    assert_eq!(permit.permission(), &permission);
    assert_eq!(permit.ends_at(), window.not_after());
}

#[tokio::test]
async fn a_key_or_its_id_is_registered_once() {
    let database = migrated().await;
    let mut writer = Writer::open(&database.url()).await.unwrap();
    let (alice, bob) = (
        Id::parse("org-alice").unwrap(),
        Id::parse("org-bob").unwrap(),
    );
    let (first, second) = (
        Principal::new("a", 7).unwrap(),
        Principal::new("b", 8).unwrap(),
    );
    writer
        .register_key(&alice, &key(&first), &window(), None)
        .await
        .unwrap();
    let same_id = writer
        .register_key(&alice, &key(&second), &window(), None)
        .await;
    assert!(
        matches!(same_id, Err(WriteError::Exists("key id"))),
        "{same_id:?}"
    );
    let same_key = writer
        .register_key(&bob, &key(&first), &window(), None)
        .await;
    assert!(
        matches!(same_key, Err(WriteError::Exists("public key"))),
        "{same_key:?}"
    );
}

#[tokio::test]
async fn revoking_takes_exactly_what_the_filter_names() {
    let database = migrated().await;
    let principal = Principal::registered(&database, &[]).unwrap();
    for (identity, destination) in [("a", "x:443"), ("a", "y:443"), ("b", "x:443")] {
        let mut grant = grant();
        grant.permission_id = format!("{identity}-{destination}");
        identity.clone_into(&mut grant.identity);
        destination.clone_into(&mut grant.destination);
        principal.grant(&database, &grant).unwrap();
    }
    let mut writer = Writer::open(&database.url()).await.unwrap();
    let filter = Filter {
        identity: Some(permission::Identity::parse("a").unwrap()),
        destination: Some("x".parse().unwrap()),
        ..Filter::default()
    };
    let what = Revocation::Permissions(filter);
    let other = ["a-y:443".to_owned()];
    let revoked = writer.revoke(&what, Some(&other)).await.unwrap();
    assert_eq!(revoked.rows, [""; 0]);
    let revoked = writer.revoke(&what, None).await.unwrap();
    assert_eq!(revoked.rows, ["a-x:443"]);
    let again = writer.revoke(&what, None).await.unwrap();
    assert_eq!(again.rows, [""; 0]);
    assert!(again.xid > revoked.xid);
    let listed = writer.permissions(&Filter::default()).await.unwrap();
    let revoked: Vec<_> = listed
        .iter()
        .map(|entry| entry.revoked_at.is_some())
        .collect();
    assert_eq!(revoked, [true, false, false]);
}

#[tokio::test]
async fn times_survive_to_the_microsecond_in_every_year() {
    let database = migrated().await;
    let mut writer = Writer::open(&database.url()).await.unwrap();
    let alice = Principal::new("org-alice", 7).unwrap();
    let id = Id::parse("org-alice").unwrap();
    let window = Window::new(Timestamp::MIN, Timestamp::MAX).unwrap();
    writer
        .register_key(&id, &key(&alice), &window, None)
        .await
        .unwrap();
    assert_eq!(
        writer.keys(&Filter::default()).await.unwrap()[0].window,
        window
    );
}

#[tokio::test]
async fn a_role_that_may_only_read_is_told_so() {
    let database = migrated().await;
    let login = "CREATE ROLE cli_reader LOGIN PASSWORD 'x' IN ROLE agent_gateway_reader";
    database.execute(login).unwrap();
    let mut writer = Writer::open(&database.url_as("cli_reader", "x").unwrap())
        .await
        .unwrap();
    let alice = Principal::new("org-alice", 7).unwrap();
    let id = Id::parse("org-alice").unwrap();
    let refused = writer
        .register_key(&id, &key(&alice), &window(), None)
        .await;
    assert!(
        matches!(refused, Err(WriteError::Forbidden(_))),
        "{refused:?}"
    );
    database
        .execute("DROP OWNED BY cli_reader; DROP ROLE cli_reader")
        .unwrap();
}
