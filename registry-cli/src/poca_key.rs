//! Agents' keys for proofs of context, in the forms that people have them in.

use std::io;
use std::path::{Path, PathBuf};

use permission::PocaCandidate;
use poca::{PublicKey, PublicKeyError};
use registry::StoredPocaKey;
use x509_parser::pem::parse_x509_pem;

use crate::arguments::file;

/// Far more than any form of a key takes.
const MAX_BYTES: u64 = 16 * 1024;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum PocaKeyError {
    /// Neither a key nor a file that is ours to read.
    #[error("{} is neither an Ed25519 public key nor a file that can be read", path.display())]
    Read {
        /// What was given.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// No public key is that large.
    #[error("{} is over {MAX_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// PEM of something else, or not exactly one block of it.
    #[error("the pem text is not exactly one public key")]
    OtherPem,
    /// Not a key of that kind, or one that nobody may use.
    #[error(transparent)]
    NotAKey(#[from] PublicKeyError),
}

/// Takes what `--public-key` was given: a key in base64, or the name of a file with one.
pub(crate) fn read(text: &str) -> Result<PublicKey, PocaKeyError> {
    let typed: Result<PublicKey, _> = text.parse();
    match typed {
        // What has the form of a key is not looked for among the files.
        Ok(key) => return Ok(key),
        Err(error @ PublicKeyError::Unusable) => return Err(error.into()),
        Err(PublicKeyError::NotBase64 | PublicKeyError::NotEd25519) => {}
    }
    let path = Path::new(text);
    let bytes = file(path, MAX_BYTES).map_err(|source| PocaKeyError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&bytes.ok_or_else(|| PocaKeyError::TooLarge(path.to_owned()))?)
}

fn parse(bytes: &[u8]) -> Result<PublicKey, PocaKeyError> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Ok(PublicKey::from_bytes(bytes)?);
    };
    if !text.contains("-----BEGIN ") {
        return Ok(text.trim().parse()?);
    }
    match parse_x509_pem(bytes) {
        Ok((rest, block))
            if block.label == "PUBLIC KEY" && rest.iter().all(u8::is_ascii_whitespace) =>
        {
            Ok(PublicKey::from_bytes(&block.contents)?)
        }
        _ => Err(PocaKeyError::OtherPem),
    }
}

/// What the gateway judges; or the column that holds what no such key can.
pub(crate) fn candidate(stored: &StoredPocaKey) -> Result<PocaCandidate, &'static str> {
    let candidate = stored.candidate()?;
    match PublicKey::from_bytes(&candidate.key().ed25519_public_key) {
        Ok(_) => Ok(candidate),
        Err(_) => Err("ed25519_public_key"),
    }
}

/// A key as people write it; hex of what is none.
pub(crate) fn shown(bytes: &[u8]) -> String {
    PublicKey::from_bytes(bytes).map_or_else(|_| hex::encode(bytes), |key| key.to_string())
}

#[cfg(test)]
mod tests {
    use poca::SecretKey;

    use super::*;

    #[test]
    fn every_form_of_a_key_is_read_and_nothing_else() {
        let key = SecretKey::from_seed(&[7; 32]).public_key();
        let der = key.to_spki_der();
        let base64 = "MCowBQYDK2VwAyEA6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=";
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----\n");
        let line = format!("{key}\n");
        for bytes in [line.as_bytes(), base64.as_bytes(), &der, pem.as_bytes()] {
            assert_eq!(parse(bytes).unwrap(), key, "{bytes:?}");
        }
        let twice = format!("{pem}{pem}");
        let secret = pem.replace("PUBLIC", "PRIVATE");
        let longer = [&der[..], b"\0"].concat();
        for bytes in [
            b"".as_slice(),
            b"\0",
            b"not a key",
            &longer,
            twice.as_bytes(),
            secret.as_bytes(),
            // Of small order: anybody's signature might verify.
            &[0; 32],
        ] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
        assert_eq!(shown(&key.to_bytes()), key.to_string());
        assert_eq!(shown(&[0; 2]), "0000");
    }
}
