//! Which nonces were used: a call whose proof was seen before is a replay.
//!
//! It is the last check of a proof, so that only whoever could sign for a caller can use up one of
//! its nonces. In memory for one replica, in Postgres for several.

mod memory;
mod table;

use std::fmt;

use futures::future::BoxFuture;
use permission::Timestamp;
use poca::Proof;
use registry::LookupError;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

pub use memory::Memory;
pub use table::Table;

/// Takes note of nonces.
///
/// Of all calls of [`Nonces::use_up`] with one caller and one nonce, one succeeds at most, however
/// many there are at once. That holds from then on until [`Proof::expires_at`], whatever the clocks
/// of those who ask do meanwhile. Nothing is forgotten earlier to make room: what can't be
/// remembered is refused.
///
/// [`Memory`] knows what this process has seen. [`Table`] knows what all replicas have, and what
/// was before a restart, as long as the database keeps what it confirmed.
pub trait Nonces: fmt::Debug + Send + Sync {
    /// Uses up the nonce of a proof that was checked at the time `now`; ends by `deadline`.
    fn use_up<'a>(
        &'a self,
        proof: &'a Proof,
        now: Timestamp,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), Refusal>>;
}

/// The nonce can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It was used before, or is so old that it may have been.
    #[error("the nonce was used before")]
    Used,
    /// As many as may be are remembered; no decision.
    #[error("as many nonces are remembered as may be")]
    Full,
    /// The table gave no answer; no decision.
    #[error("nonces: {0}")]
    Unavailable(#[from] LookupError),
}

/// What stands for a caller and its nonce.
type Key = [u8; 32];

fn key(proof: &Proof) -> Key {
    let caller = proof.caller().as_str();
    Sha256::new()
        // Its length first: no two pairs are the same bytes.
        .chain_update((caller.len() as u64).to_be_bytes())
        .chain_update(caller)
        .chain_update(proof.nonce())
        .finalize()
        .into()
}

#[cfg(test)]
mod tests;
