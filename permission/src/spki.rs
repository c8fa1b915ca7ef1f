//! The exact public key that a permission trusts.

use std::fmt;
use std::sync::Arc;

use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Largest SPKI accepted, in bytes; an RSA key of 16,384 bits has 2,086.
const MAX_SPKI_BYTES: usize = 4096;

/// A DER-encoded `SubjectPublicKeyInfo` (RFC 5280, section 4.1.2.7), compared byte for byte.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spki(Arc<[u8]>);

/// Why bytes are no `SubjectPublicKeyInfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpkiError {
    /// Not hexadecimal digits.
    #[error("public key is not hexadecimal text")]
    NotHex,
    /// Not DER, or bytes left over behind it.
    #[error("public key is not one DER SubjectPublicKeyInfo")]
    NotSpki,
    /// More than 4096 bytes.
    #[error("public key is over {MAX_SPKI_BYTES} bytes")]
    TooLong,
}

impl Spki {
    /// Takes DER bytes that are one `SubjectPublicKeyInfo` and nothing more.
    pub fn from_der(der: &[u8]) -> Result<Self, SpkiError> {
        if der.len() > MAX_SPKI_BYTES {
            return Err(SpkiError::TooLong);
        }
        match SubjectPublicKeyInfo::from_der(der) {
            Ok(([], _)) => Ok(Self(der.into())),
            _ => Err(SpkiError::NotSpki),
        }
    }

    /// As [`Spki::from_der`], from hexadecimal digits of either case.
    pub fn from_hex(text: &str) -> Result<Self, SpkiError> {
        if text.len() > 2 * MAX_SPKI_BYTES {
            return Err(SpkiError::TooLong);
        }
        Self::from_der(&hex::decode(text).map_err(|_| SpkiError::NotHex)?)
    }

    /// The DER bytes.
    pub fn as_der(&self) -> &[u8] {
        &self.0
    }

    /// Lower-case hexadecimal digits of the DER bytes, as in the signed text.
    pub fn to_hex(&self) -> String {
        // `hex::encode` pushes one character at a time, and every Check tells this.
        let mut digits = vec![0; 2 * self.0.len()];
        // As long as it must be, and ASCII.
        let _ = hex::encode_to_slice(&self.0, &mut digits);
        String::from_utf8(digits).unwrap_or_default()
    }
}

impl fmt::Debug for Spki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spki({})", self.to_hex())
    }
}
