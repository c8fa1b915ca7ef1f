//! What our keys look like to a TPM, and whether what is found at a handle is such a key.

use p256::PublicKey;
use tss_esapi::Error;
use tss_esapi::attributes::{ObjectAttributes, ObjectAttributesBuilder};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::structures::{
    EccPoint, EccScheme, HashScheme, Public, PublicBuilder, PublicEccParametersBuilder,
    SymmetricDefinitionObject,
};

const ECDSA_SHA256: EccScheme = EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256));

/// The parent: a key that does nothing but wrap other keys.
pub(super) fn primary() -> Result<Public, Error> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_decrypt(true)
        .with_restricted(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new_restricted_decryption_key(
        SymmetricDefinitionObject::AES_128_CFB,
        EccCurve::NistP256,
    );
    ecc(attributes, parameters)
}

/// The key: made in this TPM, never to leave it, signs whatever digest it is given.
pub(super) fn signing_key(guessing: Guessing) -> Result<Public, Error> {
    let attributes = signing_attributes(guessing).build()?;
    let parameters =
        PublicEccParametersBuilder::new_unrestricted_signing_key(ECDSA_SHA256, EccCurve::NistP256);
    ecc(attributes, parameters)
}

/// What comes of wrong PINs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guessing {
    /// The TPM counts them, and locks the key after a few. It takes each power cut after a
    /// signature for one, too (TPM 2.0 Library, part 1, "Dictionary Attack Protection",
    /// "Non-orderly Shutdown").
    LocksTheKey,
    /// There is no PIN to guess.
    Pointless,
}

fn signing_attributes(guessing: Guessing) -> ObjectAttributesBuilder {
    ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(guessing == Guessing::Pointless)
        .with_sign_encrypt(true)
}

fn ecc(
    attributes: ObjectAttributes,
    parameters: PublicEccParametersBuilder,
) -> Result<Public, Error> {
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters.build()?)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// Why what is at a handle can't serve as our signing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Not an elliptic curve key, or none that could be read.
    #[error("what it holds is no elliptic curve key")]
    NotEcc,
    /// Another curve.
    #[error("its key isn't on the curve P-256")]
    OtherCurve,
    /// Another scheme.
    #[error("its key is made for another scheme than ECDSA with SHA-256")]
    OtherScheme,
    /// Doesn't sign.
    #[error("its key isn't a signing key")]
    NotForSigning,
    /// Signs only what the TPM made.
    #[error("its key is restricted: it signs only the TPM's own statements")]
    Restricted,
    /// Decrypts or agrees on keys, too.
    #[error("its key decrypts, too; a signing key should do nothing else")]
    Decrypts,
    /// `fixedTPM` or `fixedParent` isn't set.
    #[error("its key can be moved out of this TPM")]
    Exportable,
    /// `sensitiveDataOrigin` isn't set.
    #[error("its key was made outside the TPM")]
    Imported,
    /// `userWithAuth` isn't set.
    #[error("its key can be used only by way of a policy")]
    NeedsPolicy,
}

/// A key that may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fit {
    pub(super) public_key: PublicKey,
    /// A TPM doesn't tell whether a key has a PIN, but whether it counts wrong ones.
    pub(super) guessing: Guessing,
}

/// The key, if it is one that may serve.
pub(super) fn inspect(public: &Public) -> Result<Fit, Unfit> {
    let Public::Ecc {
        object_attributes: attributes,
        parameters,
        unique,
        ..
    } = public
    else {
        return Err(Unfit::NotEcc);
    };
    if parameters.ecc_curve() != EccCurve::NistP256 {
        return Err(Unfit::OtherCurve);
    }
    if !attributes.sign_encrypt() {
        return Err(Unfit::NotForSigning);
    }
    if attributes.restricted() {
        return Err(Unfit::Restricted);
    }
    if attributes.decrypt() {
        return Err(Unfit::Decrypts);
    }
    // With no scheme of its own the key takes the one that each command names.
    if ![ECDSA_SHA256, EccScheme::Null].contains(&parameters.ecc_scheme()) {
        return Err(Unfit::OtherScheme);
    }
    if !(attributes.fixed_tpm() && attributes.fixed_parent()) {
        return Err(Unfit::Exportable);
    }
    if !attributes.sensitive_data_origin() {
        return Err(Unfit::Imported);
    }
    if !attributes.user_with_auth() {
        return Err(Unfit::NeedsPolicy);
    }
    let guessing = if attributes.no_da() {
        Guessing::Pointless
    } else {
        Guessing::LocksTheKey
    };
    let public_key = public_key(unique).ok_or(Unfit::NotEcc)?;
    Ok(Fit {
        public_key,
        guessing,
    })
}

fn public_key(point: &EccPoint) -> Option<PublicKey> {
    let mut sec1 = vec![0x04];
    sec1.extend(left_pad(point.x().value())?);
    sec1.extend(left_pad(point.y().value())?);
    PublicKey::from_sec1_bytes(&sec1).ok()
}

/// A TPM may leave out leading zero bytes (part 1, "ECC Point Padding"); P-256 numbers have 32.
pub(super) fn left_pad(number: &[u8]) -> Option<[u8; 32]> {
    let mut padded = [0; 32];
    let start = padded.len().checked_sub(number.len())?;
    padded.get_mut(start..)?.copy_from_slice(number);
    Some(padded)
}

#[cfg(test)]
mod tests {
    use tss_esapi::structures::{EccParameter, KeyDerivationFunctionScheme, PublicEccParameters};

    use super::*;

    fn at_point(attributes: ObjectAttributesBuilder, scheme: EccScheme, curve: EccCurve) -> Public {
        // The generator: on the curve P-256, and as good as any.
        let generator = PublicKey::from_affine(p256::AffinePoint::GENERATOR).unwrap();
        let sec1 = generator.to_sec1_bytes();
        let number =
            |range: std::ops::Range<usize>| EccParameter::try_from(sec1[range].to_vec()).unwrap();
        PublicBuilder::new()
            .with_public_algorithm(PublicAlgorithm::Ecc)
            .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
            .with_object_attributes(attributes.build().unwrap())
            .with_ecc_parameters(
                // Not by the builder, which refuses some of what a TPM may hold.
                PublicEccParameters::new(
                    SymmetricDefinitionObject::Null,
                    scheme,
                    curve,
                    KeyDerivationFunctionScheme::Null,
                ),
            )
            .with_ecc_unique_identifier(EccPoint::new(number(1..33), number(33..65)))
            .build()
            .unwrap()
    }

    fn with(attributes: ObjectAttributesBuilder) -> Public {
        at_point(attributes, ECDSA_SHA256, EccCurve::NistP256)
    }

    #[test]
    fn our_own_key_passes_with_and_without_a_scheme() {
        for (scheme, guessing) in [
            (ECDSA_SHA256, Guessing::Pointless),
            (EccScheme::Null, Guessing::LocksTheKey),
        ] {
            let public = at_point(signing_attributes(guessing), scheme, EccCurve::NistP256);
            let public_key = PublicKey::from_affine(p256::AffinePoint::GENERATOR).unwrap();
            let fit = Fit {
                public_key,
                guessing,
            };
            assert_eq!(inspect(&public), Ok(fit));
        }
    }

    #[test]
    fn each_attribute_that_differs_is_named() {
        let ours = || signing_attributes(Guessing::Pointless);
        for (attributes, expected) in [
            (
                ours().with_sign_encrypt(false).with_decrypt(true),
                Unfit::NotForSigning,
            ),
            (ours().with_restricted(true), Unfit::Restricted),
            (ours().with_decrypt(true), Unfit::Decrypts),
            (ours().with_fixed_tpm(false), Unfit::Exportable),
            (
                ours().with_fixed_tpm(false).with_fixed_parent(false),
                Unfit::Exportable,
            ),
            (ours().with_sensitive_data_origin(false), Unfit::Imported),
            (
                ours()
                    .with_user_with_auth(false)
                    .with_admin_with_policy(true),
                Unfit::NeedsPolicy,
            ),
        ] {
            assert_eq!(inspect(&with(attributes)), Err(expected));
        }
    }

    #[test]
    fn another_curve_or_scheme_is_named() {
        let sha384 = EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha384));
        let key = |scheme, curve| at_point(signing_attributes(Guessing::Pointless), scheme, curve);
        assert_eq!(
            inspect(&key(sha384, EccCurve::NistP256)),
            Err(Unfit::OtherScheme)
        );
        assert_eq!(
            inspect(&key(ECDSA_SHA256, EccCurve::NistP384)),
            Err(Unfit::OtherCurve)
        );
    }

    #[test]
    fn a_point_off_the_curve_is_no_key() {
        assert_eq!(
            inspect(&signing_key(Guessing::Pointless).unwrap()),
            Err(Unfit::NotEcc)
        );
    }

    #[test]
    fn short_numbers_are_padded_and_long_ones_refused() {
        let mut padded = [0; 32];
        padded[30..].copy_from_slice(&[7, 9]);
        assert_eq!(left_pad(&[7, 9]), Some(padded));
        assert_eq!(left_pad(&[1; 32]), Some([1; 32]));
        assert_eq!(left_pad(&[]), Some([0; 32]));
        assert_eq!(left_pad(&[1; 33]), None);
    }
}
