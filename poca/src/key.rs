//! Agents' Ed25519 keys (RFC 8032), in the forms in which they are written down.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use ed25519_dalek::pkcs8::{self, DecodePrivateKey as _, EncodePrivateKey as _};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

/// What precedes the 32 bytes in a DER `SubjectPublicKeyInfo` (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Longest text of a key that is looked at, in bytes; an SPKI takes 60.
const MAX_TEXT_BYTES: usize = 128;

const PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, PADDING);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, PADDING);

/// An agent's public key. `Display` is base64url of its 32 bytes, without padding.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(VerifyingKey);

/// Why something is no public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// Neither base64url nor base64.
    #[error("public key is not base64url or base64")]
    NotBase64,
    /// Neither 32 bytes nor an Ed25519 key's `SubjectPublicKeyInfo`.
    #[error(
        "public key is neither 32 raw bytes nor the SubjectPublicKeyInfo DER of an Ed25519 key"
    )]
    NotEd25519,
    /// Not a point of the curve, not in its one encoding, or of small order: under such a key
    /// anybody's signature might verify.
    #[error("public key is not a usable point of the curve")]
    Unusable,
}

impl PublicKey {
    /// Takes the 32 bytes of a key, or the DER of its `SubjectPublicKeyInfo`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PublicKeyError> {
        let raw = bytes.strip_prefix(&SPKI_PREFIX).unwrap_or(bytes);
        let raw: &[u8; 32] = raw.try_into().map_err(|_| PublicKeyError::NotEd25519)?;
        let key = VerifyingKey::from_bytes(raw).map_err(|_| PublicKeyError::Unusable)?;
        if key.is_weak() || key.to_edwards().compress().as_bytes() != raw {
            return Err(PublicKeyError::Unusable);
        }
        Ok(Self(key))
    }

    /// The 32 bytes.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The DER of its `SubjectPublicKeyInfo`, 44 bytes.
    pub fn to_spki_der(self) -> Vec<u8> {
        [SPKI_PREFIX.as_slice(), &self.to_bytes()].concat()
    }

    /// Whether the holder of this key signed `message`; no second signature for the same message
    /// can be made from a first one, nor by a key that is none.
    pub(crate) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature)
            .is_ok_and(|signature| self.0.verify_strict(message, &signature).is_ok())
    }
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    /// Reads base64url or base64, with or without padding, of what [`PublicKey::from_bytes`]
    /// takes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(PublicKeyError::NotEd25519);
        }
        let bytes = URL_SAFE
            .decode(text)
            .or_else(|_| STANDARD.decode(text))
            .map_err(|_| PublicKeyError::NotBase64)?;
        Self::from_bytes(&bytes)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.to_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// An agent's private key; its memory is wiped when it is dropped.
pub struct SecretKey(SigningKey);

/// Not the PEM of an Ed25519 private key in PKCS#8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the PEM of an unencrypted Ed25519 private key (PKCS#8)")]
pub struct SecretKeyError;

impl SecretKey {
    /// From 32 random bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Reads what `openssl genpkey -algorithm ed25519` writes.
    pub fn from_pem(pem: &str) -> Result<Self, SecretKeyError> {
        SigningKey::from_pkcs8_pem(pem)
            .map(Self)
            .map_err(|_| SecretKeyError)
    }

    /// Writes what [`SecretKey::from_pem`] reads; the text is wiped when it is dropped.
    pub fn to_pem(&self) -> Result<impl std::ops::Deref<Target = String> + use<>, SecretKeyError> {
        // Version 1 of the format, without the public key: OpenSSL 3.0 reads no other.
        let key = pkcs8::KeypairBytes {
            secret_key: self.0.to_bytes(),
            public_key: None,
        };
        key.to_pkcs8_pem(pkcs8::spki::der::pem::LineEnding::LF)
            .map_err(|_| SecretKeyError)
    }

    /// Its public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public_key())
    }
}

#[cfg(test)]
mod tests;
