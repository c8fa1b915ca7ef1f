//! Proofs of context (`PoCA`): the agent's key for them, and `poca keygen` and `poca sign`.
//!
//! That key is no TPM key, for few TPMs know Ed25519: it is a file for its owner alone. It says
//! what an agent means to do; who calls is proved by the TPM's key, whoever has this one.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use permission::{Identity, Timestamp};
use poca::{Manifest, ManifestError, SecretKey, SecretKeyError, SignedHeaders};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::cli::{KeyArgs, KeygenArgs, SignArgs};
use crate::failure::Failure;
use crate::output;
use crate::state::{StateDir, StateError};

/// Largest key file, in bytes.
const MAX_FILE_BYTES: u64 = 16 * 1024;
/// The key's name in the state folder.
const FILE: &str = "poca.key";

/// Why there is no key, or no proof.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// Neither a file nor a folder with one was named.
    #[error("no key is named")]
    NoKeyNamed,
    /// The state folder can't be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The key file can't be read.
    #[error("can't read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The key file can't be written.
    #[error("can't write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others can read or change the key file, or it is another user's.
    #[error("{0} is open to other users")]
    Exposed(PathBuf),
    /// The file holds something else.
    #[error("{path} is {source}")]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: SecretKeyError,
    },
    /// What would be signed would be refused.
    #[error("nothing is signed: {0}")]
    Manifest(#[from] ManifestError),
    /// There is neither key nor nonce without it.
    #[error("the operating system gives no random bytes")]
    NoRandomness,
}

/// What a proof says, but for the body.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) caller: &'a Identity,
    pub(crate) tool: &'a str,
    pub(crate) intent: &'a str,
    pub(crate) scopes: &'a [String],
    /// How long it counts.
    pub(crate) lifetime: Duration,
}

impl Context<'_> {
    /// Proves this context of `body`, with a nonce that was never used.
    pub(crate) fn prove(
        &self,
        key: &SecretKey,
        body: &[u8],
        now: SystemTime,
    ) -> Result<SignedHeaders, ProofError> {
        let since_epoch = (now + self.lifetime).duration_since(UNIX_EPOCH);
        let micros = since_epoch.unwrap_or_default().as_micros();
        let manifest = Manifest {
            caller: self.caller.clone(),
            tool: self.tool.to_owned(),
            intent: self.intent.to_owned(),
            scopes: self.scopes.to_vec(),
            payload_sha256: Sha256::digest(body).into(),
            nonce: hex::encode(random::<16>()?),
            expires: i64::try_from(micros)
                .ok()
                .and_then(|micros| Timestamp::from_unix_micros(micros).ok())
                .unwrap_or(Timestamp::MAX),
        };
        Ok(poca::sign(key, &manifest)?)
    }
}

/// `poca keygen`
pub fn keygen(args: &KeygenArgs) -> Result<(), Failure> {
    let path = path(&args.key)?;
    if args.key.key.is_none()
        && let Some(dir) = &args.key.state
    {
        StateDir::new(dir).create().map_err(ProofError::State)?;
    }
    let key = match load(&path) {
        Err(ProofError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => {
            make(&path)?
        }
        found => found?,
    };
    Ok(output::print(&format!("{}\n", key.public_key()))?)
}

/// `poca sign`
pub fn sign(args: &SignArgs) -> Result<(), Failure> {
    let key = load(&path(&args.key)?)?;
    let context = Context {
        caller: &args.caller,
        tool: &args.tool,
        intent: &args.intent,
        scopes: &args.scopes,
        lifetime: args.lifetime,
    };
    let headers = context.prove(&key, args.body.as_bytes(), SystemTime::now())?;
    Ok(output::print(&format!(
        "X-PoCA-Manifest: {}\nX-PoCA-Signature: {}\nBody: {}\n",
        headers.manifest, headers.signature, args.body
    ))?)
}

/// The key file that is meant.
fn path(args: &KeyArgs) -> Result<PathBuf, ProofError> {
    match (&args.key, &args.state) {
        (Some(file), _) => Ok(file.clone()),
        (None, Some(dir)) => Ok(file_in(&StateDir::new(dir))),
        (None, None) => Err(ProofError::NoKeyNamed),
    }
}

/// An agent's own key file.
pub(crate) fn file_in(dir: &StateDir) -> PathBuf {
    dir.path().join(FILE)
}

/// The key in a file that is its owner's alone.
pub(crate) fn load(path: &Path) -> Result<SecretKey, ProofError> {
    let unreadable = |source| ProofError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o077 != 0 {
        return Err(ProofError::Exposed(path.to_owned()));
    }
    let mut pem = Zeroizing::new(String::new());
    file.take(MAX_FILE_BYTES)
        .read_to_string(&mut pem)
        .map_err(unreadable)?;
    SecretKey::from_pem(&pem).map_err(|source| ProofError::NotAKey {
        path: path.to_owned(),
        source,
    })
}

fn make(path: &Path) -> Result<SecretKey, ProofError> {
    let key = SecretKey::from_seed(&Zeroizing::new(random::<32>()?));
    let pem = key.to_pem().map_err(|source| ProofError::NotAKey {
        path: path.to_owned(),
        source,
    })?;
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            file.write_all(pem.as_bytes())?;
            file.sync_all()
        });
    written.map_err(|source| ProofError::Write {
        path: path.to_owned(),
        source,
    })?;
    Ok(key)
}

fn random<const N: usize>() -> Result<[u8; N], ProofError> {
    let mut random = [0; N];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut random)
        .map_err(|_| ProofError::NoRandomness)?;
    Ok(random)
}
