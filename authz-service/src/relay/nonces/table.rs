//! Nonces in Postgres, for any number of replicas.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use permission::Timestamp;
use poca::Proof;
use registry::{LookupError, NonceTable};
use tokio::time::{Instant, sleep};

use super::{Nonces, Refusal, key};

/// How often what has expired is forgotten, and what is left is counted.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(10);
/// Longest either of them may take.
const UPKEEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Nonces that any replica has seen: about so many at most, for each replica counts from time to
/// time.
#[derive(Debug)]
pub struct Table {
    rows: NonceTable,
    max: usize,
    /// What the last count said.
    full: AtomicBool,
}

impl Table {
    /// Room for about `max` nonces; full only once [`Table::keep`] has found it so.
    pub fn new(rows: NonceTable, max: usize) -> Self {
        Self {
            rows,
            max,
            full: AtomicBool::new(false),
        }
    }

    /// Forgets what has expired, and counts, for ever.
    pub async fn keep(&self) {
        let mut failing = false;
        loop {
            match self.upkeep().await {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    tracing::warn!(%error, "old nonces can't be pruned");
                    failing = true;
                }
                Err(_) => {}
            }
            sleep(UPKEEP_INTERVAL).await;
        }
    }

    /// One round of [`Table::keep`].
    pub async fn upkeep(&self) -> Result<(), LookupError> {
        let deadline = || Instant::now() + UPKEEP_TIMEOUT;
        while self.rows.prune(deadline()).await? {}
        let max = u64::try_from(self.max).unwrap_or(u64::MAX);
        let full = self.rows.count(max, deadline()).await? >= max;
        if full && !self.full.swap(full, Ordering::Relaxed) {
            tracing::error!(
                max,
                "as many nonces are remembered as may be: calls are refused"
            );
        }
        self.full.store(full, Ordering::Relaxed);
        Ok(())
    }
}

impl Nonces for Table {
    /// The database's clock decides what has expired, whatever `now` is.
    fn use_up<'a>(
        &'a self,
        proof: &'a Proof,
        _: Timestamp,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), Refusal>> {
        async move {
            if self.full.load(Ordering::Relaxed) {
                return Err(Refusal::Full);
            }
            let key = key(proof);
            let inserted = self.rows.insert(&key, proof.expires_at(), deadline);
            if inserted.await? {
                Ok(())
            } else {
                Err(Refusal::Used)
            }
        }
        .boxed()
    }
}
