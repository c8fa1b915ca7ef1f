//! Client certificates as Envoy forwards them, each read once.
//!
//! An agent sends the same certificate with every Check, and reading it costs more than deciding.

use std::sync::Arc;

use percent_encoding::percent_decode_str;
use permission::certificate::MAX_PEM_BYTES;
use permission::{IdentitySource, Leaf, Reason};
use quick_cache::Weighter;
use quick_cache::sync::Cache as Quick;

/// Most bytes of certificates that are remembered, about: some thousands of them.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// How many that are; the cache sizes its tables by it.
const USUAL_NUMBER: usize = 12_000;

/// Reads certificates, and remembers those that could be read by their whole text.
#[derive(Debug, Clone)]
pub(crate) struct Certificates {
    source: IdentitySource,
    leaves: Arc<Quick<String, Arc<Leaf>, Weight>>,
}

#[derive(Debug, Clone)]
struct Weight;

impl Weighter<String, Arc<Leaf>> for Weight {
    fn weight(&self, encoded: &String, leaf: &Arc<Leaf>) -> u64 {
        // Its place in the cache, and what the allocator adds to the texts.
        const LEAF: usize = 250;
        (encoded.len() + leaf.identity.as_str().len() + leaf.spki.as_der().len() + LEAF) as u64
    }
}

impl Certificates {
    /// The identity is taken from `source`.
    pub(super) fn new(source: IdentitySource) -> Self {
        let leaves = Quick::with_weighter(USUAL_NUMBER, MAX_BYTES, Weight);
        Self {
            source,
            leaves: Arc::new(leaves),
        }
    }

    /// The leaf in `encoded`, a PEM text in URL encoding.
    pub(crate) fn read(&self, encoded: &str) -> Result<Arc<Leaf>, Reason> {
        if encoded.is_empty() {
            return Err(Reason::NoClientCertificate);
        }
        // Each byte of PEM takes three at most in URL encoding.
        if encoded.len() > 3 * MAX_PEM_BYTES {
            return Err(Reason::CertificateUnparseable);
        }
        if let Some(leaf) = self.leaves.get(encoded) {
            return Ok(leaf);
        }
        let pem: Vec<u8> = percent_decode_str(encoded).collect();
        let leaf = Arc::new(self.leaf(&pem)?);
        self.leaves.insert(encoded.to_owned(), Arc::clone(&leaf));
        Ok(leaf)
    }
}

impl Certificates {
    /// The leaf in a PEM text, which is not remembered.
    pub(super) fn leaf(&self, pem: &[u8]) -> Result<Leaf, Reason> {
        Ok(Leaf::from_pem(pem, &self.source)?)
    }

    /// As [`Certificates::read`], of the first of several: the leaf of a chain.
    pub(super) fn read_first(&self, encoded: &str) -> Result<Arc<Leaf>, Reason> {
        const END: &str = "-----END CERTIFICATE-----";
        if encoded.len() > 3 * MAX_PEM_BYTES {
            return Err(Reason::CertificateUnparseable);
        }
        let chain = percent_decode_str(encoded).decode_utf8_lossy();
        let (first, _) = chain
            .split_once(END)
            .ok_or(Reason::CertificateUnparseable)?;
        // PEM holds nothing that URL decoding would change.
        self.read(&format!("{first}{END}\n"))
    }
}

#[cfg(test)]
mod tests {
    use testbed::ClientCertificate;

    use super::*;

    #[test]
    fn the_same_text_is_read_once_and_another_one_anew() {
        let certificates = Certificates::new(IdentitySource::default());
        let alpha = ClientCertificate::for_identity("agent-alpha").unwrap();
        let beta = ClientCertificate::for_identity("agent-beta").unwrap();
        let first = certificates.read(alpha.pem()).unwrap();
        assert!(Arc::ptr_eq(
            &first,
            &certificates.read(alpha.pem()).unwrap()
        ));
        let other = certificates.read(beta.pem()).unwrap();
        assert_eq!(other.identity.as_str(), "agent-beta");
        // One more byte is another certificate, and this one can't be read.
        let changed = format!("{}x", alpha.pem());
        assert_eq!(
            certificates.read(&changed),
            Err(Reason::CertificateUnparseable)
        );
    }

    #[test]
    fn of_a_chain_the_leaf_counts() {
        let certificates = Certificates::new(IdentitySource::default());
        let alpha = ClientCertificate::for_identity("agent-alpha").unwrap();
        let beta = ClientCertificate::for_identity("agent-beta").unwrap();
        let chain = format!("{}{}", alpha.pem(), beta.pem());
        let chain = chain.replace('+', "%2B").replace('\n', "%0A");
        let leaf = certificates.read_first(&chain).unwrap();
        assert_eq!(leaf.identity.as_str(), "agent-alpha");
        assert_eq!(certificates.read_first(alpha.pem()).unwrap(), leaf);
        assert_eq!(
            certificates.read(&chain),
            Err(Reason::CertificateUnparseable)
        );
        for other in ["", "x", "-----END CERTIFICATE-----", "%2B"] {
            let read = certificates.read_first(other);
            assert_eq!(read, Err(Reason::CertificateUnparseable), "{other}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let certificates = Certificates::new(IdentitySource::default());
        let pem = ClientCertificate::for_identity("agent-alpha").unwrap();
        // One certificate in spellings that together would take twice the room.
        for number in 0..200 {
            let spelling = format!("{}{}", pem.pem(), "%0A".repeat(60_000 + number));
            certificates.read(&spelling).unwrap();
        }
        assert!(certificates.leaves.weight() <= MAX_BYTES);
    }
}
