//! The self-signed certificate that carries the agent's key and identity.
//!
//! Nobody's CA vouches for it. The gateway takes the key from it, whose possession the TLS
//! handshake proves, and the identity; a signed permission must name both.

use std::cell::OnceCell;
use std::time::{Duration, SystemTime};

use p256::pkcs8::EncodePublicKey as _;
use p256::pkcs8::der::Encode as _;
use p256::pkcs8::der::asn1::Utf8StringRef;
use permission::{CertificateError, ExtensionOid, Identity, IdentitySource, Leaf, Spki};
use rcgen::{
    CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use tpm::{SignError, SigningKey};
use x509_parser::pem::parse_x509_pem;
use x509_parser::time::ASN1Time;

/// The extension that holds the identity as one DER `UTF8String`.
const IDENTITY_OID: [u64; 9] = [1, 3, 6, 1, 4, 1, 57264, 1, 1];

/// Validity counts for nothing at the gateway (the permission's does), but a certificate must
/// state one, and other TLS servers may look.
const VALIDITY: Duration = Duration::from_hours(3652 * 24);

/// The clock of whoever looks may be behind ours.
const CLOCK_SKEW: Duration = Duration::from_hours(24);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The key, or what is made of it, can't be written as DER.
    #[error("the certificate can't be encoded")]
    Encoding,
    /// The key gave no signature.
    #[error("{0}")]
    Signing(#[from] SignError),
}

/// Reads back what [`issue`] wrote.
pub fn read(pem: &[u8]) -> Result<Leaf, CertificateError> {
    let oid = IDENTITY_OID.map(|arc| arc.to_string()).join(".");
    let oid: ExtensionOid = oid
        .parse()
        .map_err(|_| CertificateError::ExtensionMissing)?;
    Leaf::from_pem(pem, &IdentitySource::Extension(oid))
}

/// From when to when a certificate is valid, in seconds since 1970.
pub(crate) fn validity(pem: &[u8]) -> Option<(u64, u64)> {
    let (_, block) = parse_x509_pem(pem).ok()?;
    let validity = block.parse_x509().ok()?.validity().clone();
    let seconds = |time: ASN1Time| u64::try_from(time.timestamp()).ok();
    Some((seconds(validity.not_before)?, seconds(validity.not_after)?))
}

/// The key's `SubjectPublicKeyInfo`.
pub fn spki(key: &dyn SigningKey) -> Result<Spki, IssueError> {
    let der = key
        .public_key()
        .to_public_key_der()
        .map_err(|_| IssueError::Encoding)?;
    Spki::from_der(der.as_bytes()).map_err(|_| IssueError::Encoding)
}

/// Makes a certificate for `identity`, signed by the key that it carries, as PEM.
pub fn issue(
    identity: &Identity,
    key: &dyn SigningKey,
    now: SystemTime,
) -> Result<String, IssueError> {
    let text = Utf8StringRef::new(identity.as_str())
        .and_then(|text| text.to_der())
        .map_err(|_| IssueError::Encoding)?;
    let mut params = CertificateParams::default();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + VALIDITY).into();
    // A common name holds at most 64 characters (RFC 5280, appendix A.1), an identity 256.
    params
        .distinguished_name
        .push(DnType::CommonName, "agent-gateway sidecar");
    params.key_usages.push(KeyUsagePurpose::DigitalSignature);
    params
        .extended_key_usages
        .push(ExtendedKeyUsagePurpose::ClientAuth);
    params
        .custom_extensions
        .push(CustomExtension::from_oid_content(&IDENTITY_OID, text));
    let signer = Signer {
        key,
        point: key.public_key().to_sec1_bytes(),
        failure: OnceCell::new(),
    };
    let certificate = params.self_signed(&signer);
    if let Some(error) = signer.failure.into_inner() {
        return Err(error.into());
    }
    Ok(certificate.map_err(|_| IssueError::Encoding)?.pem())
}

struct Signer<'a> {
    key: &'a dyn SigningKey,
    /// The public key as an uncompressed point.
    point: Box<[u8]>,
    /// rcgen's error has no room for it.
    failure: OnceCell<SignError>,
}

impl PublicKeyData for Signer<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Signer<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key
            .sign(message)
            .map(|signature| signature.as_bytes().to_vec())
            .map_err(|error| {
                let _ = self.failure.set(error);
                rcgen::Error::RemoteKeyError
            })
    }
}

#[cfg(test)]
mod tests {
    use tpm::SoftwareKey;

    use super::*;

    #[test]
    fn issued_certificate_reads_back_with_identity_and_exact_key() {
        let folder = tempfile::tempdir().unwrap();
        let key = SoftwareKey::create(&folder.path().join("key.pem")).unwrap();
        // 256 bytes need DER's long form of a length.
        for name in ["agent-alpha".to_owned(), "Ω".to_owned(), "a".repeat(256)] {
            let identity = Identity::parse(&name).unwrap();
            let pem = issue(&identity, &key, SystemTime::now()).unwrap();
            let leaf = read(pem.as_bytes()).unwrap();
            assert_eq!(
                leaf,
                Leaf {
                    identity,
                    spki: spki(&key).unwrap()
                }
            );
        }
    }
}
