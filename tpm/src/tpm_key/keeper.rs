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
use crate::Location;
use crate::signing_key::{Found, SignError};

/// One signature to be made.
pub(super) struct Request {
    pub(super) digest: [u8; 32],
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
}

impl Keeper {
    pub(super) fn new(location: Location, connection: Connection) -> Keeper {
        Keeper {
            location,
            public_key: connection.public_key(),
            connection: Some(connection),
        }
    }

    /// Serves until the last [`super::TpmKey`] that could ask is gone.
    pub(super) fn serve(mut self, requests: &Receiver<Request>) {
        for request in requests {
            if Instant::now() < request.deadline {
                // Fails only if the caller has just given up.
                let _ = request.reply.send(self.sign(request.digest));
            }
        }
    }

    /// After any failure, looks whether the key is still there; after a lost connection, tries a
    /// second time. (Where the TPM itself refused, that would count a wrong password twice.)
    fn sign(&mut self, digest: [u8; 32]) -> Result<Signature, SignError> {
        if let Some(mut connection) = self.connection.take() {
            let failure = match connection.sign(digest) {
                Ok(signature) => {
                    self.connection = Some(connection);
                    return Ok(signature);
                }
                Err(failure) => failure,
            };
            drop(connection);
            tracing::warn!(tpm.location = %self.location, %failure, "connecting to the TPM again");
            if !failure.is_lost_connection() {
                self.connection = Some(self.reopen()?);
                return Err(self.refusal(failure));
            }
        }
        let mut connection = self.reopen()?;
        let signature = connection
            .sign(digest)
            .map_err(|failure| self.refusal(failure))?;
        self.connection = Some(connection);
        Ok(signature)
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

    fn refusal(&self, failure: TssFailure) -> SignError {
        let location = self.location.clone();
        if failure.is_lost_connection() {
            SignError::Unavailable(TpmError::Unreachable {
                tcti: location.tcti,
                failure,
            })
        } else {
            SignError::Refused { location, failure }
        }
    }
}
