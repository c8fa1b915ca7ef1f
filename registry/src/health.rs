//! What `doctor` asks the database.

use std::time::Duration;

use crate::writer::{WriteError, Writer};

/// What the role that is connected may do.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Rights {
    /// Its name.
    pub role: String,
    /// Whether it may add and change rows of all tables.
    pub may_write: bool,
    /// Whether the database takes no changes: a standby, or so set.
    pub read_only: bool,
}

/// How many rows that count now end soon.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub struct Ending {
    /// Signing keys.
    pub keys: i64,
    /// Scopes.
    pub scopes: i64,
    /// Permissions.
    pub permissions: i64,
    /// Agents' `PoCA` keys.
    pub poca_keys: i64,
}

impl Writer {
    /// What this connection may do.
    pub async fn rights(&mut self) -> Result<Rights, WriteError> {
        Ok(sqlx::query_as(
            "SELECT current_user::text AS role,
                    (SELECT bool_and(has_table_privilege(name, 'INSERT')
                                     AND has_table_privilege(name, 'UPDATE'))
                     FROM unnest(ARRAY['permission_registry', 'principal_signing_keys',
                                       'principal_key_permissions', 'poca_keys']) AS name)
                    AS may_write,
                    current_setting('transaction_read_only') = 'on' AS read_only",
        )
        .fetch_one(&mut self.connection)
        .await?)
    }

    /// What ends within that time from now.
    pub async fn ending_within(&mut self, limit: Duration) -> Result<Ending, WriteError> {
        Ok(sqlx::query_as(
            "WITH soon AS (SELECT now() AS begins, now() + $1 * interval '1 second' AS ends)
             SELECT (SELECT count(*) FROM principal_signing_keys, soon
                     WHERE revoked_at IS NULL AND not_after > begins AND not_after <= ends) AS keys,
                    (SELECT count(*) FROM principal_key_permissions, soon
                     WHERE revoked_at IS NULL AND not_after > begins AND not_after <= ends) AS scopes,
                    (SELECT count(*) FROM permission_registry, soon
                     WHERE revoked_at IS NULL AND not_after > begins AND not_after <= ends)
                    AS permissions,
                    (SELECT count(*) FROM poca_keys, soon
                     WHERE revoked_at IS NULL AND not_after > begins AND not_after <= ends)
                    AS poca_keys",
        )
        .bind(limit.as_secs_f64())
        .fetch_one(&mut self.connection)
        .await?)
    }
}
