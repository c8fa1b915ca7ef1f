//! Client certificates as Envoy forwards them, each read once.
//!
//! An agent sends the same certificate with every Check, and reading it costs more than deciding.

use std::sync::Arc;

use moka::sync::Cache as Moka;
use percent_encoding::percent_decode_str;
use permission::certificate::MAX_PEM_BYTES;
use permission::{ExtensionOid, Leaf, Reason};

/// Most bytes of certificates that are remembered, about: some thousands of them.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Reads certificates, and remembers those that could be read by their whole text.
#[derive(Debug, Clone)]
pub(super) struct Certificates {
    oid: ExtensionOid,
    leaves: Moka<String, Arc<Leaf>>,
}

impl Certificates {
    /// The identity is taken from the extension `oid`.
    pub(super) fn new(oid: ExtensionOid) -> Self {
        let leaves = Moka::builder()
            .weigher(|encoded: &String, _: &Arc<Leaf>| {
                const LEAF: usize = 600;
                u32::try_from(encoded.len() + LEAF).unwrap_or(u32::MAX)
            })
            .max_capacity(MAX_BYTES)
            .build();
        Self { oid, leaves }
    }

    /// The leaf in `encoded`, a PEM text in URL encoding.
    pub(super) fn read(&self, encoded: &str) -> Result<Arc<Leaf>, Reason> {
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
        certificates.leaves.run_pending_tasks();
        assert!(certificates.leaves.weighted_size() <= MAX_BYTES);
    }
}
