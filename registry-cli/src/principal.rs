//! The principal's own key: in the TPM, or in a file for those who ask for it.

use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;

use permission::time::Position;
use permission::{Id, KeyError, PrincipalKey, Signer, Timestamp};
use tpm::{Location, SigningKey, SoftwareKey, SoftwareKeyError, TpmKey};

use crate::cli::KeyArgs;
use crate::environment;
use crate::failure::Failure;

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
    pub(crate) fn open(&self) -> Result<Option<Box<dyn SigningKey>>, Failure> {
        match self {
            Self::Tpm(location) => Ok(TpmKey::open(location)?.map(boxed)),
            Self::File(path) => match SoftwareKey::load(path) {
                Ok(key) => Ok(Some(boxed(key))),
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
    pub(crate) fn create(&self) -> Result<Box<dyn SigningKey>, Failure> {
        match self {
            Self::Tpm(location) => Ok(boxed(TpmKey::open_or_create(location)?)),
            Self::File(path) => Ok(boxed(SoftwareKey::create(path)?)),
        }
    }
}

/// The public half, as registered.
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

fn boxed(key: impl SigningKey + 'static) -> Box<dyn SigningKey> {
    Box::new(key)
}
