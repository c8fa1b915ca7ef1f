//! What stands in the registry, as stored: nothing here was verified.

use permission::{Destination, Id, Identity, Spki, Timestamp, Window};

use crate::lookup::window;
use crate::writer::{WriteError, Writer};

/// Which rows: those that meet every condition given and that the table has a column for.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// The permission, or the agent's `PoCA` key, of this id.
    pub id: Option<Id>,
    /// This signing key, or what it signed or may delegate.
    pub key_id: Option<Id>,
    /// This agent's permissions, or its `PoCA` keys.
    pub identity: Option<Identity>,
    /// This key, or the permissions of this agent key.
    pub spki: Option<Spki>,
    /// To this destination.
    pub destination: Option<Destination>,
    /// The rows with this `PoCA` key.
    pub ed25519_public_key: Option<[u8; 32]>,
}

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
    /// What a root is said to have made of it.
    pub root_signature: Option<Vec<u8>>,
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
    /// What a root is said to have made of it.
    pub root_signature: Option<Vec<u8>>,
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
    /// What its key is said to have made of it.
    pub signature: Vec<u8>,
}

/// The columns that the tables share; times in microseconds since the Unix epoch.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Validity {
    row: String,
    not_before: i64,
    not_after: i64,
    revoked_at: Option<i64>,
}

impl Validity {
    pub(crate) fn window(&self) -> Option<Window> {
        window(self.not_before, self.not_after)
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked_at.is_some()
    }

    pub(crate) fn read(
        &self,
        table: &'static str,
    ) -> Result<(Window, Option<Timestamp>), WriteError> {
        let unusable = |column| WriteError::Inconsistent {
            table,
            column,
            row: self.row.clone(),
        };
        let window = self.window().ok_or_else(|| unusable("not_before"))?;
        let revoked_at = self.revoked_at.map(Timestamp::from_unix_micros).transpose();
        Ok((window, revoked_at.map_err(|_| unusable("revoked_at"))?))
    }
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    key_id: String,
    public_key_spki_der: Vec<u8>,
    root_signature: Option<Vec<u8>>,
    #[sqlx(flatten)]
    validity: Validity,
}

#[derive(sqlx::FromRow)]
struct ScopeRow {
    signing_key_id: String,
    destination: String,
    root_signature: Option<Vec<u8>>,
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
    signature: Vec<u8>,
    #[sqlx(flatten)]
    validity: Validity,
}

impl Writer {
    /// Keys, by id.
    pub async fn keys(&mut self, filter: &Filter) -> Result<Vec<KeyEntry>, WriteError> {
        let rows: Vec<KeyRow> = sqlx::query_as(
            "SELECT key_id, public_key_spki_der, root_signature, key_id AS row,
                    (extract(epoch FROM not_before) * 1000000)::int8 AS not_before,
                    (extract(epoch FROM not_after) * 1000000)::int8 AS not_after,
                    (extract(epoch FROM revoked_at) * 1000000)::int8 AS revoked_at
             FROM principal_signing_keys
             WHERE ($1::text IS NULL OR key_id = $1)
               AND ($2::bytea IS NULL OR public_key_spki_der = $2)
             ORDER BY key_id",
        )
        .bind(filter.key_id.as_ref().map(Id::as_str))
        .bind(filter.spki.as_ref().map(Spki::as_der))
        .fetch_all(&mut self.connection)
        .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// Scopes, by key and destination.
    pub async fn all_scopes(&mut self, filter: &Filter) -> Result<Vec<ScopeEntry>, WriteError> {
        let rows: Vec<ScopeRow> = sqlx::query_as(
            "SELECT signing_key_id, destination, root_signature, id::text AS row,
                    (extract(epoch FROM not_before) * 1000000)::int8 AS not_before,
                    (extract(epoch FROM not_after) * 1000000)::int8 AS not_after,
                    (extract(epoch FROM revoked_at) * 1000000)::int8 AS revoked_at
             FROM principal_key_permissions
             WHERE ($1::text IS NULL OR signing_key_id = $1)
               AND ($2::text IS NULL OR destination = $2)
             ORDER BY signing_key_id, destination, id",
        )
        .bind(filter.key_id.as_ref().map(Id::as_str))
        .bind(filter.destination.as_ref().map(ToString::to_string))
        .fetch_all(&mut self.connection)
        .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// Permissions, by agent, destination and id.
    pub async fn permissions(
        &mut self,
        filter: &Filter,
    ) -> Result<Vec<PermissionEntry>, WriteError> {
        let mut entries = self.permissions_after(filter, None, None).await?;
        entries.sort_by(|a, b| {
            (&a.subject_identity, &a.destination).cmp(&(&b.subject_identity, &b.destination))
        });
        Ok(entries)
    }

    /// At most `most` permissions, by id, from the first after `after`.
    pub async fn permissions_after(
        &mut self,
        filter: &Filter,
        after: Option<&str>,
        most: Option<u32>,
    ) -> Result<Vec<PermissionEntry>, WriteError> {
        let rows: Vec<PermissionRow> = sqlx::query_as(
            "SELECT permission_id, signing_key_id, subject_identity, subject_public_key_spki_der,
                    destination, signature, permission_id AS row,
                    (extract(epoch FROM not_before) * 1000000)::int8 AS not_before,
                    (extract(epoch FROM not_after) * 1000000)::int8 AS not_after,
                    (extract(epoch FROM revoked_at) * 1000000)::int8 AS revoked_at
             FROM permission_registry
             WHERE ($1::text IS NULL OR permission_id = $1)
               AND ($2::text IS NULL OR subject_identity = $2)
               AND ($3::bytea IS NULL OR subject_public_key_spki_der = $3)
               AND ($4::text IS NULL OR destination = $4)
               AND ($5::text IS NULL OR signing_key_id = $5)
               AND ($6::text IS NULL OR permission_id > $6)
             ORDER BY permission_id LIMIT $7",
        )
        .bind(filter.id.as_ref().map(Id::as_str))
        .bind(filter.identity.as_ref().map(Identity::as_str))
        .bind(filter.spki.as_ref().map(Spki::as_der))
        .bind(filter.destination.as_ref().map(ToString::to_string))
        .bind(filter.key_id.as_ref().map(Id::as_str))
        .bind(after)
        .bind(most.map(i64::from))
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
            root_signature,
            ..
        } = row;
        Ok(Self {
            key_id,
            spki,
            window,
            revoked_at,
            root_signature,
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
            root_signature,
            ..
        } = row;
        Ok(Self {
            signing_key_id,
            destination,
            window,
            revoked_at,
            root_signature,
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
            signature: row.signature,
        })
    }
}
