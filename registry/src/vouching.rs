//! Roots' signatures on keys and scopes that are there, or that come from elsewhere.

use permission::{Claim, ECDSA_P256_SHA256, Statement, Timestamp};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Postgres, Row as _, SqlSafeStr};

use crate::import::Import;
use crate::writer::{WriteError, Writer};

/// A key or a scope from elsewhere.
#[derive(Debug, Clone)]
pub struct StatementRow {
    /// What it says.
    pub statement: Statement,
    /// What a root made of it, in DER.
    pub root_signature: Option<Vec<u8>>,
    /// When it was taken back.
    pub revoked_at: Option<Timestamp>,
}

/// What became of a [`StatementRow`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stated {
    /// It is there now.
    New,
    /// It was there, and bears the signature now.
    Signed,
    /// It was there like this.
    Unchanged,
    /// That id, or that key, is there for something else.
    Taken,
    /// A scope whose key is not there.
    KeyUnknown,
}

/// The row that says what a statement says: the same words, whatever its revocation.
const KEY: &str = "key_id = $1 AND public_key_spki_der = $2
    AND not_before = $3::text::timestamptz AND not_after = $4::text::timestamptz
    AND $5::text IS NULL";
const SCOPE: &str = "signing_key_id = $1
    AND EXISTS (SELECT FROM principal_signing_keys WHERE key_id = $1 AND public_key_spki_der = $2)
    AND not_before = $3::text::timestamptz AND not_after = $4::text::timestamptz
    AND destination = $5::text";

impl Writer {
    /// Puts signatures in DER on the keys and scopes that these statements are about, on all of
    /// them or none; returns the first statement whose row is not there any more, if there is one.
    pub async fn endorse(
        &mut self,
        signed: &[(Statement, Vec<u8>)],
    ) -> Result<Option<Statement>, WriteError> {
        let mut transaction = self.connection.begin().await?;
        for (statement, signature_der) in signed {
            sign(&mut transaction, statement, signature_der).await?;
            if !is_there(&mut transaction, statement).await? {
                return Ok(Some(statement.clone()));
            }
        }
        transaction.commit().await?;
        Ok(None)
    }
}

impl Import<'_> {
    /// Adds a key or a scope, or puts its signature on the one that is there.
    pub async fn state(&mut self, row: &StatementRow) -> Result<Stated, WriteError> {
        let connection = &mut *self.transaction;
        let StatementRow {
            statement,
            root_signature,
            revoked_at,
        } = row;
        if is_there(connection, statement).await? {
            let Some(signature_der) = root_signature else {
                return Ok(Stated::Unchanged);
            };
            return Ok(match sign(connection, statement, signature_der).await? {
                0 => Stated::Unchanged,
                _ => Stated::Signed,
            });
        }
        let insert = match statement.claim {
            Claim::Signs => {
                "INSERT INTO principal_signing_keys
                     (key_id, algorithm, public_key_spki_der, not_before, not_after, revoked_at,
                      root_signature)
                 SELECT $1, $8, $2, $3::text::timestamptz, $4::text::timestamptz,
                        $6::text::timestamptz, $7
                 WHERE $5::text IS NULL
                 ON CONFLICT DO NOTHING"
            }
            Claim::Delegates(_) => {
                "INSERT INTO principal_key_permissions
                     (signing_key_id, destination, not_before, not_after, revoked_at,
                      root_signature)
                 SELECT $1, $5, $3::text::timestamptz, $4::text::timestamptz,
                        $6::text::timestamptz, $7
                 FROM principal_signing_keys
                 WHERE key_id = $1 AND public_key_spki_der = $2 AND algorithm = $8"
            }
        };
        let inserted = bound(insert, statement)
            .bind(revoked_at.map(|time| time.to_string()))
            .bind(root_signature)
            .bind(ECDSA_P256_SHA256)
            .execute(connection)
            .await?;
        Ok(match (inserted.rows_affected(), &statement.claim) {
            (0, Claim::Signs) => Stated::Taken,
            (0, Claim::Delegates(_)) => Stated::KeyUnknown,
            _ => Stated::New,
        })
    }
}

/// Table and condition of the row that says what `statement` says.
fn place(statement: &Statement) -> (&'static str, &'static str) {
    match statement.claim {
        Claim::Signs => ("principal_signing_keys", KEY),
        Claim::Delegates(_) => ("principal_key_permissions", SCOPE),
    }
}

/// $1 to $5: key id, public key, window, and a scope's destination.
fn bound(sql: impl SqlSafeStr, statement: &Statement) -> Query<'_, Postgres, PgArguments> {
    let destination = match &statement.claim {
        Claim::Signs => None,
        Claim::Delegates(destination) => Some(destination.to_string()),
    };
    sqlx::query(sql)
        .bind(statement.key_id.as_str())
        .bind(statement.key.spki().as_der())
        .bind(statement.window.not_before().to_string())
        .bind(statement.window.not_after().to_string())
        .bind(destination)
}

async fn is_there(
    connection: &mut PgConnection,
    statement: &Statement,
) -> Result<bool, WriteError> {
    let (table, row) = place(statement);
    let sql = AssertSqlSafe(format!("SELECT EXISTS (SELECT FROM {table} WHERE {row})"));
    Ok(bound(sql, statement)
        .fetch_one(connection)
        .await?
        .try_get(0)?)
}

/// Returns how many rows bear another signature now than before.
async fn sign(
    connection: &mut PgConnection,
    statement: &Statement,
    signature_der: &[u8],
) -> Result<u64, WriteError> {
    let (table, row) = place(statement);
    let sql = AssertSqlSafe(format!(
        "UPDATE {table} SET root_signature = $6, updated_at = now()
         WHERE {row} AND root_signature IS DISTINCT FROM $6"
    ));
    let signed = bound(sql, statement)
        .bind(signature_der)
        .execute(connection);
    Ok(signed.await?.rows_affected())
}
