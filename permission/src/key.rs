//! Principals' keys, and the proof that one of them signed something.

use std::fmt;

use p256::pkcs8::{DecodePublicKey as _, EncodePublicKey as _};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

use crate::permission::Permission;
use crate::poca_key::PocaKey;
use crate::spki::Spki;

/// The one signature algorithm: ECDSA P-256 over SHA-256, signature in DER.
pub const ECDSA_P256_SHA256: &str = "ecdsa_p256_sha256";

/// A principal's public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PrincipalKey {
    /// SEC 1 uncompressed point, as ring takes it.
    point: Vec<u8>,
    spki: Spki,
}

/// Why bytes are no principal's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// An `algorithm` other than [`ECDSA_P256_SHA256`].
    #[error("algorithm is not {ECDSA_P256_SHA256}")]
    UnknownAlgorithm,
    /// Another curve, another kind of key, or not DER.
    #[error("public key is not a P-256 key in SubjectPublicKeyInfo DER")]
    NotP256,
}

/// The bytes were not signed by that key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("signature does not verify")]
pub struct SignatureInvalid;

impl PrincipalKey {
    /// Takes a stored key: the algorithm's name and the DER of its `SubjectPublicKeyInfo`.
    pub fn from_stored(algorithm: &str, spki_der: &[u8]) -> Result<Self, KeyError> {
        if algorithm != ECDSA_P256_SHA256 {
            return Err(KeyError::UnknownAlgorithm);
        }
        let key = p256::PublicKey::from_public_key_der(spki_der).map_err(|_| KeyError::NotP256)?;
        let spki = Spki::from_der(spki_der).map_err(|_| KeyError::NotP256)?;
        Ok(Self {
            point: key.to_sec1_bytes().to_vec(),
            spki,
        })
    }

    /// Takes a key of the `p256` crate.
    pub fn from_p256(key: &p256::PublicKey) -> Result<Self, KeyError> {
        let der = key.to_public_key_der().map_err(|_| KeyError::NotP256)?;
        Self::from_stored(ECDSA_P256_SHA256, der.as_bytes())
    }

    /// The key as stored.
    pub fn spki(&self) -> &Spki {
        &self.spki
    }

    pub(crate) fn check(
        &self,
        message: &[u8],
        signature_der: &[u8],
    ) -> Result<(), SignatureInvalid> {
        // ring: six times faster here than the p256 crate, and as strict about DER.
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point)
            .verify(message, signature_der)
            .map_err(|_| SignatureInvalid)
    }
}

impl fmt::Debug for PrincipalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrincipalKey({})", self.spki.to_hex())
    }
}

/// Something whose signature was checked; only the check in this module makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T>(T);

impl Verified<Permission> {
    /// Checks that `key` signed the canonical bytes of `permission`.
    pub fn new(
        permission: Permission,
        signature_der: &[u8],
        key: &PrincipalKey,
    ) -> Result<Self, SignatureInvalid> {
        key.check(&permission.canonical_bytes(), signature_der)?;
        Ok(Self(permission))
    }
}

impl Verified<PocaKey> {
    /// Checks that `key` signed the canonical bytes of an agent's key.
    pub fn of_poca_key(
        poca_key: PocaKey,
        signature_der: &[u8],
        key: &PrincipalKey,
    ) -> Result<Self, SignatureInvalid> {
        key.check(&poca_key.canonical_bytes(), signature_der)?;
        Ok(Self(poca_key))
    }
}

impl<T> Verified<T> {
    /// What was signed.
    pub fn get(&self) -> &T {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::signature::{Signer as _, Verifier as _};
    use p256::ecdsa::{DerSignature, Signature, SigningKey, VerifyingKey};
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_slice(&[seed; 32]).unwrap()
    }

    fn principal(key: &SigningKey) -> PrincipalKey {
        PrincipalKey::from_p256(&key.verifying_key().into()).unwrap()
    }

    #[test]
    fn only_p256_keys_under_the_known_algorithm_are_taken() {
        let spki = principal(&key(1)).spki().as_der().to_vec();
        assert!(PrincipalKey::from_stored(ECDSA_P256_SHA256, &spki).is_ok());
        let unknown = PrincipalKey::from_stored("ed25519", &spki);
        assert_eq!(unknown, Err(KeyError::UnknownAlgorithm));
        let longer = [spki.as_slice(), b"\0"].concat();
        let mut off_curve = spki.clone();
        *off_curve.last_mut().unwrap() ^= 1;
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let p384 = rcgen::PublicKeyData::subject_public_key_info(&p384);
        for bad in [&[], &spki[1..], &longer, &off_curve, p384.as_slice()] {
            let read = PrincipalKey::from_stored(ECDSA_P256_SHA256, bad);
            assert_eq!(read, Err(KeyError::NotP256), "{bad:x?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// We verify with ring; the p256 crate is the second opinion.
        #[test]
        fn ring_and_p256_agree(seed in 1u8..128, message: Vec<u8>, flip: prop::sample::Index, bit in 0u8..9) {
            let signer = key(seed);
            let signature: DerSignature = signer.sign(&message);
            let mut der = signature.as_bytes().to_vec();
            if bit < 8 {
                let at = flip.index(der.len());
                der[at] ^= 1 << bit;
            }
            let ours = principal(&signer).check(&message, &der).is_ok();
            let theirs = DerSignature::from_bytes(&der)
                .is_ok_and(|sig| VerifyingKey::from(&signer).verify(&message, &sig).is_ok());
            prop_assert_eq!(ours, theirs);
            prop_assert_eq!(ours, bit == 8);
        }

        /// TPMs make both; neither is malleable into an allow of something else.
        #[test]
        fn high_and_low_s_both_verify(seed in 1u8..128, message: Vec<u8>) {
            let signer = key(seed);
            let low: Signature = signer.sign(&message);
            let high = Signature::from_scalars(low.r(), -*low.s()).unwrap();
            for signature in [low, high] {
                prop_assert!(principal(&signer).check(&message, signature.to_der().as_bytes()).is_ok());
            }
        }
    }
}
