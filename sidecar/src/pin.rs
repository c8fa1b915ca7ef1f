//! PINs: that of the agent's key, and that of the TPM's owner, who makes and removes keys.
//!
//! They come from the environment, or from a user at the terminal; never from an argument, which
//! other users can see.

use std::env::{self, VarError};

use tpm::{Location, Pin, Pins, SignError, SigningKey as _, TpmError, TpmKey};
use zeroize::Zeroizing;

use crate::prompt::{PromptError, is_askable, secret};

const USER_PIN: &str = "AGENT_GATEWAY_TPM_USER_PIN";
const OWNER_PIN: &str = "AGENT_GATEWAY_TPM_SO_PIN";

/// Why there is no key that signs.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// A variable holds no text.
    #[error("{0} is not UTF-8")]
    NotText(&'static str),
    /// A variable holds no PIN.
    #[error("{variable}: {source}")]
    Variable {
        /// Which.
        variable: &'static str,
        /// What is wrong.
        source: tpm::PinError,
    },
    /// What the user typed is no PIN.
    #[error(transparent)]
    Typed(tpm::PinError),
    /// The user didn't type the same again, or nothing.
    #[error("that is not the same PIN twice")]
    Differ,
    /// There should be one.
    #[error("the key is to have a PIN, and none was given")]
    NoneGiven,
    /// There is no answer.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The TPM gives no key.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// It isn't the key's PIN.
    #[error(transparent)]
    Key(#[from] SignError),
}

/// Whether a key that is made has a PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NewPin {
    /// The environment's, or else none.
    IfSet,
    /// The environment's, or else one that the user is asked for.
    Wanted,
}

/// Lets the key sign; with the PIN that it took, if it wants one.
pub(crate) fn unlock(key: &TpmKey) -> Result<Option<Pin>, PinError> {
    if !key.wants_pin() {
        return Ok(None);
    }
    let pin = match read(USER_PIN)? {
        None if is_askable() => Some(ask(&format!("PIN of the key {}", key.location()))?),
        pin => pin,
    };
    key.unlock(pin.as_ref())?;
    Ok(pin)
}

/// Opens the key at `location`, and makes one if there is none. It signs.
pub(crate) fn open_or_create(location: &Location, new: NewPin) -> Result<TpmKey, PinError> {
    let user = match (read(USER_PIN)?, new) {
        (Some(pin), NewPin::Wanted) if pin.is_empty() => return Err(PinError::NoneGiven),
        (None, NewPin::Wanted) => Some(ask_new(location)?),
        (pin, NewPin::IfSet | NewPin::Wanted) => pin,
    };
    with_owner(|owner| {
        let pins = Pins {
            user: user.clone(),
            owner,
        };
        TpmKey::open_or_create(location, &pins)
    })
}

/// Takes the key out of the TPM.
pub(crate) fn remove(key: TpmKey) -> Result<(), PinError> {
    let (location, public_key) = (key.location().clone(), *key.public_key());
    // Some TPMs serve one connection at a time.
    drop(key);
    with_owner(|owner| TpmKey::remove(&location, &public_key, owner.as_ref()))
}

/// What it takes the owner for, whose PIN is asked for only if there turns out to be one.
fn with_owner<T>(act: impl Fn(Option<Pin>) -> Result<T, TpmError>) -> Result<T, PinError> {
    match act(read(OWNER_PIN)?) {
        Err(TpmError::OwnerPin { given: false, .. }) if is_askable() => {
            Ok(act(Some(ask("PIN of the TPM's owner")?))?)
        }
        outcome => Ok(outcome?),
    }
}

/// A variable that is set to nothing counts: it is the PIN of keys that have none.
fn read(variable: &'static str) -> Result<Option<Pin>, PinError> {
    let text = match env::var(variable) {
        Ok(text) => Zeroizing::new(text),
        Err(VarError::NotPresent) => return Ok(None),
        Err(VarError::NotUnicode(_)) => return Err(PinError::NotText(variable)),
    };
    let pin = text.parse().map(Some);
    pin.map_err(|source| PinError::Variable { variable, source })
}

fn ask(question: &str) -> Result<Pin, PinError> {
    secret(question)?.parse().map_err(PinError::Typed)
}

fn ask_new(location: &Location) -> Result<Pin, PinError> {
    if !is_askable() {
        return Err(PinError::NoneGiven);
    }
    let pin = ask(&format!("new PIN for the key {location}"))?;
    if !pin.is_empty() && ask("the same again")? == pin {
        Ok(pin)
    } else {
        Err(PinError::Differ)
    }
}
