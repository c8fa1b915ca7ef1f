//! Several database servers behind one address: only the one that is followed counts.

use std::time::Duration;

use registry::{Feed, LookupError, Options, Reader};
use testbed::Postgres;

use super::{migrated, options, request, soon};

/// The server's process behind the reader's only connection, once earlier ones have ended.
fn process(database: &testbed::Database) -> String {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let pids = database
            .query(
                "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid()
                   AND query LIKE '%SELECT p.permission_id%'",
            )
            .unwrap();
        if !pids.is_empty() && !pids.contains(' ') {
            return pids;
        }
        assert!(std::time::Instant::now() < deadline, "{pids:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn a_lookup_at_another_server_than_the_feeds_is_refused() {
    let other = Postgres::start().await.unwrap();
    let other_url = other.create_database("registry").unwrap();
    registry::migrate(&other_url).await.unwrap();
    let followed = migrated().await;
    let impatient = |url: &str| Options {
        acquire_timeout: Duration::from_millis(500),
        ..options(url)
    };
    let here = Reader::open(&impatient(&followed.url())).await.unwrap();
    let there = Reader::open(&impatient(&other_url)).await.unwrap();
    assert!(there.facts(&request(), soon()).await.is_ok());
    for (reader, same) in [(&here, true), (&there, false)] {
        let feed = Feed::new(&followed.url(), Duration::from_secs(5)).unwrap();
        feed.leading(reader).read(soon()).await.unwrap();
        match reader.facts(&request(), soon()).await {
            Ok(_) => assert!(same),
            Err(LookupError::TimedOut) => assert!(!same),
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn connections_from_before_the_feeds_are_not_used_any_more() {
    let database = migrated().await;
    let one = Options {
        max_connections: 1,
        ..options(&database.url())
    };
    let reader = Reader::open(&one).await.unwrap();
    reader.facts(&request(), soon()).await.unwrap();
    let before = process(&database);
    let feed = Feed::new(&database.url(), Duration::from_secs(5)).unwrap();
    let mut feed = feed.leading(&reader);
    feed.read(soon()).await.unwrap();
    reader.facts(&request(), soon()).await.unwrap();
    let after = process(&database);
    assert_ne!(before, after);
    // Reading on is no reason to connect anew.
    feed.read(soon()).await.unwrap();
    reader.facts(&request(), soon()).await.unwrap();
    assert_eq!(process(&database), after);
}
