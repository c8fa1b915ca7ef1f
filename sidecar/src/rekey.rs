//! Changing to another key without an end of what is open: `rotate` asks the running sidecar for it.

use std::sync::Arc;

use permission::Spki;
use tokio::sync::Mutex;
use tpm::{Pin, TpmKey};

use crate::credential::CurrentCredential;
use crate::gateway::Gateway;
use crate::run::{RunError, load, open_credential};
use crate::state::{State, StateDir};

/// Where a running sidecar takes the order, from those who know its token.
pub(crate) const PATH: &str = "/rekey";

/// Brings the key that is in use in line with the state.
#[derive(Debug)]
pub struct Rekey {
    dir: StateDir,
    /// Of the key with which the sidecar began; the next one is expected to have the same.
    pin: Option<Pin>,
    credential: CurrentCredential,
    gateway: Arc<Gateway>,
    /// The key in use. Held while it changes: one order at a time talks with the TPM.
    current: Mutex<Spki>,
}

impl Rekey {
    /// For a sidecar that began with `state`.
    pub(crate) fn new(
        dir: StateDir,
        state: &State,
        pin: Option<Pin>,
        credential: CurrentCredential,
        gateway: Arc<Gateway>,
    ) -> Self {
        Self {
            dir,
            pin,
            credential,
            gateway,
            current: Mutex::new(state.leaf.spki.clone()),
        }
    }

    /// The key in use.
    pub(crate) async fn current(&self) -> Spki {
        self.current.lock().await.clone()
    }

    /// Uses the state's key from now on, for new connections; the key in use after that.
    pub(crate) async fn run(&self) -> Result<Spki, RunError> {
        let mut current = self.current.lock().await;
        let state = tokio::task::block_in_place(|| load(&self.dir))?;
        if state.leaf.spki == *current {
            return Ok(current.clone());
        }
        let unlock = |key: &TpmKey| Ok(key.unlock(self.pin.as_ref())?);
        let (credential, ()) = open_credential(&state, unlock)?;
        self.credential.replace(credential);
        self.gateway.renew();
        *current = state.leaf.spki;
        tracing::info!(spki = current.to_hex(), location = %state.location, "uses another key");
        Ok(current.clone())
    }
}
