//! What stands in the registry, as stored: nothing here was verified.

use permission::{Timestamp, Window};

use crate::lookup::window;
use crate::writer::{WriteError, Writer};

/// A registered key, as listed.
#[derive(Debug, Clone)]
pub struct KeyEntry {
    /// Its id.
    pub key_id: String,
    /// SPKI DER.
    pub spki: Vec<u8>,
    /// When its signatures count.
    pub window: Window,
    /// When it was taken back.
    pub revoked_at: Option<Timestamp>,
}

/// A scope, as listed.
#[derive(Debug, Clone)]
pub struct ScopeEntry {
    /// Whose.
    pub signing_key_id: String,
    /// What may be delegated, as stored.
    pub destination: String,
    /// When.
    pub window: Window,
    /// When it was taken back.
    pub revoked_at: Option<Timestamp>,
}

/// A permission, as listed; nothing about it was verified.
#[derive(Debug, Clone)]
pub struct PermissionEntry {
    /// Its id.
    pub permission_id: String,
    /// Who signed, says the row.
    pub signing_key_id: String,
    /// The agent.
    pub subject_identity: String,
    /// The agent's key, SPKI DER.
    pub subject_spki: Vec<u8>,
    /// What may be reached.
    pub destination: String,
    /// When.
    pub window: Window,
    /// When it was taken back.
    pub revoked_at: Option<Timestamp>,
}

/// The columns that the three tables share; times in microseconds since the Unix epoch.
#[derive(sqlx::FromRow)]
struct Validity {
    row: String,
    not_before: i64,
    not_after: i64,
    revoked_at: Option<i64>,
}

impl Validity {
    fn read(&self, table: &'static str) -> Result<(Window, Option<Timestamp>), WriteError> {
        let unusable = |column| WriteError::Inconsistent {
            table,
            column,
            row: self.row.clone(),
        };
        let window =
            window(self.not_before, self.not_after).ok_or_else(|| unusable("not_before"))?;
        let revoked_at = self.revoked_at.map(Timestamp::from_unix_micros).transpose();
        Ok((window, revoked_at.map_err(|_| unusable("revoked_at"))?))
    }
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    key_id: String,
    public_key_spki_der: Vec<u8>,
    #[sqlx(flatten)]
    validity: Validity,
}

#[derive(sqlx::FromRow)]
struct ScopeRow {
    signing_key_id: String,
    destination: String,
    #[sqlx(flatten)]
    validity: Validity,
}

#[derive(sqlx::FromRow)]
struct PermissionRow {
    permission_id: String,
    signing_key_id: String,
    subject_identity: String,
    subject_public_key_spki_der: Vec<u8>,
    destination: String,
    #[sqlx(flatten)]
    validity: Validity,
}

impl Writer {
    /// All keys, by id.
    pub async fn keys(&mut self) -> Result<Vec<KeyEntry>, WriteError> {
        let rows: Vec<KeyRow> = sqlx::query_as(
            "SELECT key_id, public_key_spki_der, key_id AS row,
                    (extract(epoch FROM not_before) * 1000000)::int8 AS not_before,
                    (extract(epoch FROM not_after) * 1000000)::int8 AS not_after,
                    (extract(epoch FROM revoked_at) * 1000000)::int8 AS revoked_at
             FROM principal_signing_keys ORDER BY key_id",
        )
        .fetch_all(&mut self.connection)
        .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// All scopes, by key and destination.
    pub async fn all_scopes(&mut self) -> Result<Vec<ScopeEntry>, WriteError> {
        let rows: Vec<ScopeRow> = sqlx::query_as(
            "SELECT signing_key_id, destination, id::text AS row,
                    (extract(epoch FROM not_before) * 1000000)::int8 AS not_before,
                    (extract(epoch FROM not_after) * 1000000)::int8 AS not_after,
                    (extract(epoch FROM revoked_at) * 1000000)::int8 AS revoked_at
             FROM principal_key_permissions ORDER BY signing_key_id, destination, id",
        )
        .fetch_all(&mut self.connection)
        .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// All permissions, by agent, destination and id.
    pub async fn permissions(&mut self) -> Result<Vec<PermissionEntry>, WriteError> {
        let rows: Vec<PermissionRow> = sqlx::query_as(
            "SELECT permission_id, signing_key_id, subject_identity, subject_public_key_spki_der,
                    destination, permission_id AS row,
                    (extract(epoch FROM not_before) * 1000000)::int8 AS not_before,
                    (extract(epoch FROM not_after) * 1000000)::int8 AS not_after,
                    (extract(epoch FROM revoked_at) * 1000000)::int8 AS revoked_at
             FROM permission_registry ORDER BY subject_identity, destination, permission_id",
        )
        .fetch_all(&mut self.connection)
        .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }
}

impl TryFrom<KeyRow> for KeyEntry {
    type Error = WriteError;

    fn try_from(row: KeyRow) -> Result<Self, WriteError> {
        let (window, revoked_at) = row.validity.read("principal_signing_keys")?;
        let KeyRow {
            key_id,
            public_key_spki_der: spki,
            ..
        } = row;
        Ok(Self {
            key_id,
            spki,
            window,
            revoked_at,
        })
    }
}

impl TryFrom<ScopeRow> for ScopeEntry {
    type Error = WriteError;

    fn try_from(row: ScopeRow) -> Result<Self, WriteError> {
        let (window, revoked_at) = row.validity.read("principal_key_permissions")?;
        let ScopeRow {
            signing_key_id,
            destination,
            ..
        } = row;
        Ok(Self {
            signing_key_id,
            destination,
            window,
            revoked_at,
        })
    }
}

impl TryFrom<PermissionRow> for PermissionEntry {
    type Error = WriteError;

    fn try_from(row: PermissionRow) -> Result<Self, WriteError> {
        let (window, revoked_at) = row.validity.read("permission_registry")?;
        Ok(Self {
            permission_id: row.permission_id,
            signing_key_id: row.signing_key_id,
            subject_identity: row.subject_identity,
            subject_spki: row.subject_public_key_spki_der,
            destination: row.destination,
            window,
            revoked_at,
        })
    }
}
