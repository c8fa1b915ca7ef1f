//! Nonces in a table: used once, by whoever asks first, and forgotten in time.

use std::time::Duration;

use futures::future::join_all;
use permission::Timestamp;
use registry::{LookupError, NonceTable, OpenError, Options};
use testbed::{Database, Postgres};

use super::{migrated, now, options, soon};

const KEY: [u8; 32] = [1; 32];

async fn table(database: &Database) -> NonceTable {
    NonceTable::open(&options(&database.url())).await.unwrap()
}

/// A server of its own, for roles belong to a whole server; and its database as a member of this
/// role sees it.
async fn as_member_of(role: &str) -> (Postgres, Database, String) {
    let server = Postgres::start().await.unwrap();
    let database = server.database("registry").unwrap();
    registry::migrate(&database.url()).await.unwrap();
    database
        .execute(&format!("CREATE ROLE svc LOGIN IN ROLE {role}"))
        .unwrap();
    let url = database.url_as("svc", "").unwrap();
    (server, database, url)
}

fn in_seconds(seconds: i64) -> Timestamp {
    now().saturating_add_micros(seconds * 1_000_000)
}

#[tokio::test]
async fn a_nonce_is_used_once_on_whatever_replica() {
    let database = migrated().await;
    let (one, two) = (table(&database).await, table(&database).await);
    let end = in_seconds(360);
    assert!(one.insert(&KEY, end, soon()).await.unwrap());
    assert!(!one.insert(&KEY, end, soon()).await.unwrap());
    assert!(!two.insert(&KEY, end, soon()).await.unwrap());
    // Another expiry makes it no other nonce.
    assert!(!two.insert(&KEY, in_seconds(400), soon()).await.unwrap());
    assert!(two.insert(&[2; 32], end, soon()).await.unwrap());
}

#[tokio::test]
async fn of_many_at_once_one_gets_it() {
    let database = migrated().await;
    let (one, two) = (table(&database).await, table(&database).await);
    let end = in_seconds(360);
    let calls = (0..64).map(|number| {
        let table = if number % 2 == 0 { &one } else { &two };
        table.insert(&KEY, end, soon())
    });
    let passed = join_all(calls).await.into_iter().map(Result::unwrap);
    assert_eq!(passed.filter(|passed| *passed).count(), 1);
}

#[tokio::test]
async fn only_what_has_long_expired_is_forgotten_and_then_it_is_taken_as_used() {
    let database = migrated().await;
    let table = table(&database).await;
    let margin = 300;
    for (key, end) in [(3, in_seconds(60)), (4, in_seconds(-margin + 60))] {
        assert!(
            table.insert(&[key; 32], end, soon()).await.unwrap(),
            "{key}"
        );
    }
    let old = in_seconds(-margin - 60);
    assert!(!table.insert(&KEY, old, soon()).await.unwrap());
    database
        .execute(
            "INSERT INTO relay_nonces
             SELECT sha256(n::text::bytea), now() - interval '6 minutes'
             FROM generate_series(1, 10001) AS n",
        )
        .unwrap();
    assert_eq!(table.count(20_000, soon()).await.unwrap(), 10_003);
    assert_eq!(table.count(50, soon()).await.unwrap(), 50);
    // A part at a time.
    assert!(table.prune(soon()).await.unwrap());
    assert_eq!(table.count(20_000, soon()).await.unwrap(), 3);
    assert!(table.prune(soon()).await.unwrap());
    assert!(!table.prune(soon()).await.unwrap());
    assert_eq!(table.count(20_000, soon()).await.unwrap(), 2);
    assert!(
        !table
            .insert(&[4; 32], in_seconds(60), soon())
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn its_role_may_add_nonces_and_nothing_else() {
    let (_server, database, url) = as_member_of("agent_gateway_relay").await;
    let table = NonceTable::open(&options(&url)).await.unwrap();
    assert!(table.insert(&KEY, in_seconds(60), soon()).await.unwrap());
    assert_eq!(table.count(10, soon()).await.unwrap(), 1);
    assert!(!table.prune(soon()).await.unwrap());
    for statement in [
        "DELETE FROM relay_nonces",
        "UPDATE relay_nonces SET expires_at = now()",
        "TRUNCATE relay_nonces",
        "SELECT FROM permission_registry",
        "SELECT FROM principal_signing_keys",
        "INSERT INTO registry_changes DEFAULT VALUES",
    ] {
        let as_role = format!("SET ROLE svc; {statement}");
        let error = database.execute(&as_role).unwrap_err().to_string();
        assert!(error.contains("permission denied"), "{statement}: {error}");
    }
}

#[tokio::test]
async fn a_role_that_may_add_none_is_refused_at_start() {
    let (_server, _database, url) = as_member_of("agent_gateway_reader").await;
    let error = NonceTable::open(&options(&url)).await.unwrap_err();
    assert!(matches!(error, OpenError::NoRight(_)), "{error}");
    let error = NonceTable::open(&options("mysql://x")).await.unwrap_err();
    assert!(matches!(error, OpenError::BadUrl), "{error}");
}

#[tokio::test]
async fn a_table_that_is_slow_or_gone_gives_no_answer() {
    let (mut server, database, url) = as_member_of("agent_gateway_relay").await;
    let impatient = Options {
        acquire_timeout: Duration::from_millis(1500),
        query_timeout: Duration::from_millis(1500),
        ..options(&url)
    };
    let table = NonceTable::open(&impatient).await.unwrap();
    let used = |key: u8| {
        let table = &table;
        async move { table.insert(&[key; 32], in_seconds(60), soon()).await }
    };
    assert!(used(1).await.unwrap());
    server.pause().unwrap();
    for key in 2..6 {
        let slow = used(key).await;
        assert!(matches!(slow, Err(LookupError::TimedOut)), "{slow:?}");
    }
    server.resume().unwrap();
    assert!(!used(1).await.unwrap());
    server.stop().unwrap();
    assert!(used(6).await.is_err());
    server.start_again().await.unwrap();
    // Whoever finds out that a connection is dead is refused; the next call has another.
    let mut tries = 0;
    while used(7).await.is_err() {
        tries += 1;
        assert!(tries < 4, "the pool holds dead connections");
    }
    assert!(!used(1).await.unwrap(), "a restart made a nonce new");
    database.execute("DROP TABLE relay_nonces").unwrap();
    let gone = used(8).await;
    assert!(matches!(gone, Err(LookupError::Failed(_))), "{gone:?}");
}
