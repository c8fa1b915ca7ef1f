//! Whose word counts for keys and scopes: as options or the environment say, never the registry.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use permission::{Id, KeyError, RootKey, Signer, TrustRoots};

use crate::arguments::id;
use crate::cli::TrustArgs;
use crate::environment;
use crate::failure::{Failure, RootFailure};

/// Far more than a public key takes.
const MAX_BYTES: u64 = 16 * 1024;

/// What is trusted, and in which registry.
#[derive(Debug, Default)]
pub(crate) struct Trust {
    /// The registry that is meant.
    pub(crate) registry_id: Option<Id>,
    /// Its roots; without any, rows count as they are.
    pub(crate) roots: Option<TrustRoots>,
    /// Roots of which nobody says in which registry; only `root show` has a use for them.
    pub(crate) unplaced: Vec<RootKey>,
}

/// Why there is no root's public key.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file is not there, or not ours to read.
    #[error("can't be read")]
    Read(#[from] io::Error),
    /// Another kind of key, or none.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl Trust {
    /// Options win over the environment.
    pub(crate) fn read(args: &TrustArgs) -> Result<Self, Failure> {
        let registry_id = match &args.registry_id {
            Some(text) => Some(text.clone()),
            None => environment::registry_id()?,
        };
        let registry_id = registry_id
            .map(|text| id("registry id", &text))
            .transpose()?;
        let texts = if args.trust_roots.is_empty() {
            environment::trust_roots()?
        } else {
            args.trust_roots.clone()
        };
        let key = |text: &String| {
            root_key(text).map_err(|source| RootFailure::TrustRoot {
                text: text.clone(),
                source,
            })
        };
        let keys = texts.iter().map(key).collect::<Result<Vec<_>, _>>()?;
        Ok(match &registry_id {
            Some(id) if !keys.is_empty() => Self {
                roots: Some(TrustRoots::new(id.clone(), keys).map_err(RootFailure::from)?),
                unplaced: Vec::new(),
                registry_id,
            },
            _ => Self {
                registry_id,
                roots: None,
                unplaced: keys,
            },
        })
    }

    /// The registry that a root signs for: it must be said by whoever signs, or somebody who can
    /// write one registry could have rows signed for another.
    pub(crate) fn signs_for(&self) -> Result<&Id, Failure> {
        Ok(self.registry_id.as_ref().ok_or(RootFailure::NoRegistryId)?)
    }
}

fn root_key(text: &str) -> Result<RootKey, TrustError> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(RootKey::parse(text.as_bytes())?);
    }
    let mut bytes = Vec::new();
    File::open(Path::new(text))?
        .take(MAX_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(RootKey::parse(&bytes)?)
}

/// Makes sure that a root vouches for a registered key, where that is asked for.
pub(crate) fn must_be_trusted(
    key_id: &Id,
    signer: &Signer,
    roots: Option<&TrustRoots>,
) -> Result<(), Failure> {
    if signer.is_trusted(key_id, roots) {
        Ok(())
    } else {
        Err(RootFailure::KeyUntrusted(key_id.clone()).into())
    }
}
