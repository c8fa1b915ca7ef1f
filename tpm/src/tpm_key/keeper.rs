//! The thread that owns the connection to the TPM.
//!
//! The TSS blocks for as long as the TPM (or whoever stands in for it) keeps silent, and nothing
//! can interrupt it. So callers leave a request in a bounded queue and wait for the answer only
//! as long as they like; one that has given up is passed over.

use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Instant;

use p256::PublicKey;
use p256::ecdsa::Signature;

use super::connection::Connection;
use super::{TpmError, TssFailure};
use crate::signing_key::{Found, SignError};
use crate::{Location, Pin};

/// One signature to be made.
pub(super) struct Request {
    pub(super) digest: [u8; 32],
    /// The PIN to use from now on.
    pub(super) pin: Option<Pin>,
    /// When the caller stops waiting.
    pub(super) deadline: Instant,
    pub(super) reply: SyncSender<Result<Signature, SignError>>,
}

/// The only owner of the connection.
pub(super) struct Keeper {
    location: Location,
    public_key: PublicKey,
    /// None after it was lost; the next request opens it again.
    connection: Option<Connection>,
    pin: KnownPin,
}

/// What goes with each signature.
enum KnownPin {
    /// The key has none.
    None,
    /// Nobody has said it.
    Missing,
    Given(Pin),
    /// It was wrong, when so many attempts were left. It is not tried again: who signs often,
    /// without looking, would lock the TPM at once.
    Refused(Option<u32>),
}

impl Keeper {
    pub(super) fn new(location: Location, connection: Connection, pin: Option<Pin>) -> Keeper {
        Keeper {
            location,
            public_key: connection.public_key(),
            pin: match pin {
                _ if !connection.wants_pin() => KnownPin::None,
                None => KnownPin::Missing,
                Some(pin) => KnownPin::Given(pin),
            },
            connection: Some(connection),
        }
    }

    /// Serves until the last [`super::TpmKey`] that could ask is gone.
    pub(super) fn serve(mut self, requests: &Receiver<Request>) {
        for request in requests {
            if Instant::now() < request.deadline {
                // Fails only if the caller has just given up.
                if let Some(pin) = request.pin {
                    self.pin = KnownPin::Given(pin);
                }
                let _ = request.reply.send(self.sign(request.digest));
            }
        }
    }

    /// After any failure, looks whether the key is still there; after a lost connection, tries a
    /// second time. (Where the TPM itself refused, that would count a wrong password twice.)
    fn sign(&mut self, digest: [u8; 32]) -> Result<Signature, SignError> {
        let location = || self.location.clone();
        match self.pin {
            KnownPin::None | KnownPin::Given(_) => {}
            KnownPin::Missing => {
                let location = location();
                return Err(SignError::PinMissing { location });
            }
            KnownPin::Refused(left) => {
                let location = location();
                return Err(SignError::WrongPin { location, left });
            }
        }
        if let Some(mut connection) = self.connection.take() {
            let failure = match self.sign_by(&mut connection, digest) {
                Ok(signature) => {
                    self.connection = Some(connection);
                    return Ok(signature);
                }
                Err(failure) => failure,
            };
            drop(connection);
            tracing::warn!(tpm.location = %self.location, %failure, "connecting to the TPM again");
            if !failure.is_lost_connection() {
                let mut connection = self.reopen()?;
                let refusal = self.refusal(failure, &mut connection);
                self.connection = Some(connection);
                return Err(refusal);
            }
        }
        let mut connection = self.reopen()?;
        match self.sign_by(&mut connection, digest) {
            Ok(signature) => {
                self.connection = Some(connection);
                Ok(signature)
            }
            Err(failure) => Err(self.refusal(failure, &mut connection)),
        }
    }

    fn sign_by(
        &self,
        connection: &mut Connection,
        digest: [u8; 32],
    ) -> Result<Signature, TssFailure> {
        if let KnownPin::Given(pin) = &self.pin {
            connection.set_pin(pin)?;
        }
        connection.sign(digest)
    }

    /// Connects again, and makes sure that it is still the same key.
    fn reopen(&self) -> Result<Connection, SignError> {
        let changed = |found| {
            Err(SignError::KeyChanged {
                location: self.location.clone(),
                found,
            })
        };
        match Connection::open(&self.location) {
            Ok(Some(connection)) if connection.public_key() == self.public_key => Ok(connection),
            Ok(Some(_)) => changed(Found::AnotherKey),
            Ok(None) => changed(Found::Nothing),
            Err(TpmError::HandleTaken { unfit, .. }) => changed(Found::Unfit(unfit)),
            Err(error) => Err(SignError::Unavailable(error)),
        }
    }

    fn refusal(&mut self, failure: TssFailure, connection: &mut Connection) -> SignError {
        let location = self.location.clone();
        if matches!(self.pin, KnownPin::Given(_)) && failure.is_wrong_pin() {
            let left = connection.attempts_left();
            self.pin = KnownPin::Refused(left);
            SignError::WrongPin { location, left }
        } else if failure.is_lockout() {
            let recovers = connection.recovers();
            SignError::LockedOut { location, recovers }
        } else if failure.is_lost_connection() {
            SignError::Unavailable(TpmError::Unreachable {
                tcti: location.tcti,
                failure,
            })
        } else {
            SignError::Refused { location, failure }
        }
    }
}
