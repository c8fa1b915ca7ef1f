//! A database that is gone, slow or back again.

use std::time::Duration;

use registry::{LookupError, OpenError, Options, Reader};
use testbed::Postgres;
use testbed::rows::Principal;

use super::{grant, migrated, options, reader, request, soon};

#[tokio::test]
async fn after_a_restart_every_pooled_connection_is_replaced() {
    let mut server = Postgres::start().await.unwrap();
    let url = server.create_database("registry").unwrap();
    registry::migrate(&url).await.unwrap();
    let impatient = Options {
        acquire_timeout: Duration::from_millis(1500),
        ..options(&url)
    };
    let reader = Reader::open(&impatient).await.unwrap();
    let (a, b, c) = (request(), request(), request());
    // Fill the pool.
    let (a, b, c) = tokio::join!(
        reader.facts(&a, soon()),
        reader.facts(&b, soon()),
        reader.facts(&c, soon())
    );
    assert!(a.is_ok() && b.is_ok() && c.is_ok());

    server.stop().unwrap();
    assert!(reader.facts(&request(), soon()).await.is_err());
    assert!(!reader.is_ready(soon()).await);

    server.start_again().await.unwrap();
    assert!(reader.facts(&request(), soon()).await.is_ok());
    assert!(reader.is_ready(soon()).await);
}

#[tokio::test]
async fn a_database_that_hangs_is_given_up_on_and_is_used_again_when_it_is_back() {
    let mut server = Postgres::start().await.unwrap();
    let url = server.create_database("registry").unwrap();
    registry::migrate(&url).await.unwrap();
    let impatient = Options {
        acquire_timeout: Duration::from_millis(1500),
        query_timeout: Duration::from_millis(1500),
        ..options(&url)
    };
    let reader = Reader::open(&impatient).await.unwrap();
    assert!(reader.facts(&request(), soon()).await.is_ok());
    server.pause().unwrap();
    for _ in 0..4 {
        assert!(matches!(
            reader.facts(&request(), soon()).await,
            Err(LookupError::TimedOut)
        ));
    }
    server.resume().unwrap();
    assert!(reader.facts(&request(), soon()).await.is_ok());
}

#[tokio::test]
async fn a_locked_table_is_no_answer() {
    let database = migrated().await;
    let impatient = Options {
        query_timeout: Duration::from_millis(1500),
        ..options(&database.url())
    };
    let reader = Reader::open(&impatient).await.unwrap();
    Principal::registered(&database, &[])
        .unwrap()
        .grant(&database, &grant())
        .unwrap();
    let holder = {
        let database = database.url();
        std::thread::spawn(move || {
            std::process::Command::new("psql")
                .args([
                    &database,
                    "-qc",
                    "BEGIN; LOCK permission_registry; SELECT pg_sleep(60)",
                ])
                .output()
        })
    };
    // Both our time-out and the server's own (57014) are no answer, never an allow.
    let mut refused = false;
    for _ in 0..100 {
        if reader.facts(&request(), soon()).await.is_err() {
            refused = true;
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(refused);
    database
        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep(60)' AND pid <> pg_backend_pid()")
        .unwrap();
    holder.join().unwrap().unwrap();
    assert!(reader.facts(&request(), soon()).await.is_ok());
}

#[tokio::test]
async fn the_reader_cannot_write_even_where_its_role_could() {
    let database = migrated().await;
    let reader = reader(&database).await;
    assert_eq!(reader.can_write(soon()).await, Some(true));
    let login = "CREATE ROLE svc_reader LOGIN PASSWORD 'x' IN ROLE agent_gateway_reader";
    database.execute(login).unwrap();
    let url = database.url_as("svc_reader", "x").unwrap();
    let reader = Reader::open(&options(&url)).await.unwrap();
    assert_eq!(reader.can_write(soon()).await, Some(false));
    assert!(reader.facts(&request(), soon()).await.is_ok());
    database
        .execute("DROP OWNED BY svc_reader; DROP ROLE svc_reader")
        .unwrap();
}

#[tokio::test]
async fn an_unreachable_database_or_a_bad_url_is_told_apart_and_no_password_is_repeated() {
    let nobody = format!(
        "postgres://u:s3cret@127.0.0.1:{}/x",
        testbed::free_port().unwrap()
    );
    let error = Reader::open(&options(&nobody)).await.unwrap_err();
    assert!(matches!(error, OpenError::Unreachable(_)), "{error:?}");
    let bad = Reader::open(&options("postgres://u:s3cret@[bad/x"))
        .await
        .unwrap_err();
    assert!(matches!(bad, OpenError::BadUrl), "{bad:?}");
    for error in [error, bad] {
        assert!(!format!("{error} {error:?}").contains("s3cret"));
    }
}

#[test]
fn a_reader_may_outlive_its_runtime() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (reader, database) = runtime.block_on(async {
        let database = migrated().await;
        let reader = reader(&database).await;
        reader.facts(&request(), soon()).await.unwrap();
        (reader, database)
    });
    drop(runtime);
    drop(reader);
    drop(database);
}
