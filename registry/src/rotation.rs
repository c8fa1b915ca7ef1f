//! One key takes the place of another, in one transaction.

use permission::{ECDSA_P256_SHA256, Id, Permission, PocaKey, Scope, Signer, Timestamp};
use sqlx::Connection as _;

use crate::poca_rows;
use crate::writer::{OnExisting, WriteError, Writer};

/// A key that takes over from another.
#[derive(Debug)]
pub struct Rotation<'a> {
    /// The key whose signatures end.
    pub old: &'a Id,
    /// When; not later than they would have.
    pub old_ends: Timestamp,
    /// What a root made of that.
    pub old_root_signature: Option<&'a [u8]>,
    /// The id of the key that takes over.
    pub new: &'a Id,
    /// The key itself.
    pub key: &'a Signer,
    /// What it may delegate.
    pub scopes: &'a [Scope],
    /// What it signed, with signatures in DER.
    pub permissions: &'a [(Permission, Vec<u8>)],
    /// As the permissions, agents' `PoCA` keys.
    pub poca_keys: &'a [(PocaKey, Vec<u8>)],
}

impl Writer {
    /// Does all of it or nothing.
    pub async fn rotate(&mut self, rotation: &Rotation<'_>) -> Result<(), WriteError> {
        let mut transaction = self.connection.begin().await?;
        sqlx::query(
            "INSERT INTO principal_signing_keys
                 (key_id, algorithm, public_key_spki_der, not_before, not_after, root_signature)
             VALUES ($1, $2, $3, $4::text::timestamptz, $5::text::timestamptz, $6)",
        )
        .bind(rotation.new.as_str())
        .bind(ECDSA_P256_SHA256)
        .bind(rotation.key.key.spki().as_der())
        .bind(rotation.key.window.not_before().to_string())
        .bind(rotation.key.window.not_after().to_string())
        .bind(&rotation.key.root_signature)
        .execute(&mut *transaction)
        .await?;
        for scope in rotation.scopes {
            sqlx::query(
                "INSERT INTO principal_key_permissions
                     (signing_key_id, destination, not_before, not_after, root_signature)
                 VALUES ($1, $2, $3::text::timestamptz, $4::text::timestamptz, $5)",
            )
            .bind(rotation.new.as_str())
            .bind(scope.destination.to_string())
            .bind(scope.window.not_before().to_string())
            .bind(scope.window.not_after().to_string())
            .bind(&scope.root_signature)
            .execute(&mut *transaction)
            .await?;
        }
        for (permission, signature_der) in rotation.permissions {
            sqlx::query(
                "INSERT INTO permission_registry
                     (permission_id, signing_key_id, subject_identity,
                      subject_public_key_spki_der, destination, not_before, not_after, signature)
                 VALUES ($1, $2, $3, $4, $5, $6::text::timestamptz, $7::text::timestamptz, $8)",
            )
            .bind(permission.permission_id.as_str())
            .bind(permission.signing_key_id.as_str())
            .bind(permission.subject_identity.as_str())
            .bind(permission.subject_spki.as_der())
            .bind(permission.destination.to_string())
            .bind(permission.window.not_before().to_string())
            .bind(permission.window.not_after().to_string())
            .bind(signature_der)
            .execute(&mut *transaction)
            .await?;
        }
        for (key, signature_der) in rotation.poca_keys {
            poca_rows::insert(&mut transaction, key, signature_der, OnExisting::Refuse).await?;
        }
        sqlx::query(
            "UPDATE principal_signing_keys
             SET not_after = least(not_after, $2::text::timestamptz), root_signature = $3,
                 updated_at = now()
             WHERE key_id = $1 AND revoked_at IS NULL",
        )
        .bind(rotation.old.as_str())
        .bind(rotation.old_ends.to_string())
        .bind(rotation.old_root_signature)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }
}
