//! The change feed: nothing is missed, whatever the order, and nobody waits for anybody.

use registry::{Batch, Change, Feed, Wakeups, Why};
use sqlx::{Connection as _, Executor as _, PgConnection};
use testbed::rows::Principal;
use testbed::{Database, Postgres};

use super::{agent_spki, grant, migrated, read, soon};

/// Longer than any read here takes.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// A feed that has seen all there is.
async fn feed(database: &Database) -> Feed {
    let mut feed = Feed::new(&database.url(), PATIENCE).unwrap();
    assert_eq!(
        read(&mut feed).await.unwrap(),
        Batch::Everything(Why::First)
    );
    // Other tests' open transactions hold the server's xmin back: what is above is told again.
    changes(&mut feed).await;
    feed
}

async fn changes(feed: &mut Feed) -> Vec<Change> {
    match read(feed).await.unwrap() {
        Batch::Changes(changes) => changes,
        Batch::Everything(why) => panic!("everything: {why}"),
    }
}

fn permission(identity: &str) -> Change {
    Change::Permission {
        identity: identity.to_owned(),
        spki: agent_spki(),
        destination: "docstore:443".to_owned(),
    }
}

fn poca_key(identity: &str) -> Change {
    Change::PocaKey(identity.to_owned())
}

fn key() -> Change {
    Change::SigningKey("org-alice".to_owned())
}

/// A database with one key, one scope and one permission, and a feed that has seen them.
async fn granted() -> (Database, Feed) {
    let database = migrated().await;
    let principal = Principal::registered(&database, &["docstore:443"]).unwrap();
    principal.grant(&database, &grant()).unwrap();
    let feed = feed(&database).await;
    (database, feed)
}

async fn session(database: &Database) -> PgConnection {
    PgConnection::connect(&database.url()).await.unwrap()
}

#[tokio::test]
async fn each_kind_of_write_names_what_it_touches() {
    let (database, mut feed) = granted().await;
    assert_eq!(changes(&mut feed).await, []);
    let identities = |names: &[&str]| {
        names
            .iter()
            .map(|name| permission(name))
            .collect::<Vec<_>>()
    };
    for (write, mut expected) in [
        (
            "UPDATE permission_registry SET revoked_at = now()",
            identities(&["agent-alpha"]),
        ),
        // As logical replication and some tools write.
        (
            "SET session_replication_role = replica;
             UPDATE permission_registry SET updated_at = now()",
            identities(&["agent-alpha"]),
        ),
        // Both the old place and the new.
        (
            "UPDATE permission_registry SET subject_identity = 'agent-beta'",
            identities(&["agent-alpha", "agent-beta"]),
        ),
        (
            "UPDATE permission_registry SET revoked_at = now() WHERE false",
            vec![],
        ),
        (
            "DELETE FROM permission_registry",
            identities(&["agent-beta"]),
        ),
        (
            "UPDATE principal_key_permissions SET revoked_at = now()",
            vec![key()],
        ),
        (
            "INSERT INTO poca_keys (poca_key_id, signing_key_id, subject_identity,
                 ed25519_public_key, not_before, not_after, signature)
             SELECT 'poca-' || n, 'org-alice', 'agent-' || n, sha256(n::text::bytea), now(),
                 now() + '1 day', '' FROM generate_series(1, 2) n",
            vec![poca_key("agent-1"), poca_key("agent-2")],
        ),
        (
            "UPDATE poca_keys SET revoked_at = now() WHERE poca_key_id = 'poca-2'",
            vec![poca_key("agent-2")],
        ),
        (
            "UPDATE poca_keys SET subject_identity = 'agent-3' WHERE poca_key_id = 'poca-2'",
            vec![poca_key("agent-2"), poca_key("agent-3")],
        ),
        (
            "SET session_replication_role = replica; DELETE FROM poca_keys",
            vec![poca_key("agent-1"), poca_key("agent-3")],
        ),
        ("DELETE FROM principal_key_permissions", vec![key()]),
        (
            "UPDATE principal_signing_keys SET revoked_at = now()",
            vec![key()],
        ),
        (
            "UPDATE principal_signing_keys SET key_id = 'org-bob'",
            vec![key(), Change::SigningKey("org-bob".to_owned())],
        ),
        (
            "DELETE FROM principal_signing_keys",
            vec![Change::SigningKey("org-bob".to_owned())],
        ),
    ] {
        database.execute(write).unwrap();
        let mut seen = changes(&mut feed).await;
        let order = |change: &Change| format!("{change:?}");
        seen.sort_by_key(order);
        expected.sort_by_key(order);
        assert_eq!(seen, expected, "{write}");
        assert_eq!(changes(&mut feed).await, [], "{write}: told twice");
    }
    for table in [
        "permission_registry",
        "poca_keys",
        "principal_key_permissions",
        "principal_signing_keys",
    ] {
        database
            .execute(&format!("TRUNCATE {table} CASCADE"))
            .unwrap();
        assert_eq!(
            read(&mut feed).await.unwrap(),
            Batch::Everything(Why::Truncated),
            "{table}"
        );
        assert_eq!(changes(&mut feed).await, []);
    }
}

#[tokio::test]
async fn what_commits_late_is_not_missed_and_what_is_rolled_back_is_not_told() {
    let (database, mut feed) = granted().await;
    let mut early = session(&database).await;
    let mut failing = session(&database).await;
    // The earlier transaction has the lower xid and the lower seq, and commits last.
    let mut first = early.begin().await.unwrap();
    first
        .execute("UPDATE permission_registry SET revoked_at = now()")
        .await
        .unwrap();
    let mut never = failing.begin().await.unwrap();
    never
        .execute("UPDATE principal_signing_keys SET updated_at = now()")
        .await
        .unwrap();
    database
        .execute("UPDATE principal_key_permissions SET updated_at = now()")
        .unwrap();
    assert_eq!(changes(&mut feed).await, [key()]);
    assert_eq!(changes(&mut feed).await, []);
    never.rollback().await.unwrap();
    first.commit().await.unwrap();
    assert_eq!(changes(&mut feed).await, [permission("agent-alpha")]);
    assert_eq!(changes(&mut feed).await, []);
}

#[tokio::test]
async fn a_long_open_write_neither_blocks_other_writers_nor_hides_their_changes() {
    let (database, mut feed) = granted().await;
    let mut long = session(&database).await;
    let mut open = long.begin().await.unwrap();
    open.execute("UPDATE permission_registry SET updated_at = now()")
        .await
        .unwrap();
    for _ in 0..20 {
        database
            .execute("UPDATE principal_signing_keys SET updated_at = now()")
            .unwrap();
        assert_eq!(changes(&mut feed).await, [key()]);
        assert_eq!(changes(&mut feed).await, []);
    }
    open.commit().await.unwrap();
    assert_eq!(changes(&mut feed).await, [permission("agent-alpha")]);
}

#[tokio::test]
async fn concurrent_writers_in_any_order_lose_nothing() {
    let (database, mut feed) = granted().await;
    let mut writers = Vec::new();
    for writer in 0..4 {
        let mut connection = session(&database).await;
        writers.push(tokio::spawn(async move {
            for number in 0..25 {
                let mut write = connection.begin().await.unwrap();
                let insert = format!(
                    "INSERT INTO permission_registry
                     SELECT 'w{writer}-{number}', signing_key_id, 'w{writer}-{number}',
                            subject_public_key_spki_der, destination, not_before, not_after,
                            revoked_at, signature
                     FROM permission_registry WHERE subject_identity = 'agent-alpha'"
                );
                write.execute(sqlx::AssertSqlSafe(insert)).await.unwrap();
                tokio::task::yield_now().await;
                write.commit().await.unwrap();
            }
        }));
    }
    let mut seen = Vec::new();
    while writers.iter().any(|writer| !writer.is_finished()) {
        seen.extend(changes(&mut feed).await);
    }
    for writer in writers {
        writer.await.unwrap();
    }
    seen.extend(changes(&mut feed).await);
    let expected = |writer, number| permission(&format!("w{writer}-{number}"));
    for writer in 0..4 {
        for number in 0..25 {
            let count = seen
                .iter()
                .filter(|change| **change == expected(writer, number))
                .count();
            assert_eq!(count, 1, "w{writer}-{number}");
        }
    }
    assert_eq!(seen.len(), 100);
}

#[tokio::test]
async fn a_reader_that_fell_behind_the_pruned_point_is_told_so() {
    // A server of its own: other tests' open transactions would hold back what can be pruned.
    let server = Postgres::start().await.unwrap();
    let database = server.database("registry").unwrap();
    registry::migrate(&database.url()).await.unwrap();
    Principal::registered(&database, &[]).unwrap();
    let mut feed = self::feed(&database).await;
    let mut idle = self::feed(&database).await;
    database
        .execute("UPDATE principal_signing_keys SET updated_at = now()")
        .unwrap();
    assert_eq!(changes(&mut feed).await, [key()]);
    // Young changes stay.
    feed.prune(soon()).await.unwrap();
    assert_eq!(changes(&mut feed).await, []);
    database
        .execute("UPDATE registry_changes SET changed_at = now() - interval '1 hour'")
        .unwrap();
    feed.prune(soon()).await.unwrap();
    assert_eq!(
        database
            .query("SELECT count(*) FROM registry_changes")
            .unwrap()
            .trim(),
        "0"
    );
    assert_eq!(
        changes(&mut feed).await,
        [],
        "the reader that was up to date lost nothing"
    );
    assert_eq!(
        read(&mut idle).await.unwrap(),
        Batch::Everything(Why::Pruned)
    );
}

#[tokio::test]
async fn more_than_is_worth_following_is_everything() {
    let (database, mut feed) = granted().await;
    flood(&database);
    assert_eq!(
        read(&mut feed).await.unwrap(),
        Batch::Everything(Why::TooMany)
    );
    assert_eq!(changes(&mut feed).await, []);
}

#[tokio::test]
async fn a_read_looks_at_no_change_that_was_handled_however_many_there_are() {
    let database = migrated().await;
    // As after a bulk load: not analyzed yet.
    database
        .execute(
            "INSERT INTO registry_changes (subject_identity, destination, subject_public_key_spki_der)
             SELECT 'agent', 'd:443', 'spki' FROM generate_series(1, 200000)",
        )
        .unwrap();
    // The very statement, with its parameters written in.
    let source = include_str!("../../src/feed.rs");
    let (_, statement) = source.split_once("SELECT_CHANGES: &str = \"").unwrap();
    let (statement, _) = statement.split_once("\";").unwrap();
    let statement = statement
        .replace("$1", "'18446744073709551615'")
        .replace("$2", "'{}'")
        .replace("$3", "0")
        .replace("$4", "'0'")
        .replace("$5", "10001")
        .replace("$6", "true");
    let plan = database.query(&format!("EXPLAIN {statement}")).unwrap();
    let (_, changes) = plan.split_once("Limit").unwrap();
    assert!(changes.contains("Index Cond: (xid >="), "{plan}");
}

#[tokio::test]
async fn a_server_that_refuses_to_prune_or_to_beat_is_read_on() {
    let (database, mut feed) = granted().await;
    database
        .execute("DROP FUNCTION agent_gateway_prune_changes(), agent_gateway_heartbeat()")
        .unwrap();
    feed.prune(soon()).await.unwrap_err();
    feed.beat(soon()).await.unwrap_err();
    assert_eq!(changes(&mut feed).await, []);
}

#[tokio::test]
async fn an_older_copy_of_the_database_is_noticed() {
    let (database, mut feed) = granted().await;
    database
        .execute("UPDATE principal_signing_keys SET updated_at = now()")
        .unwrap();
    assert_eq!(changes(&mut feed).await, [key()]);
    // As if the last change had never been.
    database.execute("DELETE FROM registry_changes").unwrap();
    assert_eq!(
        read(&mut feed).await.unwrap(),
        Batch::Everything(Why::OtherHistory)
    );
}

#[tokio::test]
async fn a_read_that_fails_is_made_up_for_by_the_next() {
    let mut server = Postgres::start().await.unwrap();
    let database = server.database("registry").unwrap();
    registry::migrate(&database.url()).await.unwrap();
    let principal = Principal::registered(&database, &["docstore:443"]).unwrap();
    principal.grant(&database, &grant()).unwrap();
    let mut feed = feed(&database).await;
    database
        .execute("UPDATE permission_registry SET revoked_at = now()")
        .unwrap();
    server.stop().unwrap();
    assert!(read(&mut feed).await.is_err());
    server.start_again().await.unwrap();
    assert_eq!(
        read(&mut feed).await.unwrap(),
        Batch::Everything(Why::Reconnected)
    );
    assert_eq!(changes(&mut feed).await, []);
}

#[tokio::test]
async fn a_connection_that_is_lost_means_that_anything_may_have_changed() {
    let (database, mut feed) = granted().await;
    database
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .unwrap();
    assert!(read(&mut feed).await.is_err());
    assert_eq!(
        read(&mut feed).await.unwrap(),
        Batch::Everything(Why::Reconnected)
    );
}

#[tokio::test]
async fn a_flood_beside_a_long_open_write_is_everything_once() {
    let (database, mut feed) = granted().await;
    let mut long = session(&database).await;
    let mut open = long.begin().await.unwrap();
    open.execute("UPDATE principal_signing_keys SET updated_at = now()")
        .await
        .unwrap();
    flood(&database);
    assert_eq!(
        read(&mut feed).await.unwrap(),
        Batch::Everything(Why::TooMany)
    );
    assert_eq!(changes(&mut feed).await, []);
    open.commit().await.unwrap();
    assert_eq!(changes(&mut feed).await, [key()]);
}

#[tokio::test]
async fn a_write_wakes_who_listens() {
    let (database, _) = granted().await;
    let mut wakeups = Wakeups::listen(&database.url()).await.unwrap();
    database
        .execute("UPDATE permission_registry SET revoked_at = now()")
        .unwrap();
    tokio::time::timeout_at(soon(), wakeups.next())
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn the_services_role_can_follow_and_prune_but_not_forge() {
    let (database, _) = granted().await;
    let login = "CREATE ROLE feed_reader LOGIN PASSWORD 'x' IN ROLE agent_gateway_reader";
    database.execute(login).unwrap();
    let url = database.url_as("feed_reader", "x").unwrap();
    let mut feed = Feed::new(&url, PATIENCE).unwrap();
    read(&mut feed).await.unwrap();
    feed.prune(soon()).await.unwrap();
    assert!(Wakeups::listen(&url).await.is_ok());
    let mut reader = PgConnection::connect(&url).await.unwrap();
    for forbidden in [
        "INSERT INTO registry_changes DEFAULT VALUES",
        "DELETE FROM registry_changes",
        "UPDATE registry_changes_pruned SET up_to = '99'",
        "INSERT INTO permission_registry SELECT * FROM permission_registry",
    ] {
        assert!(reader.execute(forbidden).await.is_err(), "{forbidden}");
    }
    drop((reader, feed));
    database
        .execute("DROP OWNED BY feed_reader; DROP ROLE feed_reader")
        .unwrap();
}

/// Grants more permissions at once than a reader follows one by one.
fn flood(database: &Database) {
    database
        .execute(
            "INSERT INTO permission_registry
             SELECT 'many-' || n, signing_key_id, 'many-' || n, subject_public_key_spki_der,
                    destination, not_before, not_after, revoked_at, signature
             FROM permission_registry, generate_series(1, 10001) n",
        )
        .unwrap();
}
