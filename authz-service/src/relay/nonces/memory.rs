//! Nonces in memory, for a service that runs alone.
//!
//! A restart forgets them: a call that was seen before it can be replayed after it, until its proof
//! expires. Only a memory that outlives the process closes that, so who minds uses the table; a
//! proof that lives briefly keeps the gap short.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use futures::future::{BoxFuture, FutureExt as _, ready};
use permission::Timestamp;
use poca::Proof;
use tokio::time::Instant;

use super::{Key, Nonces, Refusal, key};

/// What is forgotten together, in microseconds: what expires in the same second.
const BUCKET_MICROS: i64 = 1_000_000;

/// Nonces that this process has seen, at most so many.
#[derive(Debug)]
pub struct Memory {
    max: usize,
    /// Guards that each nonce is used once; held for a few hash look-ups.
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    used: HashSet<Key>,
    /// The same by when they expire, so that forgetting looks at nothing that stays.
    by_expiry: BTreeMap<i64, Vec<Key>>,
    /// Of what expires in this second or earlier, some was forgotten. It is no clock: where the
    /// machine's is set back, what was forgotten stays refused.
    forgotten: Option<i64>,
}

impl Memory {
    /// Room for `max` nonces.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            seen: Mutex::default(),
        }
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.used.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn take(&self, key: Key, expires_at: Timestamp, now: Timestamp) -> Result<(), Refusal> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.forget(now);
        let expiry = bucket(expires_at);
        if seen.forgotten.is_some_and(|forgotten| expiry <= forgotten) || seen.used.contains(&key) {
            return Err(Refusal::Used);
        }
        if seen.used.len() >= self.max {
            return Err(Refusal::Full);
        }
        seen.used.insert(key);
        seen.by_expiry.entry(expiry).or_default().push(key);
        Ok(())
    }
}

impl Seen {
    /// Forgets what had expired at `now`; each nonce costs this once.
    fn forget(&mut self, now: Timestamp) {
        while let Some(bucket_of_first) = self.by_expiry.first_entry()
            && *bucket_of_first.key() < bucket(now)
        {
            let (expiry, keys) = bucket_of_first.remove_entry();
            for key in keys {
                self.used.remove(&key);
            }
            self.forgotten = Some(expiry);
        }
    }
}

fn bucket(time: Timestamp) -> i64 {
    time.as_unix_micros().div_euclid(BUCKET_MICROS)
}

impl Nonces for Memory {
    fn use_up<'a>(
        &'a self,
        proof: &'a Proof,
        now: Timestamp,
        _: Instant,
    ) -> BoxFuture<'a, Result<(), Refusal>> {
        ready(self.take(key(proof), proof.expires_at(), now)).boxed()
    }
}
