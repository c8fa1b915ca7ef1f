//! A key at a persistent handle of a TPM.

mod connection;
mod failure;
mod keeper;
mod template;

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use p256::PublicKey;
use p256::ecdsa::{DerSignature, Signature};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use sha2::{Digest, Sha256};

use self::connection::Connection;
pub use self::failure::TssFailure;
use self::keeper::{Keeper, Request};
pub use self::template::Unfit;
use crate::signing_key::{Found, SignError, SigningKey};
use crate::{Location, Pin, Pins, Tcti};

/// How many signatures may wait. Even a quick TPM makes fewer in [`TpmKey::SIGN_TIMEOUT`] than
/// this, and a real one far fewer.
const QUEUE: usize = 256;

/// A P-256 key that was made in a TPM and can't leave it.
///
/// A thread of its own talks with the TPM. When the TPM was away (swtpm restarted, the resource
/// manager too), the next signature connects again, and is made only if the same key is still at
/// the handle.
#[derive(Debug)]
pub struct TpmKey {
    location: Location,
    public_key: PublicKey,
    wants_pin: bool,
    thread: TpmThread,
    sign_timeout: Duration,
}

/// What to do about an empty handle.
enum Empty {
    Leave,
    Create(Pins),
}

/// What opening finds out.
struct Opened {
    public_key: PublicKey,
    wants_pin: bool,
}

/// How long to wait for the TPM.
#[derive(Clone, Copy)]
struct Timeouts {
    open: Duration,
    sign: Duration,
}

impl TpmKey {
    /// How long [`SigningKey::sign`] waits at most, the queue included. A real TPM takes 100 to
    /// 600 ms a signature.
    pub const SIGN_TIMEOUT: Duration = Duration::from_secs(5);

    /// How long [`TpmKey::open`] and [`TpmKey::open_or_create`] wait at most. A real TPM may take
    /// seconds to make a key.
    pub const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

    const TIMEOUTS: Timeouts = Timeouts {
        open: TpmKey::OPEN_TIMEOUT,
        sign: TpmKey::SIGN_TIMEOUT,
    };

    /// Opens the key at `location`; `None` if the handle is empty. Blocks the thread.
    ///
    /// A key that [wants a PIN](TpmKey::wants_pin) signs only once it is
    /// [unlocked](TpmKey::unlock).
    pub fn open(location: &Location) -> Result<Option<TpmKey>, TpmError> {
        TpmKey::start(location, Empty::Leave, TpmKey::TIMEOUTS)
    }

    /// Opens the key at `location`, and makes one if the handle is empty. Blocks the thread.
    ///
    /// A key that was there already is taken to have the user's PIN of `pins`, if it wants one.
    ///
    /// After [`TpmError::TimedOut`] the key may yet be made, when the TPM comes round; the next
    /// call finds it.
    pub fn open_or_create(location: &Location, pins: &Pins) -> Result<TpmKey, TpmError> {
        TpmKey::create_within(location, pins, TpmKey::TIMEOUTS)
    }

    fn create_within(
        location: &Location,
        pins: &Pins,
        timeouts: Timeouts,
    ) -> Result<TpmKey, TpmError> {
        let created = TpmKey::start(location, Empty::Create(pins.clone()), timeouts)?;
        created.ok_or_else(|| TpmError::Vanished {
            location: location.clone(),
        })
    }

    /// Whether the key has a PIN, as far as a TPM tells: whether it counts wrong ones. What is so
    /// protected but has none, as some other programs make keys, has the empty PIN.
    pub fn wants_pin(&self) -> bool {
        self.wants_pin
    }

    /// Gives the PIN, if the key wants one, and makes sure that it is the right one. A wrong one
    /// is not tried again, whatever is to be signed; unlock again with the right one. Blocks the
    /// thread.
    pub fn unlock(&self, pin: Option<&Pin>) -> Result<(), SignError> {
        if !self.wants_pin {
            return Ok(());
        }
        let pin = pin.ok_or_else(|| SignError::PinMissing {
            location: self.location.clone(),
        })?;
        self.sign_with(b"agent-gateway-pin-v1\n", Some(pin.clone()))
            .map(drop)
    }

    fn start(
        location: &Location,
        empty: Empty,
        timeouts: Timeouts,
    ) -> Result<Option<TpmKey>, TpmError> {
        let (opened, opening) = mpsc::sync_channel(1);
        let (requests, waiting) = mpsc::sync_channel(QUEUE);
        let place = location.clone();
        let (alive, ended) = mpsc::sync_channel::<()>(0);
        let handle = thread::Builder::new()
            .name("tpm".to_owned())
            .spawn(move || {
                run(place, empty, &opened, &waiting);
                drop(alive);
            })
            .map_err(TpmError::Thread)?;
        let thread = TpmThread {
            requests: Some(requests),
            ended: Mutex::new(ended),
            handle: Some(handle),
        };
        let opened = match opening.recv_timeout(timeouts.open) {
            Ok(outcome) => outcome?,
            Err(RecvTimeoutError::Timeout) => {
                let tcti = location.tcti.clone();
                return Err(TpmError::TimedOut {
                    tcti,
                    limit: timeouts.open,
                });
            }
            Err(RecvTimeoutError::Disconnected) => return Err(TpmError::ThreadEnded),
        };
        Ok(opened.map(|opened| TpmKey {
            location: location.clone(),
            public_key: opened.public_key,
            wants_pin: opened.wants_pin,
            thread,
            sign_timeout: timeouts.sign,
        }))
    }

    /// Takes the key at `location` out of the TPM, for ever, if it is this one; whatever else may be
    /// there stays. Takes the owner's PIN, if there is one. Blocks the thread.
    pub fn remove(
        location: &Location,
        public_key: &PublicKey,
        owner: Option<&Pin>,
    ) -> Result<(), TpmError> {
        let (public_key, owner) = (*public_key, owner.cloned());
        let (done, outcome) = mpsc::sync_channel(1);
        let place = location.clone();
        let removing = thread::Builder::new()
            .name("tpm".to_owned())
            .spawn(move || {
                // Fails only if the caller has given up.
                let _ = done.send(Connection::remove(&place, &public_key, owner.as_ref()));
            })
            .map_err(TpmError::Thread)?;
        match outcome.recv_timeout(TpmKey::OPEN_TIMEOUT) {
            Ok(outcome) => {
                // It panics only where a test makes it.
                let _ = removing.join();
                outcome
            }
            Err(RecvTimeoutError::Timeout) => Err(TpmError::TimedOut {
                tcti: location.tcti.clone(),
                limit: TpmKey::OPEN_TIMEOUT,
            }),
            Err(RecvTimeoutError::Disconnected) => Err(TpmError::ThreadEnded),
        }
    }

    /// Where the key is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    fn sign_with(&self, message: &[u8], pin: Option<Pin>) -> Result<DerSignature, SignError> {
        let signature = self.ask(Sha256::digest(message).into(), pin)?.to_der();
        // A TPM in front of which somebody swapped the key, or whose state was replaced, signs
        // without a murmur: swtpm's connection lasts for one command, so it isn't seen to break.
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, self.public_key.to_sec1_bytes())
            .verify(message, signature.as_bytes())
            .map_err(|_| SignError::KeyChanged {
                location: self.location.clone(),
                found: Found::AnotherKey,
            })?;
        Ok(signature)
    }

    fn ask(&self, digest: [u8; 32], pin: Option<Pin>) -> Result<Signature, SignError> {
        let deadline = Instant::now() + self.sign_timeout;
        let (reply, answer) = mpsc::sync_channel(1);
        let location = || self.location.clone();
        let Some(requests) = &self.thread.requests else {
            return Err(SignError::Unavailable(TpmError::ThreadEnded));
        };
        requests
            .try_send(Request {
                digest,
                pin,
                deadline,
                reply,
            })
            .map_err(|error| match error {
                TrySendError::Full(_) => SignError::Busy {
                    location: location(),
                },
                TrySendError::Disconnected(_) => SignError::Unavailable(TpmError::ThreadEnded),
            })?;
        match answer.recv_timeout(self.sign_timeout) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err(SignError::TimedOut {
                location: location(),
                limit: self.sign_timeout,
            }),
            // The keeper drops a request only once its time is over, or when it ends itself.
            Err(RecvTimeoutError::Disconnected) if Instant::now() >= deadline => {
                Err(SignError::TimedOut {
                    location: location(),
                    limit: self.sign_timeout,
                })
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(SignError::Unavailable(TpmError::ThreadEnded))
            }
        }
    }
}

/// The thread that owns the TPM, for as long as this lives.
#[derive(Debug)]
struct TpmThread {
    requests: Option<SyncSender<Request>>,
    /// Disconnected when the thread has let go of the TPM.
    ended: Mutex<Receiver<()>>,
    handle: Option<JoinHandle<()>>,
}

/// How long a program that is done with its key waits for the thread to let go of the TPM.
const LET_GO: Duration = Duration::from_secs(1);

/// Waits: a program that ends while the C library is being called would pull it from under the
/// thread. Not for ever: a TPM that hangs must not keep anybody from ending.
impl Drop for TpmThread {
    fn drop(&mut self) {
        self.requests = None;
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let (Err(RecvTimeoutError::Disconnected), Some(handle)) =
            (ended.recv_timeout(LET_GO), self.handle.take())
        {
            // It panics only where a test makes it.
            let _ = handle.join();
        }
    }
}

impl SigningKey for TpmKey {
    fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    fn sign(&self, message: &[u8]) -> Result<DerSignature, SignError> {
        self.sign_with(message, None)
    }
}

/// The life of the thread: open, report, serve.
fn run(
    location: Location,
    empty: Empty,
    opened: &SyncSender<Result<Option<Opened>, TpmError>>,
    requests: &Receiver<Request>,
) {
    let (outcome, pin) = match empty {
        Empty::Leave => (Connection::open(&location), None),
        Empty::Create(pins) => (Connection::open_or_create(&location, &pins), pins.user),
    };
    // A report fails only if the caller has given up, and then there are no requests either.
    match outcome {
        Ok(Some(connection)) => {
            let _ = opened.send(Ok(Some(Opened {
                public_key: connection.public_key(),
                wants_pin: connection.wants_pin(),
            })));
            Keeper::new(location, connection, pin).serve(requests);
        }
        Ok(None) => {
            let _ = opened.send(Ok(None));
        }
        Err(error) => {
            let _ = opened.send(Err(error));
        }
    }
}

/// Why a key in a TPM can't be had.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// Nothing answers there, or not as a TPM does.
    #[error("cannot reach the TPM {tcti}: {failure}")]
    Unreachable {
        /// Which TPM.
        tcti: Tcti,
        /// What the TSS says.
        failure: TssFailure,
    },
    /// It took the request and kept silent.
    #[error("the TPM {tcti} gave no answer within {limit:?}")]
    TimedOut {
        /// Which TPM.
        tcti: Tcti,
        /// How long was waited.
        limit: Duration,
    },
    /// Something else is at the handle; it is left alone.
    #[error("TPM handle {location} is taken: {unfit}")]
    HandleTaken {
        /// Which handle.
        location: Location,
        /// What is wrong with what is there.
        unfit: Unfit,
    },
    /// The TPM answered, and refused.
    #[error("the TPM refused to {step} ({location}): {failure}")]
    Refused {
        /// Which key.
        location: Location,
        /// What it was asked.
        step: &'static str,
        /// Its answer.
        failure: TssFailure,
    },
    /// The TPM's owner has a PIN, which it takes to make a key, and to remove one.
    #[error("{}, so the TPM makes and removes no key ({location})", owner_pin(*given))]
    OwnerPin {
        /// Where the key is, or was to go.
        location: Location,
        /// Whether one was given, which then is wrong.
        given: bool,
    },
    /// The TPM can keep no more keys.
    #[error("the TPM has no room for another key ({location})")]
    Full {
        /// Where the key was to go.
        location: Location,
    },
    /// A key was made, and was gone at once.
    #[error("the TPM key {location} vanished as soon as it was made")]
    Vanished {
        /// Which key.
        location: Location,
    },
    /// The operating system gives no thread.
    #[error("cannot start a thread for the TPM")]
    Thread(#[source] io::Error),
    /// The thread ended, which it shouldn't.
    #[error("the thread that talks with the TPM has ended; only a restart of this program helps")]
    ThreadEnded,
}

fn owner_pin(given: bool) -> &'static str {
    if given {
        "that is not its owner's PIN"
    } else {
        "its owner has a PIN, and none was given"
    }
}

#[cfg(test)]
mod tests;
