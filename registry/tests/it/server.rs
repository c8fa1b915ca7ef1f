//! Several database servers behind one address: only the one that is followed counts.

use std::time::Duration;

use registry::{Batch, Feed, LookupError, Options, Reader, Why};
use testbed::Postgres;

use super::{migrated, now, options, read, request, soon};

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
        acquire_timeout: Duration::from_millis(1500),
        ..options(url)
    };
    let here = Reader::open(&impatient(&followed.url())).await.unwrap();
    let there = Reader::open(&impatient(&other_url)).await.unwrap();
    assert!(there.facts(&request(), soon()).await.is_ok());
    for (reader, same) in [(&here, true), (&there, false)] {
        let feed = Feed::new(&followed.url(), Duration::from_secs(20)).unwrap();
        read(&mut feed.leading(reader)).await.unwrap();
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
    let feed = Feed::new(&database.url(), Duration::from_secs(20)).unwrap();
    let mut feed = feed.leading(&reader);
    read(&mut feed).await.unwrap();
    reader.facts(&request(), soon()).await.unwrap();
    let after = process(&database);
    assert_ne!(before, after);
    // Reading on is no reason to connect anew.
    read(&mut feed).await.unwrap();
    reader.facts(&request(), soon()).await.unwrap();
    assert_eq!(process(&database), after);
}

#[tokio::test]
async fn a_standby_tells_how_old_it_is_and_only_where_its_clocks_can_be_believed() {
    let primary = Postgres::start().await.unwrap();
    let database = primary.database("registry").unwrap();
    registry::migrate(&database.url()).await.unwrap();
    let standby = primary.standby().await.unwrap();
    let url = standby.url("registry");
    let mut feed = Feed::new(&url, Duration::from_secs(20)).unwrap();
    let nothing = feed.read(soon(), now()).await;
    assert!(
        matches!(nothing, Err(LookupError::NothingReplayed)),
        "{nothing:?}"
    );

    let mut beating = Feed::new(&database.url(), Duration::from_secs(20)).unwrap();
    let read = beating.read(soon(), now()).await.unwrap();
    assert_eq!(read.age, Duration::ZERO, "a primary's");
    beating.beat(soon()).await.unwrap();
    let before = now();
    let read = loop {
        match feed.read(soon(), now()).await {
            Ok(read) => break read,
            Err(LookupError::NothingReplayed) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(read.batch, Batch::Everything(Why::First));
    // Nothing was committed since, so that is how old it seems, ever more.
    let later = before.saturating_add_micros(60_000_000);
    let read = feed.read(soon(), later).await.unwrap();
    assert!(read.age >= Duration::from_mins(1), "{:?}", read.age);
    assert_eq!(read.batch, Batch::Changes(Vec::new()));
    feed.beat(soon()).await.expect("a standby is left alone");

    let earlier = before.saturating_add_micros(-60_000_000);
    for now in [earlier, later] {
        let ahead = feed.read(soon(), now).await;
        assert!(
            matches!(ahead, Err(LookupError::ClockAhead(by)) if by > Duration::from_secs(50)),
            "{ahead:?}"
        );
    }
}

#[tokio::test]
async fn a_lookup_at_another_standby_than_the_feeds_is_refused() {
    let primary = Postgres::start().await.unwrap();
    let database = primary.database("registry").unwrap();
    registry::migrate(&database.url()).await.unwrap();
    let (followed, other) = (
        primary.standby().await.unwrap(),
        primary.standby().await.unwrap(),
    );
    let impatient = |standby: &Postgres| Options {
        acquire_timeout: Duration::from_millis(1500),
        ..options(&standby.url("registry"))
    };
    let here = Reader::open(&impatient(&followed)).await.unwrap();
    let there = Reader::open(&impatient(&other)).await.unwrap();
    database.execute("CREATE TABLE anything ()").unwrap();
    for (reader, same) in [(&here, true), (&there, false)] {
        let feed = Feed::new(&followed.url("registry"), Duration::from_secs(20)).unwrap();
        let mut feed = feed.leading(reader);
        while let Err(error) = read(&mut feed).await {
            assert!(matches!(error, LookupError::NothingReplayed), "{error}");
        }
        match reader.facts(&request(), soon()).await {
            Ok(_) => assert!(same),
            Err(LookupError::TimedOut) => assert!(!same),
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_heartbeat_costs_a_primary_without_standbys_no_transaction() {
    let primary = Postgres::start().await.unwrap();
    let database = primary.database("registry").unwrap();
    registry::migrate(&database.url()).await.unwrap();
    let mut feed = Feed::new(&database.url(), Duration::from_secs(20)).unwrap();
    read(&mut feed).await.unwrap();
    let next = || {
        database
            .query("SELECT pg_snapshot_xmax(pg_current_snapshot())")
            .unwrap()
    };
    let before = next();
    feed.beat(soon()).await.unwrap();
    assert_eq!(next(), before);
    let _standby = primary.standby().await.unwrap();
    feed.beat(soon()).await.unwrap();
    assert_ne!(next(), before);
}
