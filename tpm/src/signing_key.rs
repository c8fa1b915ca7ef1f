//! What a signing key is, whichever kind it is.

use std::time::Duration;

use p256::PublicKey;
use p256::ecdsa::DerSignature;

use crate::Location;
use crate::tpm_key::{TpmError, TssFailure};

/// A P-256 key that signs, and whose private part can't be had from it.
///
/// Guarantees of every implementation:
/// - A signature that is returned verifies with [`SigningKey::public_key`], which never changes.
/// - [`SigningKey::sign`] ends within a bounded time and doesn't panic. It blocks the thread: an
///   async caller uses `spawn_blocking` or `block_in_place`.
/// - It may be called from many threads at once.
/// - Neither `Debug` nor an error shows anything secret.
///
/// Signatures aren't unique (half of a TPM's have the high S): never use their bytes as an id.
pub trait SigningKey: Send + Sync + std::fmt::Debug {
    /// The public half.
    fn public_key(&self) -> &PublicKey;

    /// ECDSA over SHA-256 of `message`, as DER (RFC 3279, section 2.2.3).
    fn sign(&self, message: &[u8]) -> Result<DerSignature, SignError>;
}

/// Why there is no signature.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The TPM didn't answer in time; a later attempt may succeed.
    #[error("the TPM key {location} gave no signature within {limit:?}")]
    TimedOut {
        /// Which key.
        location: Location,
        /// How long was waited.
        limit: Duration,
    },
    /// As many requests as may wait are waiting; a later attempt may succeed.
    #[error("too many signatures are waiting for the TPM key {location}")]
    Busy {
        /// Which key.
        location: Location,
    },
    /// The TPM can't be reached; a later attempt may succeed.
    #[error("{0}")]
    Unavailable(TpmError),
    /// What is at the handle now isn't the key that was opened.
    #[error("the TPM key {location} isn't the key that was opened: {found}")]
    KeyChanged {
        /// Which key.
        location: Location,
        /// What is there.
        found: Found,
    },
    /// The key has a PIN, and none was given.
    #[error("the TPM key {location} has a PIN, and none was given")]
    PinMissing {
        /// Which key.
        location: Location,
    },
    /// The key has another PIN. Each attempt brings the TPM closer to locking such keys, so no
    /// further one is made.
    #[error("wrong PIN for the TPM key {location}; {}", attempts(*left))]
    WrongPin {
        /// Which key.
        location: Location,
        /// How many more wrong PINs the TPM takes, if it tells.
        left: Option<u32>,
    },
    /// The TPM takes no PIN for now, right or wrong: it was given too many wrong ones.
    #[error("the TPM key {location} is locked after too many wrong PINs{}", recovery(*recovers))]
    LockedOut {
        /// Which key.
        location: Location,
        /// How long until the TPM takes another attempt, if it tells.
        recovers: Option<Duration>,
    },
    /// The TPM answered, and refused.
    #[error("the TPM key {location} refused to sign: {failure}")]
    Refused {
        /// Which key.
        location: Location,
        /// The TPM's answer.
        failure: TssFailure,
    },
    /// The software key failed, which no message should make it do.
    #[error("the software key could not sign")]
    Software,
}

fn attempts(left: Option<u32>) -> String {
    match left {
        None => "after a few wrong ones the TPM locks".to_owned(),
        Some(0) => "the TPM is locked now".to_owned(),
        Some(1) => "one more wrong one, and the TPM locks".to_owned(),
        Some(left) => format!("the TPM locks after {left} more wrong ones"),
    }
}

fn recovery(recovers: Option<Duration>) -> String {
    recovers.map_or(String::new(), |time| {
        format!("; it takes one attempt every {} s", time.as_secs())
    })
}

/// What took the place of the key that was opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Found {
    /// The handle is empty.
    #[error("the handle is empty")]
    Nothing,
    /// There is another signing key.
    #[error("the handle holds another key")]
    AnotherKey,
    /// There is something that doesn't sign for us.
    #[error("{0}")]
    Unfit(crate::Unfit),
}
