//! The registry against real Postgres.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod feed;
mod lookup;
mod nonces;
mod outage;
mod poca;
mod schema;
mod server;
mod writer;

use std::time::Duration;

use permission::{Identity, Request, Spki, Timestamp};
use registry::{Batch, Feed, LookupError, Options, Reader};
use testbed::rows::{Grant, Principal};
use testbed::{Database, database};
use tokio::time::Instant;

fn options(url: &str) -> Options {
    Options {
        url: url.to_owned(),
        max_connections: 3,
        connect_timeout: Duration::from_secs(20),
        acquire_timeout: Duration::from_secs(20),
        query_timeout: Duration::from_secs(20),
        trust_roots: None,
    }
}

/// What a read of the feed finds.
async fn read(feed: &mut Feed) -> Result<Batch, LookupError> {
    let read = feed.read(soon(), now()).await?;
    Ok(read.batch)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

async fn migrated() -> Database {
    let database = database().await.unwrap();
    registry::migrate(&database.url()).await.unwrap();
    database
}

async fn reader(database: &Database) -> Reader {
    Reader::open(&options(&database.url())).await.unwrap()
}

/// An agent's key; any SPKI will do.
fn agent_spki() -> Vec<u8> {
    Principal::new("agent", 9).unwrap().spki()
}

fn request() -> Request {
    Request {
        identity: Identity::parse("agent-alpha").unwrap(),
        spki: Spki::from_der(&agent_spki()).unwrap(),
        destination: "docstore".parse().unwrap(),
    }
}

fn grant() -> Grant {
    Grant::new("agent-alpha", &agent_spki(), "docstore:443")
}

fn now() -> Timestamp {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    Timestamp::from_unix_micros(i64::try_from(now.as_micros()).unwrap()).unwrap()
}
