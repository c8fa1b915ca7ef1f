//! Reads a client's leaf certificate: who it says it is, and which key it carries.
//!
//! A certificate is a carrier here, not a credential: possession of its key was proved by the TLS
//! handshake, and what that key may do is in a signed row. So neither the chain nor the validity
//! dates are looked at.

mod spiffe;

use std::fmt;
use std::str::FromStr;

use p256::pkcs8::der::Decode as _;
use p256::pkcs8::der::asn1::Utf8StringRef;
use x509_parser::asn1_rs::{Oid, oid};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::identity::Identity;
use crate::spki::Spki;

/// Largest PEM text that is looked at, in bytes.
pub const MAX_PEM_BYTES: usize = 64 * 1024;

/// The extension that holds an agent's identity, in dotted notation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtensionOid(Oid<'static>);

/// 1.3.6.1.4.1.57264.1.1, unless an operator says otherwise.
impl Default for ExtensionOid {
    fn default() -> Self {
        Self(oid!(1.3.6.1.4.1.57264.1.1))
    }
}

/// Where a certificate names its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentitySource {
    /// In this extension, as one `UTF8String`.
    Extension(ExtensionOid),
    /// In the only URI among its alternative names, which must be a SPIFFE ID (an X.509-SVID).
    SpiffeId,
    /// In the only common name of its subject.
    CommonName,
}

/// The identity extension of this project.
impl Default for IdentitySource {
    fn default() -> Self {
        Self::Extension(ExtensionOid::default())
    }
}

/// Not an object identifier in dotted notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an object identifier in dotted notation, such as 1.3.6.1.4.1.57264.1.1")]
pub struct OidError;

impl FromStr for ExtensionOid {
    type Err = OidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Oid::from_str(text).map(Self).map_err(|_| OidError)
    }
}

impl fmt::Display for ExtensionOid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.to_id_string().fmt(f)
    }
}

/// What a leaf certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Whom it names.
    pub identity: Identity,
    /// The exact bytes of its public key.
    pub spki: Spki,
}

/// Why a certificate names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not one PEM block with one DER certificate and nothing else.
    #[error("certificate can't be parsed")]
    Unparseable,
    /// No extension with the configured OID; or, where that is the source, no URI or common name.
    #[error("certificate has no identity extension")]
    ExtensionMissing,
    /// Twice there, or not exactly one DER `UTF8String` that is an identity; or, where that is the
    /// source, several URIs or common names, or one that is no SPIFFE ID or no identity.
    #[error("identity extension is not exactly one DER UTF8String of 1 to 256 bytes")]
    ExtensionInvalid,
}

impl Leaf {
    /// Reads the one certificate in `pem`, which names its holder in `source`.
    pub fn from_pem(pem: &[u8], source: &IdentitySource) -> Result<Self, CertificateError> {
        if pem.len() > MAX_PEM_BYTES {
            return Err(CertificateError::Unparseable);
        }
        let (rest, block) = parse_x509_pem(pem).map_err(|_| CertificateError::Unparseable)?;
        if block.label != "CERTIFICATE" || !rest.iter().all(u8::is_ascii_whitespace) {
            return Err(CertificateError::Unparseable);
        }
        Self::from_der(&block.contents, source)
    }

    /// As [`Leaf::from_pem`], from the DER bytes.
    pub fn from_der(der: &[u8], source: &IdentitySource) -> Result<Self, CertificateError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| CertificateError::Unparseable)?;
        if !rest.is_empty() {
            return Err(CertificateError::Unparseable);
        }
        let identity = match source {
            IdentitySource::Extension(oid) => extension(&certificate, oid),
            IdentitySource::SpiffeId => spiffe_id(&certificate),
            IdentitySource::CommonName => common_name(&certificate),
        }?;
        let spki = Spki::from_der(certificate.public_key().raw)
            .map_err(|_| CertificateError::Unparseable)?;
        Ok(Self { identity, spki })
    }
}

/// Whom else than its subject a certificate names (RFC 5280, section 4.2.1.6), as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlternativeNames {
    /// DNS names.
    pub dns: Vec<String>,
    /// URIs, a SPIFFE ID among them.
    pub uris: Vec<String>,
}

impl AlternativeNames {
    /// Reads those of one certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| CertificateError::Unparseable)?;
        if !rest.is_empty() {
            return Err(CertificateError::Unparseable);
        }
        Self::of(&certificate)
    }

    /// Whether `name` is among them: a URI if it has a scheme, else a DNS name.
    pub fn contains(&self, name: &str) -> bool {
        if name.contains("://") {
            self.uris.iter().any(|uri| uri == name)
        } else {
            self.dns.iter().any(|dns| dns.eq_ignore_ascii_case(name))
        }
    }

    fn of(certificate: &X509Certificate<'_>) -> Result<Self, CertificateError> {
        let extension = certificate
            .subject_alternative_name()
            .map_err(|_| CertificateError::Unparseable)?;
        let (mut dns, mut uris) = (Vec::new(), Vec::new());
        for name in extension
            .iter()
            .flat_map(|names| &names.value.general_names)
        {
            match name {
                GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                // Else one that nobody can read would not count.
                GeneralName::Invalid(..) => return Err(CertificateError::Unparseable),
                _ => {}
            }
        }
        Ok(Self { dns, uris })
    }
}

fn extension(
    certificate: &X509Certificate<'_>,
    oid: &ExtensionOid,
) -> Result<Identity, CertificateError> {
    let mut found = certificate
        .extensions()
        .iter()
        .filter(|extension| extension.oid == oid.0);
    let extension = found.next().ok_or(CertificateError::ExtensionMissing)?;
    if found.next().is_some() {
        return Err(CertificateError::ExtensionInvalid);
    }
    // The `der` crate: x509-parser's own ASN.1 types also take BER's longer forms of a length.
    Utf8StringRef::from_der(extension.value)
        .ok()
        .and_then(|text| Identity::parse(text.as_str()).ok())
        .ok_or(CertificateError::ExtensionInvalid)
}

/// X509-SVID, section 2: exactly one URI, and that is the SPIFFE ID. DNS names may stand beside it.
fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<Identity, CertificateError> {
    let names = AlternativeNames::of(certificate)?;
    let identity = match names.uris.as_slice() {
        [] => return Err(CertificateError::ExtensionMissing),
        [uri] if spiffe::is_id(uri) => Identity::parse(uri).ok(),
        _ => None,
    };
    identity.ok_or(CertificateError::ExtensionInvalid)
}

fn common_name(certificate: &X509Certificate<'_>) -> Result<Identity, CertificateError> {
    let mut names = certificate.subject().iter_common_name();
    let name = names.next().ok_or(CertificateError::ExtensionMissing)?;
    if names.next().is_some() {
        return Err(CertificateError::ExtensionInvalid);
    }
    name.as_str()
        .ok()
        .and_then(|text| Identity::parse(text).ok())
        .ok_or(CertificateError::ExtensionInvalid)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, PublicKeyData as _,
        SanType,
    };

    use super::*;

    const OID: &[u64] = &[1, 3, 6, 1, 4, 1, 57264, 1, 1];

    fn oid() -> IdentitySource {
        IdentitySource::Extension("1.3.6.1.4.1.57264.1.1".parse().unwrap())
    }

    fn named(uris: &[&str], dns: &[&str], common_names: &[&str]) -> String {
        let mut params = CertificateParams::default();
        let uri = |uri: &&str| SanType::URI((*uri).try_into().unwrap());
        let dns = dns
            .iter()
            .map(|dns| SanType::DnsName((*dns).try_into().unwrap()));
        params.subject_alt_names = uris.iter().map(uri).chain(dns).collect();
        params.distinguished_name = DistinguishedName::new();
        // A name of several is one whose kinds differ, to the maker of these certificates.
        for (number, name) in common_names.iter().enumerate() {
            let kind = match number {
                0 => DnType::CommonName,
                _ => DnType::CustomDnType(vec![2, 5, 4, 3]),
            };
            params.distinguished_name.push(kind, *name);
        }
        params
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .pem()
    }

    #[test]
    fn an_svid_has_exactly_one_uri_which_is_its_spiffe_id() {
        use CertificateError::*;
        let id = "spiffe://example.org/ns/agents/sa/alpha";
        for (uris, expected) in [
            (&[id][..], Ok(id)),
            (&[], Err(ExtensionMissing)),
            (
                &[id, "spiffe://example.org/ns/agents/sa/beta"],
                Err(ExtensionInvalid),
            ),
            (&[id, id], Err(ExtensionInvalid)),
            (&[id, "https://example.org/"], Err(ExtensionInvalid)),
            (&["https://example.org/alpha"], Err(ExtensionInvalid)),
        ] {
            let pem = named(
                uris,
                &["alpha.example.org"],
                &["spiffe://example.org/other"],
            );
            let read = Leaf::from_pem(pem.as_bytes(), &IdentitySource::SpiffeId);
            let read = read.map(|leaf| leaf.identity.to_string());
            assert_eq!(read, expected.map(str::to_owned), "{uris:?}");
        }
        let long = format!("spiffe://example.org/{}", "a".repeat(236));
        let pem = named(&[&long], &[], &[]);
        let read = Leaf::from_pem(pem.as_bytes(), &IdentitySource::SpiffeId);
        assert_eq!(read.unwrap_err(), ExtensionInvalid);
    }

    #[test]
    fn a_common_name_counts_if_it_is_the_only_one() {
        use CertificateError::*;
        for (names, expected) in [
            (&["agent-alpha"][..], Ok("agent-alpha")),
            (&[], Err(ExtensionMissing)),
            (&["agent-alpha", "agent-beta"], Err(ExtensionInvalid)),
            (&[""], Err(ExtensionInvalid)),
            (&["agent\nalpha"], Err(ExtensionInvalid)),
        ] {
            let pem = named(&["spiffe://example.org/other"], &[], names);
            let read = Leaf::from_pem(pem.as_bytes(), &IdentitySource::CommonName);
            let read = read.map(|leaf| leaf.identity.to_string());
            assert_eq!(read, expected.map(str::to_owned), "{names:?}");
        }
    }

    #[test]
    fn the_source_is_the_only_one_that_counts() {
        let (pem, _) = certificate(&[b"\x0c\x05agent"]);
        let read = Leaf::from_pem(pem.as_bytes(), &IdentitySource::SpiffeId);
        assert_eq!(read, Err(CertificateError::ExtensionMissing));
        let pem = named(&["spiffe://example.org/a"], &["a.example"], &["a"]);
        let read = Leaf::from_pem(pem.as_bytes(), &oid());
        assert_eq!(read, Err(CertificateError::ExtensionMissing));
    }

    #[test]
    fn alternative_names_are_uris_or_dns_names() {
        let pem = named(&["spiffe://example.org/a"], &["a.example"], &[]);
        let (_, block) = parse_x509_pem(pem.as_bytes()).unwrap();
        let names = AlternativeNames::from_der(&block.contents).unwrap();
        assert!(names.contains("A.example") && names.contains("spiffe://example.org/a"));
        for other in [
            "",
            "example",
            "b.example",
            "spiffe://example.org/A",
            "spiffe://example.org",
        ] {
            assert!(!names.contains(other), "{other}");
        }
    }

    fn certificate(values: &[&[u8]]) -> (String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        for value in values {
            params
                .custom_extensions
                .push(CustomExtension::from_oid_content(OID, value.to_vec()));
        }
        (params.self_signed(&key).unwrap().pem(), key)
    }

    #[test]
    fn identity_and_exact_key_are_read() {
        let (pem, key) = certificate(&[b"\x0c\x0bagent-alpha"]);
        let leaf = Leaf::from_pem(pem.as_bytes(), &oid()).unwrap();
        assert_eq!(leaf.identity.as_str(), "agent-alpha");
        assert_eq!(leaf.spki.as_der(), key.subject_public_key_info());
    }

    #[test]
    fn extension_must_be_exactly_one_utf8_string() {
        use CertificateError::*;
        let long: Vec<u8> = [b"\x0c\x82\x0b\xb8".as_slice(), &[b'a'; 3000]].concat();
        let limit: Vec<u8> = [b"\x0c\x82\x01\x00".as_slice(), &[b'a'; 256]].concat();
        for (values, expected) in [
            (vec![], Err(ExtensionMissing)),
            (vec![b"\x13\x05agent".as_slice()], Err(ExtensionInvalid)),
            (vec![b"\x0c\x05agent!"], Err(ExtensionInvalid)),
            (vec![b"\x0c\x06agent"], Err(ExtensionInvalid)),
            (vec![b"\x0c\x00"], Err(ExtensionInvalid)),
            (vec![b""], Err(ExtensionInvalid)),
            (vec![b"agent"], Err(ExtensionInvalid)),
            (vec![b"\x0c\x02\xff\xfe"], Err(ExtensionInvalid)),
            (vec![b"\x0c\x03a\nb"], Err(ExtensionInvalid)),
            (vec![b"\x2c\x07\x0c\x05agent"], Err(ExtensionInvalid)),
            (vec![b"\x0c\x80agent\x00\x00"], Err(ExtensionInvalid)),
            (vec![b"\x0c\x81\x05agent"], Err(ExtensionInvalid)),
            (vec![b"\x0c\x05agent\x0c\x05other"], Err(ExtensionInvalid)),
            (
                vec![b"\x0c\x05agent", b"\x0c\x05agent"],
                Err(ExtensionInvalid),
            ),
            (
                vec![b"\x0c\x05agent", b"\x0c\x05other"],
                Err(ExtensionInvalid),
            ),
            (vec![&long], Err(ExtensionInvalid)),
            (vec![&limit], Ok("a".repeat(256))),
            (vec![b"\x0c\x05Agent"], Ok("Agent".to_owned())),
        ] {
            let (pem, _) = certificate(&values);
            let read = Leaf::from_pem(pem.as_bytes(), &oid());
            assert_eq!(
                read.map(|leaf| leaf.identity.as_str().to_owned()),
                expected,
                "{values:x?}"
            );
        }
    }

    #[test]
    fn other_extensions_do_not_name_anybody() {
        let (pem, _) = certificate(&[b"\x0c\x05agent"]);
        let other = IdentitySource::Extension("1.3.6.1.4.1.57264.1.2".parse().unwrap());
        assert_eq!(
            Leaf::from_pem(pem.as_bytes(), &other),
            Err(CertificateError::ExtensionMissing)
        );
    }

    #[test]
    fn anything_but_one_certificate_is_unparseable() {
        let (pem, key) = certificate(&[b"\x0c\x05agent"]);
        for bad in [
            String::new(),
            "garbage".to_owned(),
            format!("{pem}{pem}"),
            format!("{pem}trailing"),
            pem.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
            pem.replace("MII", "MIJ"),
            key.serialize_pem(),
            format!("{}{pem}", "\n".repeat(MAX_PEM_BYTES)),
        ] {
            let read = Leaf::from_pem(bad.as_bytes(), &oid());
            assert_eq!(read, Err(CertificateError::Unparseable), "{bad}");
        }
    }

    #[test]
    fn oid_is_dotted_notation() {
        assert_eq!(IdentitySource::default(), oid());
        assert_eq!(ExtensionOid::default().to_string(), "1.3.6.1.4.1.57264.1.1");
        assert_eq!("identity".parse::<ExtensionOid>(), Err(OidError));
    }
}
