//! What principals and admins do to the registry: register, delegate, grant, revoke, list.

use std::cmp::Reverse;
use std::time::Duration;

use permission::{
    ECDSA_P256_SHA256, Id, Permission, PrincipalKey, Scope, Signer, Timestamp, TrustRoots, Window,
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::time::timeout;

use crate::connection::{OpenError, connect_options, registry_id};
use crate::lookup::window;
use crate::{poca_rows, schema};

/// Longest wait for the database, connecting included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest a statement of the CLI may run.
const STATEMENT_TIMEOUT: &str = "30s";

/// Why a change was refused or failed; nothing of it was done.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The id, or the public key, is already registered for something else.
    #[error("{0} is already registered")]
    Exists(&'static str),
    /// The role may not change the registry, or the database is read-only.
    #[error("this database role may not change the registry: {0}")]
    Forbidden(#[source] sqlx::Error),
    /// A row that can't be what it should be.
    #[error("table {table}, column {column}: unusable value in row {row}")]
    Inconsistent {
        /// Where.
        table: &'static str,
        /// Where in it.
        column: &'static str,
        /// Which row.
        row: String,
    },
    /// Anything else the database says.
    #[error("database failed: {0}")]
    Failed(#[source] sqlx::Error),
}

impl From<sqlx::Error> for WriteError {
    fn from(error: sqlx::Error) -> Self {
        let code = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code);
        match code.as_deref() {
            // insufficient_privilege, read_only_sql_transaction
            Some("42501" | "25006") => Self::Forbidden(error),
            // unique_violation
            Some("23505") => match error
                .as_database_error()
                .and_then(|error| error.constraint())
            {
                Some("principal_signing_keys_public_key_spki_der_key") => {
                    Self::Exists("public key")
                }
                Some("principal_signing_keys_pkey") => Self::Exists("key id"),
                Some("permission_registry_pkey") => Self::Exists("permission id"),
                Some("poca_keys_pkey") => Self::Exists("PoCA key id"),
                _ => Self::Failed(error),
            },
            _ => Self::Failed(error),
        }
    }
}

/// What to do where a row of the same id is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExisting {
    /// Refuse.
    Refuse,
    /// Put the new one in its place, as if the old one had never been revoked.
    Replace,
}

/// One connection that changes the registry; needs the role `agent_gateway_writer`.
#[derive(Debug)]
pub struct Writer {
    pub(crate) connection: PgConnection,
    pub(crate) trust_roots: Option<TrustRoots>,
}

impl Writer {
    /// Connects, and makes sure that the schema is the one this program knows.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        let options = connect_options(url)?;
        let mut connection = timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options))
            .await
            .map_err(|_| OpenError::TimedOut(CONNECT_TIMEOUT))?
            .map_err(OpenError::Unreachable)?;
        let limit = AssertSqlSafe(format!("SET statement_timeout = '{STATEMENT_TIMEOUT}'"));
        connection
            .execute(limit)
            .await
            .map_err(OpenError::Unreachable)?;
        schema::check(&mut connection).await?;
        Ok(Self {
            connection,
            trust_roots: None,
        })
    }

    /// Judges rows as a service with these roots of trust does.
    #[must_use]
    pub fn trusting(self, trust_roots: Option<TrustRoots>) -> Self {
        Self {
            trust_roots,
            ..self
        }
    }

    /// The roots of trust by which rows are judged.
    pub fn trust_roots(&self) -> Option<&TrustRoots> {
        self.trust_roots.as_ref()
    }

    /// What the registry says that it is; empty if nothing.
    pub async fn registry_id(&mut self) -> Result<String, WriteError> {
        Ok(registry_id(&mut self.connection).await?)
    }

    /// The database's clock, which is not this machine's.
    pub async fn now(&mut self) -> Result<Timestamp, WriteError> {
        let micros = "SELECT (extract(epoch FROM now()) * 1000000)::int8";
        let micros = sqlx::query_scalar(micros)
            .fetch_one(&mut self.connection)
            .await?;
        Timestamp::from_unix_micros(micros).map_err(|_| WriteError::Inconsistent {
            table: "(clock)",
            column: "now()",
            row: micros.to_string(),
        })
    }

    /// Registers a principal's key.
    pub async fn register_key(
        &mut self,
        key_id: &Id,
        key: &PrincipalKey,
        window: &Window,
        root_signature: Option<&[u8]>,
    ) -> Result<(), WriteError> {
        sqlx::query(
            "INSERT INTO principal_signing_keys
                 (key_id, algorithm, public_key_spki_der, not_before, not_after, root_signature)
             VALUES ($1, $2, $3, $4::text::timestamptz, $5::text::timestamptz, $6)",
        )
        .bind(key_id.as_str())
        .bind(ECDSA_P256_SHA256)
        .bind(key.spki().as_der())
        .bind(window.not_before().to_string())
        .bind(window.not_after().to_string())
        .bind(root_signature)
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    /// Lets a key delegate destinations, all of them or none.
    pub async fn grant_scope(&mut self, key_id: &Id, scopes: &[Scope]) -> Result<(), WriteError> {
        let mut transaction = self.connection.begin().await?;
        for scope in scopes {
            sqlx::query(
                "INSERT INTO principal_key_permissions
                     (signing_key_id, destination, not_before, not_after, root_signature)
                 VALUES ($1, $2, $3::text::timestamptz, $4::text::timestamptz, $5)",
            )
            .bind(key_id.as_str())
            .bind(scope.destination.to_string())
            .bind(scope.window.not_before().to_string())
            .bind(scope.window.not_after().to_string())
            .bind(&scope.root_signature)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Stores signed permissions, all of them or none.
    pub async fn grant(
        &mut self,
        signed: &[(Permission, Vec<u8>)],
        on_existing: OnExisting,
    ) -> Result<(), WriteError> {
        let conflict = match on_existing {
            OnExisting::Refuse => "",
            OnExisting::Replace => {
                "ON CONFLICT (permission_id) DO UPDATE
                 SET signing_key_id = EXCLUDED.signing_key_id,
                     subject_identity = EXCLUDED.subject_identity,
                     subject_public_key_spki_der = EXCLUDED.subject_public_key_spki_der,
                     destination = EXCLUDED.destination,
                     not_before = EXCLUDED.not_before, not_after = EXCLUDED.not_after,
                     signature = EXCLUDED.signature, revoked_at = NULL, updated_at = now()"
            }
        };
        let mut transaction = self.connection.begin().await?;
        for (permission, signature_der) in signed {
            let insert = format!(
                "INSERT INTO permission_registry
                     (permission_id, signing_key_id, subject_identity,
                      subject_public_key_spki_der, destination, not_before, not_after, signature)
                 VALUES ($1, $2, $3, $4, $5, $6::text::timestamptz, $7::text::timestamptz, $8)
                 {conflict}"
            );
            sqlx::query(AssertSqlSafe(insert))
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
        transaction.commit().await?;
        Ok(())
    }

    /// The registered key of that id, as `decide` takes it.
    pub async fn signer(&mut self, key_id: &Id) -> Result<Option<Signer>, WriteError> {
        type Row = (String, Vec<u8>, i64, i64, bool, Option<Vec<u8>>);
        let row: Option<Row> = sqlx::query_as(
            "SELECT algorithm, public_key_spki_der,
                    (extract(epoch FROM not_before) * 1000000)::int8,
                    (extract(epoch FROM not_after) * 1000000)::int8,
                    revoked_at IS NOT NULL, root_signature
             FROM principal_signing_keys WHERE key_id = $1",
        )
        .bind(key_id.as_str())
        .fetch_optional(&mut self.connection)
        .await?;
        let Some((algorithm, spki, not_before, not_after, revoked, root_signature)) = row else {
            return Ok(None);
        };
        let table = "principal_signing_keys";
        let key = PrincipalKey::from_stored(&algorithm, &spki)
            .map_err(|_| unusable(table, "public_key_spki_der", key_id))?;
        let window =
            window(not_before, not_after).ok_or_else(|| unusable(table, "not_before", key_id))?;
        Ok(Some(Signer {
            key,
            window,
            revoked,
            root_signature,
        }))
    }

    /// The scopes of a key that were not revoked, those that end last first, as `decide` takes them.
    pub async fn scopes(&mut self, key_id: &Id) -> Result<Vec<Scope>, WriteError> {
        let key_ids = [key_id.to_string()];
        let mut scopes = poca_rows::scopes(&mut self.connection, &key_ids).await?;
        let mut scopes = scopes.remove(key_id.as_str()).unwrap_or_default();
        scopes.sort_by_key(|scope| Reverse(scope.window.not_after()));
        Ok(scopes)
    }
}

fn unusable(table: &'static str, column: &'static str, row: &dyn ToString) -> WriteError {
    WriteError::Inconsistent {
        table,
        column,
        row: row.to_string(),
    }
}
