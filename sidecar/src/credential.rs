//! What the sidecar proves itself with: the certificate, and the key as rustls takes it.

use std::sync::{Arc, PoisonError, RwLock};

use p256::pkcs8::EncodePublicKey as _;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{Error, OtherError, SignatureAlgorithm, SignatureScheme};
use tokio::runtime::{Handle, RuntimeFlavor};

/// Why certificate and key are no credential.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The PEM text is no certificate.
    #[error("the certificate can't be read")]
    Certificate,
    /// The certificate carries another key.
    #[error("the certificate carries another key")]
    KeyMismatch,
}

/// A certificate and the key that it carries.
#[derive(Debug, Clone)]
pub struct Credential(Arc<CertifiedKey>);

/// The credential that is shown to any gateway that asks, which may be replaced by another.
#[derive(Debug, Clone)]
pub struct CurrentCredential(Arc<RwLock<Credential>>);

impl Credential {
    /// Joins the two, if they belong together.
    pub fn new(
        certificate_pem: &[u8],
        key: Arc<dyn tpm::SigningKey>,
    ) -> Result<Self, CredentialError> {
        let certificate = CertificateDer::from_pem_slice(certificate_pem)
            .map_err(|_| CredentialError::Certificate)?;
        let spki = key
            .public_key()
            .to_public_key_der()
            .map_err(|_| CredentialError::KeyMismatch)?;
        let spki = SubjectPublicKeyInfoDer::from(spki.into_vec());
        let certified = CertifiedKey::new(vec![certificate], Arc::new(HandshakeKey { key, spki }));
        certified
            .keys_match()
            .map_err(|_| CredentialError::KeyMismatch)?;
        Ok(Self(Arc::new(certified)))
    }
}

impl CurrentCredential {
    /// Begins with this one.
    pub fn new(credential: Credential) -> Self {
        Self(Arc::new(RwLock::new(credential)))
    }

    /// Handshakes from now on show this one.
    pub(crate) fn replace(&self, credential: Credential) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = credential;
    }
}

impl ResolvesClientCert for CurrentCredential {
    /// The gateway's list of acceptable authorities is ignored: a self-signed certificate is in
    /// none.
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let Credential(certified) = &*self.0.read().unwrap_or_else(PoisonError::into_inner);
        schemes.contains(&SCHEME).then(|| Arc::clone(certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

/// The TPM failed to sign a handshake; found again inside the handshake's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SigningFailed(tpm::SignError);

#[derive(Debug)]
struct HandshakeKey {
    key: Arc<dyn tpm::SigningKey>,
    spki: SubjectPublicKeyInfoDer<'static>,
}

impl SigningKey for HandshakeKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SCHEME)
            .then(|| Box::new(HandshakeSigner(Arc::clone(&self.key))) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.spki.clone())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

#[derive(Debug)]
struct HandshakeSigner(Arc<dyn tpm::SigningKey>);

impl Signer for HandshakeSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let sign = || self.0.sign(message);
        // A hardware TPM takes up to 600 ms, which other tunnels must not notice.
        let signed = match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(sign),
            _ => sign(),
        };
        signed
            .map(|signature| signature.as_bytes().to_vec())
            .map_err(|error| Error::Other(OtherError(Arc::new(SigningFailed(error)))))
    }

    fn scheme(&self) -> SignatureScheme {
        SCHEME
    }
}
