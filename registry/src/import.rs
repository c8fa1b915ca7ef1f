//! Signed rows from elsewhere: stored together, or not at all.

use permission::{Permission, Timestamp, TrustRoots};
use sqlx::{Connection as _, Postgres, Transaction};

use crate::inspect::{Stored, select_stored};
use crate::lookup::CandidateRow;
use crate::writer::{WriteError, Writer};

/// A permission or an agent's `PoCA` key, its signature, and when it was taken back.
#[derive(Debug, Clone)]
pub struct SignedRow<T> {
    /// What was signed.
    pub signed: T,
    /// DER.
    pub signature: Vec<u8>,
    /// If it was.
    pub revoked_at: Option<Timestamp>,
}

/// A transaction that adds rows; dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct Import<'a> {
    pub(crate) transaction: Transaction<'a, Postgres>,
    pub(crate) trust_roots: Option<TrustRoots>,
}

/// What became of some rows.
#[derive(Debug)]
pub struct Added<S> {
    /// How many are new.
    pub new: u64,
    /// What the registry holds now under the ids of the rows, in no order. A row whose key is
    /// not registered is not among them.
    pub stored: Vec<S>,
}

impl Writer {
    /// Begins to add rows.
    pub async fn import(&mut self) -> Result<Import<'_>, WriteError> {
        Ok(Import {
            transaction: self.connection.begin().await?,
            trust_roots: self.trust_roots.clone(),
        })
    }
}

impl Import<'_> {
    /// Adds the permissions whose ids are free; a row that is there is left as it is. Of several rows
    /// with one id the first is added.
    pub async fn add(
        &mut self,
        rows: &[SignedRow<Permission>],
    ) -> Result<Added<Stored>, WriteError> {
        let ids = column(rows, |row| row.signed.permission_id.to_string());
        let inserted = sqlx::query(
            "INSERT INTO permission_registry
                 (permission_id, signing_key_id, subject_identity,
                  subject_public_key_spki_der, destination, not_before, not_after, signature,
                  revoked_at)
             SELECT r.id, r.key_id, r.identity, r.spki, r.destination,
                    r.not_before::timestamptz, r.not_after::timestamptz, r.signature,
                    r.revoked_at::timestamptz
             FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[],
                         $7::text[], $8::bytea[], $9::text[])
                  WITH ORDINALITY
                  AS r (id, key_id, identity, spki, destination, not_before, not_after, signature,
                        revoked_at, number)
             JOIN principal_signing_keys k ON k.key_id = r.key_id
             ORDER BY r.number
             ON CONFLICT (permission_id) DO NOTHING",
        )
        .bind(&ids)
        .bind(column(rows, |row| row.signed.signing_key_id.to_string()))
        .bind(column(rows, |row| row.signed.subject_identity.to_string()))
        .bind(column(rows, |row| {
            row.signed.subject_spki.as_der().to_vec()
        }))
        .bind(column(rows, |row| row.signed.destination.to_string()))
        .bind(column(rows, |row| {
            row.signed.window.not_before().to_string()
        }))
        .bind(column(rows, |row| {
            row.signed.window.not_after().to_string()
        }))
        .bind(column(rows, |row| row.signature.clone()))
        .bind(column(rows, |row| {
            row.revoked_at.map(|time| time.to_string())
        }))
        .execute(&mut *self.transaction)
        .await?;
        let stored: Vec<CandidateRow> =
            sqlx::query_as(select_stored!("WHERE permission_id = ANY($1)"))
                .bind(&ids)
                .fetch_all(&mut *self.transaction)
                .await?;
        Ok(Added {
            new: inserted.rows_affected(),
            stored: Stored::all(stored, self.trust_roots.as_ref()),
        })
    }

    /// Keeps what was added.
    pub async fn commit(self) -> Result<(), WriteError> {
        Ok(self.transaction.commit().await?)
    }
}

/// One column of all rows.
pub(crate) fn column<T, C>(rows: &[SignedRow<T>], read: impl Fn(&SignedRow<T>) -> C) -> Vec<C> {
    rows.iter().map(read).collect()
}
