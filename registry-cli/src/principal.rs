//! The principal's own key: in the TPM, or in a file for those who ask for it.

use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;

use permission::time::Position;
use permission::{Id, KeyError, PrincipalKey, Signer, Timestamp};
use tpm::{Location, Pins, SigningKey, SoftwareKey, SoftwareKeyError, TpmError, TpmKey};

use crate::cli::KeyArgs;
use crate::confirm::{ask_new_pin, ask_pin, is_askable};
use crate::environment;
use crate::failure::{Failure, PinFailure};

/// Where a principal's key is, or goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A handle of a TPM.
    Tpm(Location),
    /// A PKCS#8 PEM file.
    File(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tpm(location) => location.fmt(f),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl Place {
    /// The place that the options name.
    pub(crate) fn named(args: &KeyArgs) -> Result<Self, Failure> {
        if let Some(path) = &args.key_file {
            return Ok(Self::File(path.clone()));
        }
        let tcti = match &args.tcti {
            Some(tcti) => tcti.clone(),
            None => environment::tcti()?,
        };
        Ok(Self::Tpm(Location {
            tcti,
            handle: args.handle,
        }))
    }

    /// The key that is there, if there is one.
    pub(crate) fn open(&self) -> Result<Option<Key>, Failure> {
        match self {
            Self::Tpm(location) => Ok(TpmKey::open(location)?.map(Key::Tpm)),
            Self::File(path) => match SoftwareKey::load(path) {
                Ok(key) => Ok(Some(Key::File(key))),
                Err(SoftwareKeyError::Read { source, .. })
                    if source.kind() == ErrorKind::NotFound =>
                {
                    Ok(None)
                }
                Err(error) => Err(error.into()),
            },
        }
    }

    /// Makes a key where there is none.
    pub(crate) fn create(&self, pin: NewPin) -> Result<Key, Failure> {
        match self {
            Self::Tpm(location) => create(location, pin).map(Key::Tpm),
            Self::File(path) => Ok(Key::File(SoftwareKey::create(path)?)),
        }
    }
}

/// Whether a key that is made has a PIN.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NewPin {
    /// The environment's, or else none.
    IfSet,
    /// The environment's, or else one that the user is asked for.
    Wanted,
}

fn create(location: &Location, pin: NewPin) -> Result<TpmKey, Failure> {
    let user = match (environment::user_pin()?, pin) {
        (Some(pin), NewPin::Wanted) if pin.is_empty() => return Err(PinFailure::Missing.into()),
        (None, NewPin::Wanted) => Some(ask_new_pin(&location.to_string())?),
        (pin, NewPin::IfSet | NewPin::Wanted) => pin,
    };
    let owner = environment::owner_pin()?;
    let mut pins = Pins { user, owner };
    match TpmKey::open_or_create(location, &pins) {
        Err(TpmError::OwnerPin { given: false, .. }) if is_askable() => {
            pins.owner = ask_pin("PIN of the TPM's owner")?;
            Ok(TpmKey::open_or_create(location, &pins)?)
        }
        outcome => Ok(outcome?),
    }
}

/// A principal's own key.
#[derive(Debug)]
pub(crate) enum Key {
    Tpm(TpmKey),
    File(SoftwareKey),
}

impl Key {
    /// The public half, as registered.
    pub(crate) fn public(&self) -> Result<PrincipalKey, KeyError> {
        public_key(self.locked())
    }

    /// What signs. If the key has a PIN, it is the environment's, or else the user is asked.
    pub(crate) fn unlocked(&self) -> Result<&dyn SigningKey, Failure> {
        if let Self::Tpm(key) = self
            && key.wants_pin()
        {
            let pin = match environment::user_pin()? {
                Some(pin) => Some(pin),
                None => ask_pin(&format!("PIN of the key {}", key.location()))?,
            };
            key.unlock(pin.as_ref())?;
        }
        Ok(self.locked())
    }

    /// What signs, as it is: a key with a PIN must have been unlocked.
    pub(crate) fn locked(&self) -> &dyn SigningKey {
        match self {
            Self::Tpm(key) => key,
            Self::File(key) => key,
        }
    }
}

/// The public half of what signs, as registered.
pub(crate) fn public_key(key: &dyn SigningKey) -> Result<PrincipalKey, KeyError> {
    PrincipalKey::from_p256(key.public_key())
}

/// Makes sure that a registered key's signatures count now.
pub(crate) fn must_be_active(key_id: &Id, signer: &Signer, now: Timestamp) -> Result<(), Failure> {
    let window = signer.window;
    let state = match window.position(now) {
        _ if signer.revoked => "was revoked".to_owned(),
        Position::Before => format!("becomes valid only at {}", window.not_before()),
        Position::After => format!("ended at {}", window.not_after()),
        Position::Within => return Ok(()),
    };
    Err(Failure::KeyInactive {
        key_id: key_id.clone(),
        state,
    })
}
