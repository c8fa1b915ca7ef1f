//! Follows the registry's change feed, and tells [`Freshness`] what it finds.

use std::sync::Arc;
use std::time::Duration;

use registry::{Batch, Feed, Wakeups, Why};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use crate::check::now;
use crate::freshness::{BootTime, Freshness};

/// How the feed is read.
#[derive(Debug, Clone)]
pub struct FollowOptions {
    /// Read this often, whether or not anything woke us.
    pub poll_interval: Duration,
    /// Longest a read may take.
    pub read_timeout: Duration,
}

/// Wake-ups closer together than this share a read.
const READ_SPACING: Duration = Duration::from_millis(1);
/// How often what every reader has seen is forgotten.
const PRUNE_INTERVAL: Duration = Duration::from_mins(1);
/// How soon there is the next part of it: each takes a moment, and the feed isn't read meanwhile.
const PRUNE_PAUSE: Duration = Duration::from_secs(1);
/// How often a primary's standbys are sent a transaction.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How soon listening is tried again where it failed.
const LISTEN_RETRY: Duration = Duration::from_secs(5);

/// Reads the feed, for ever.
pub async fn follow(mut feed: Feed, freshness: Arc<Freshness>, options: FollowOptions) {
    let mut poll = interval(options.poll_interval);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut prune_at = Instant::now() + PRUNE_INTERVAL;
    let (mut failing, mut skipping, mut beat_at) = (false, false, Instant::now());
    loop {
        tokio::select! {
            _ = poll.tick() => {}
            () = freshness.wanted() => {}
        }
        let (began, started) = (BootTime::now(), Instant::now());
        match feed.read(started + options.read_timeout, now()).await {
            Ok(read) => {
                if failing {
                    tracing::info!("the registry's changes are followed again");
                }
                failing = false;
                report(&read.batch);
                freshness.note(feed.progress());
                freshness.apply(&read, began);
            }
            Err(error) => {
                if !failing {
                    tracing::error!(%error, "the registry's changes can't be followed");
                }
                failing = true;
            }
        }
        if Instant::now() >= beat_at {
            let beaten = feed.beat(Instant::now() + options.read_timeout).await;
            if let (Err(error), false) = (&beaten, skipping) {
                tracing::warn!(%error, "the registry's standbys can't be sent a heartbeat");
            }
            skipping = beaten.is_err();
            beat_at = Instant::now() + HEARTBEAT;
        }
        if Instant::now() >= prune_at {
            let pruned = feed.prune(Instant::now() + options.read_timeout).await;
            if let Err(error) = &pruned {
                tracing::warn!(%error, "old changes can't be pruned");
            }
            let pause = if matches!(pruned, Ok(true)) {
                PRUNE_PAUSE
            } else {
                PRUNE_INTERVAL
            };
            prune_at = Instant::now() + pause;
        }
        sleep_until(started + READ_SPACING).await;
    }
}

fn report(batch: &Batch) {
    match batch {
        Batch::Changes(_) | Batch::Everything(Why::First) => {}
        Batch::Everything(why) => tracing::warn!(%why, "all cached permissions are dropped"),
    }
}

/// Wakes the reader when Postgres notifies, for ever. Only a hint: where it can't be had
/// (poolers, some other engines), or is lost, the poll finds the changes.
pub async fn listen(url: String, freshness: Arc<Freshness>) {
    let mut warned = false;
    loop {
        match timeout(LISTEN_RETRY, Wakeups::listen(&url)).await {
            Ok(Ok(mut wakeups)) => {
                warned = false;
                while wakeups.next().await.is_ok() {
                    freshness.want();
                }
            }
            Ok(Err(error)) if !warned => {
                tracing::warn!(%error, "can't LISTEN to the registry; changes are polled for");
                warned = true;
            }
            Ok(Err(_)) | Err(_) => {}
        }
        sleep(LISTEN_RETRY).await;
    }
}
