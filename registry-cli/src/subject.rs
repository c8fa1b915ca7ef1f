//! The agent's public key, in the forms that people have it in.

use std::io;
use std::path::{Path, PathBuf};

use permission::certificate::MAX_PEM_BYTES;
use permission::{
    CertificateError, ECDSA_P256_SHA256, Identity, IdentitySource, Leaf, PrincipalKey, Spki,
    SpkiError,
};
use x509_parser::pem::parse_x509_pem;

use crate::arguments::file;

/// An agent's key, and what the certificate that it came in says of the agent.
#[derive(Debug)]
pub(crate) struct Subject {
    /// The key's exact bytes.
    pub(crate) spki: Spki,
    /// Whom the certificate names, if it came in one; which name counts is for a profile to say.
    certified: Vec<Identity>,
}

/// Why there is no public key.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    /// The file is not there, or not ours to read.
    #[error("can't read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// No public key or certificate is that large.
    #[error("{path} is over {MAX_PEM_BYTES} bytes")]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// PEM that can't be read, or not exactly one block of it.
    #[error("the pem text is not exactly one public key or certificate")]
    BadPem,
    /// PEM of something else.
    #[error("the pem text holds a {label}, not a public key or certificate")]
    OtherPem {
        /// What it says it is.
        label: String,
    },
    /// Not hex, or not a public key.
    #[error(transparent)]
    Spki(#[from] SpkiError),
    /// A certificate that names nobody.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Another kind of key: no agent has one.
    #[error("public key is not a P-256 key")]
    NotP256,
    /// The certificate is another agent's.
    #[error("the certificate is that of {certified}, not of {given}")]
    OtherIdentity {
        /// Whom the certificate names.
        certified: Identity,
        /// Whom the command line names.
        given: Identity,
    },
}

impl Subject {
    /// Takes what `--spki` was given: hex digits, or the name of a file.
    pub(crate) fn read(text: &str) -> Result<Self, SubjectError> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Self::uncertified(Spki::from_hex(text)?));
        }
        Self::parse(&contents(Path::new(text))?)
    }

    /// Makes sure that a certificate, if there was one, is that of `given`.
    pub(crate) fn must_be(&self, given: &Identity) -> Result<(), SubjectError> {
        match self.certified.first() {
            Some(first) if !self.certified.contains(given) => Err(SubjectError::OtherIdentity {
                certified: first.clone(),
                given: given.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Makes sure that the key is of the one kind that agents have.
    pub(crate) fn must_be_p256(&self) -> Result<(), SubjectError> {
        PrincipalKey::from_stored(ECDSA_P256_SHA256, self.spki.as_der())
            .map(drop)
            .map_err(|_| SubjectError::NotP256)
    }

    fn uncertified(spki: Spki) -> Self {
        Self {
            spki,
            certified: Vec::new(),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, SubjectError> {
        match std::str::from_utf8(bytes) {
            Ok(text) if text.contains("-----BEGIN ") => Self::from_pem(text),
            Ok(text) => {
                // Hex dumps are broken into lines.
                let digits: String = text.split_ascii_whitespace().collect();
                Ok(Self::uncertified(Spki::from_hex(&digits)?))
            }
            // DER of a key is never UTF-8: its object identifiers and lengths are not.
            Err(_) => Ok(Self::uncertified(Spki::from_der(bytes)?)),
        }
    }

    fn from_pem(text: &str) -> Result<Self, SubjectError> {
        let (rest, block) = parse_x509_pem(text.as_bytes()).map_err(|_| SubjectError::BadPem)?;
        if !rest.iter().all(u8::is_ascii_whitespace) {
            return Err(SubjectError::BadPem);
        }
        match block.label.as_str() {
            "PUBLIC KEY" => Ok(Self::uncertified(Spki::from_der(&block.contents)?)),
            "CERTIFICATE" => Self::from_certificate(&block.contents),
            _ => Err(SubjectError::OtherPem { label: block.label }),
        }
    }

    /// The sidecar's certificates have the extension, and then nothing else counts. Those of a mesh
    /// have a SPIFFE ID or a common name.
    fn from_certificate(der: &[u8]) -> Result<Self, SubjectError> {
        let read = |source| Leaf::from_der(der, &source);
        let leaves = match read(IdentitySource::default()) {
            Err(CertificateError::ExtensionMissing) => {
                let others = [IdentitySource::SpiffeId, IdentitySource::CommonName];
                others.into_iter().flat_map(read).collect()
            }
            leaf => vec![leaf?],
        };
        let spki = leaves.first().map(|leaf| leaf.spki.clone());
        Ok(Self {
            spki: spki.ok_or(CertificateError::ExtensionMissing)?,
            certified: leaves.into_iter().map(|leaf| leaf.identity).collect(),
        })
    }
}

fn contents(path: &Path) -> Result<Vec<u8>, SubjectError> {
    let bytes = file(path, MAX_PEM_BYTES as u64).map_err(|source| SubjectError::Read {
        path: path.to_owned(),
        source,
    })?;
    bytes.ok_or_else(|| SubjectError::TooLarge {
        path: path.to_owned(),
    })
}
