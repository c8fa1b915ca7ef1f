//! A key in a file (PKCS#8 PEM): no protection but the file's mode.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use p256::ecdsa::DerSignature;
use p256::ecdsa::signature::Signer;
use p256::elliptic_curve::Generate;
use p256::elliptic_curve::zeroize::Zeroizing;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use p256::{PublicKey, SecretKey};

use crate::{SignError, SigningKey};

/// A P-256 PKCS#8 PEM takes about 240 bytes.
const MAX_FILE_BYTES: usize = 16 * 1024;

/// A P-256 key in this process's memory.
pub struct SoftwareKey {
    secret: p256::ecdsa::SigningKey,
    public: PublicKey,
}

impl SoftwareKey {
    /// Makes a key and writes it to `path` as PKCS#8 PEM with mode 0600. An existing file, or
    /// symbolic link, is never overwritten.
    pub fn create(path: &Path) -> Result<SoftwareKey, SoftwareKeyError> {
        let failed = |source| SoftwareKeyError::Write {
            path: path.to_owned(),
            source,
        };
        let secret = SecretKey::try_generate().map_err(|error| failed(io::Error::other(error)))?;
        let pem = secret
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|error| failed(io::Error::other(error)))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => SoftwareKeyError::Exists {
                    path: path.to_owned(),
                },
                _ => failed(source),
            })?;
        if let Err(source) = file
            .write_all(pem.as_bytes())
            .and_then(|()| file.sync_all())
        {
            // Half a key is none, and would be in the way of the next attempt.
            let _ = fs::remove_file(path);
            return Err(failed(source));
        }
        Ok(SoftwareKey::from_secret(&secret))
    }

    /// Loads a key from a PKCS#8 PEM file, which nobody but its owner may have access to.
    pub fn load(path: &Path) -> Result<SoftwareKey, SoftwareKeyError> {
        let failed = |source| SoftwareKeyError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SoftwareKeyError::Exposed {
                path: path.to_owned(),
                mode,
            });
        }
        // Roomy from the start: growing would leave copies behind.
        let mut pem = Zeroizing::new(String::with_capacity(MAX_FILE_BYTES));
        file.take(MAX_FILE_BYTES as u64)
            .read_to_string(&mut pem)
            .map_err(failed)?;
        // The parser's error is dropped: it adds nothing an operator could use.
        let secret = SecretKey::from_pkcs8_pem(&pem).map_err(|_| SoftwareKeyError::NotAKey {
            path: path.to_owned(),
        })?;
        Ok(SoftwareKey::from_secret(&secret))
    }

    fn from_secret(secret: &SecretKey) -> SoftwareKey {
        SoftwareKey {
            secret: secret.into(),
            public: secret.public_key(),
        }
    }
}

impl SigningKey for SoftwareKey {
    fn public_key(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<DerSignature, SignError> {
        self.secret
            .try_sign(message)
            .map_err(|_| SignError::Software)
    }
}

impl fmt::Debug for SoftwareKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftwareKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

/// Why a software key can't be made or loaded.
#[derive(Debug, thiserror::Error)]
pub enum SoftwareKeyError {
    /// There is something at the path already.
    #[error("{} exists already, and a key is never overwritten", path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// Others than the owner may get at the file.
    #[error("{} has mode {mode:04o}; a private key must be its owner's alone (chmod 600)", path.display())]
    Exposed {
        /// The path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else.
    #[error("{} holds no P-256 private key in PKCS#8 PEM", path.display())]
    NotAKey {
        /// The path.
        path: PathBuf,
    },
    /// The file can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The file can't be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The path.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}
