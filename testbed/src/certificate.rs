//! Client certificates as agents make them, and as no honest agent would.

use anyhow::{Result, bail};
use rcgen::{
    CertificateParams, CustomExtension, DnType, KeyPair, PublicKeyData, SanType, date_time_ymd,
};
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

/// The extension that holds the agent's identity.
const IDENTITY_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 57264, 1, 1];

/// A self-signed leaf with its P-256 key.
#[derive(Debug)]
pub struct ClientCertificate {
    der: CertificateDer<'static>,
    pem: String,
    spki_der: Vec<u8>,
    key_pkcs8_der: Vec<u8>,
}

impl ClientCertificate {
    /// What an honest agent shows: the identity as one `UTF8String`, a fresh key.
    pub fn for_identity(identity: &str) -> Result<ClientCertificate> {
        ClientCertificate::builder().identity(identity).build()
    }

    /// Starts without any identity extension, with a fresh key and no end of validity in sight.
    pub fn builder() -> ClientCertificateBuilder {
        ClientCertificateBuilder {
            values: Vec::new(),
            uris: Vec::new(),
            validity: ((1975, 1, 1), (4096, 1, 1)),
            key_pkcs8_der: None,
        }
    }

    /// The certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The certificate in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The `SubjectPublicKeyInfo` in DER, as the certificate holds it.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki_der
    }

    /// The private key, PKCS#8 DER.
    pub fn key_pkcs8_der(&self) -> &[u8] {
        &self.key_pkcs8_der
    }

    /// This certificate in the hands of one who has another key: a thief.
    pub fn stolen(&self) -> Result<ClientCertificate> {
        Ok(ClientCertificate {
            der: self.der.clone(),
            pem: self.pem.clone(),
            spki_der: self.spki_der.clone(),
            key_pkcs8_der: KeyPair::generate()?.serialize_der(),
        })
    }

    /// For a TLS client; certificate and key need not belong together.
    pub(crate) fn certified_key(&self) -> Result<CertifiedKey> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key_pkcs8_der.clone()));
        Ok(CertifiedKey::new(
            vec![self.der.clone()],
            any_ecdsa_type(&key)?,
        ))
    }
}

/// Makes a [`ClientCertificate`].
#[derive(Debug)]
pub struct ClientCertificateBuilder {
    values: Vec<Vec<u8>>,
    uris: Vec<String>,
    validity: (Day, Day),
    key_pkcs8_der: Option<Vec<u8>>,
}

/// Year, month, day.
pub type Day = (i32, u8, u8);

impl ClientCertificateBuilder {
    /// Adds an identity extension that holds a `UTF8String`.
    #[must_use]
    pub fn identity(self, identity: &str) -> Self {
        self.extension_value(&utf8_string(identity))
    }

    /// Adds an identity extension with any bytes as its value; twice means two extensions.
    #[must_use]
    pub fn extension_value(mut self, der: &[u8]) -> Self {
        self.values.push(der.to_owned());
        self
    }

    /// Adds a URI to the subject alternative names, such as a SPIFFE ID.
    #[must_use]
    pub fn uri(mut self, uri: &str) -> Self {
        self.uris.push(uri.to_owned());
        self
    }

    /// Sets both ends of the validity, at midnight UTC.
    #[must_use]
    pub fn validity(mut self, not_before: Day, not_after: Day) -> Self {
        self.validity = (not_before, not_after);
        self
    }

    /// Uses this P-256 key (PKCS#8 DER) instead of a fresh one.
    #[must_use]
    pub fn key(mut self, pkcs8_der: &[u8]) -> Self {
        self.key_pkcs8_der = Some(pkcs8_der.to_owned());
        self
    }

    /// Signs the certificate with its own key.
    pub fn build(self) -> Result<ClientCertificate> {
        let key = match self.key_pkcs8_der {
            Some(pkcs8_der) => KeyPair::try_from(pkcs8_der)?,
            None => KeyPair::generate()?,
        };
        if !key.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256) {
            bail!("not a P-256 key");
        }
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "agent");
        let (from, to) = self.validity;
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(to.0, to.1, to.2);
        for uri in self.uris {
            params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        }
        params.custom_extensions = self
            .values
            .into_iter()
            .map(|value| CustomExtension::from_oid_content(IDENTITY_OID, value))
            .collect();
        let certificate = params.self_signed(&key)?;
        Ok(ClientCertificate {
            der: certificate.der().clone(),
            pem: certificate.pem(),
            spki_der: key.subject_public_key_info(),
            key_pkcs8_der: key.serialize_der(),
        })
    }
}

/// A DER `UTF8String`.
pub fn utf8_string(text: &str) -> Vec<u8> {
    tagged(0x0c, text.as_bytes())
}

/// A DER `PrintableString` (of whatever characters).
pub fn printable_string(text: &str) -> Vec<u8> {
    tagged(0x13, text.as_bytes())
}

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
    let mut der = vec![tag];
    match significant.as_slice() {
        [] => der.push(0),
        [short] if *short < 0x80 => der.push(*short),
        long => {
            der.push(0x80 | u8::try_from(long.len()).unwrap_or(8));
            der.extend(long);
        }
    }
    der.extend(content);
    der
}

#[cfg(test)]
mod tests {
    use super::utf8_string;

    #[test]
    fn lengths_are_der() {
        assert_eq!(utf8_string(""), [0x0c, 0]);
        assert_eq!(utf8_string("ab"), [0x0c, 2, b'a', b'b']);
        assert_eq!(utf8_string(&"a".repeat(127))[..3], [0x0c, 127, b'a']);
        assert_eq!(utf8_string(&"a".repeat(128))[..4], [0x0c, 0x81, 128, b'a']);
        assert_eq!(
            utf8_string(&"a".repeat(3000))[..5],
            [0x0c, 0x82, 0x0b, 0xb8, b'a']
        );
    }
}
