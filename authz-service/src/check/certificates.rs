//! Client certificates as Envoy forwards them, each read once.
//!
//! An agent sends the same certificate with every Check, and reading it costs more than deciding.

use std::sync::Arc;

use percent_encoding::percent_decode_str;
use permission::certificate::MAX_PEM_BYTES;
use permission::{ExtensionOid, Leaf, Reason};
use quick_cache::Weighter;
use quick_cache::sync::Cache as Quick;

/// Most bytes of certificates that are remembered, about: some thousands of them.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// How many that are; the cache sizes its tables by it.
const USUAL_NUMBER: usize = 12_000;

/// Reads certificates, and remembers those that could be read by their whole text.
#[derive(Debug, Clone)]
pub(crate) struct Certificates {
    oid: ExtensionOid,
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
    /// The identity is taken from the extension `oid`.
    pub(super) fn new(oid: ExtensionOid) -> Self {
        let leaves = Quick::with_weighter(USUAL_NUMBER, MAX_BYTES, Weight);
        Self {
            oid,
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
        let leaf = Arc::new(Leaf::from_pem(&pem, &self.oid)?);
        self.leaves.insert(encoded.to_owned(), Arc::clone(&leaf));
        Ok(leaf)
    }
}

#[cfg(test)]
mod tests {
    use testbed::ClientCertificate;

    use super::*;

    #[test]
    fn the_same_text_is_read_once_and_another_one_anew() {
        let certificates = Certificates::new(ExtensionOid::default());
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
    fn what_is_remembered_is_bounded() {
        let certificates = Certificates::new(ExtensionOid::default());
        let pem = ClientCertificate::for_identity("agent-alpha").unwrap();
        // One certificate in spellings that together would take twice the room.
        for number in 0..200 {
            let spelling = format!("{}{}", pem.pem(), "%0A".repeat(60_000 + number));
            certificates.read(&spelling).unwrap();
        }
        assert!(certificates.leaves.weight() <= MAX_BYTES);
    }
}
