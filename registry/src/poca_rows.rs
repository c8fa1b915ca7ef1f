//! Agents' keys for proofs of context, as the CLI writes, lists and inspects them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use permission::{
    Destination, Id, Identity, PocaCandidate, PocaKey, PrincipalKey, Scope, Signer, Timestamp,
    TrustRoots, Window,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::import::{Added, Import, SignedRow, column};
use crate::listing::{Filter, Validity};
use crate::lookup::window;
use crate::poca::poca_key;
use crate::writer::{OnExisting, WriteError, Writer};

/// An agent's key, as listed; nothing about it was verified.
#[derive(Debug, Clone)]
pub struct PocaKeyEntry {
    /// Its id.
    pub poca_key_id: String,
    /// Who signed, says the row.
    pub signing_key_id: String,
    /// The agent.
    pub subject_identity: String,
    /// The agent's Ed25519 key.
    pub ed25519_public_key: Vec<u8>,
    /// When.
    pub window: Window,
    /// When it was taken back.
    pub revoked_at: Option<Timestamp>,
    /// What its signing key is said to have made of it.
    pub signature: Vec<u8>,
}

/// An agent's key as stored, with its signer and all that this one may delegate.
#[derive(Debug)]
pub struct StoredPocaKey {
    row: Row,
    principal: Option<Arc<Principal>>,
    roots: Option<TrustRoots>,
}

/// A registered key that can be used, and its scopes that were not taken back.
#[derive(Debug)]
struct Principal {
    signer: Signer,
    scopes: Vec<Scope>,
}

#[derive(Debug, sqlx::FromRow)]
struct Row {
    poca_key_id: String,
    signing_key_id: String,
    subject_identity: String,
    ed25519_public_key: Vec<u8>,
    signature: Vec<u8>,
    #[sqlx(flatten)]
    validity: Validity,
}

/// The rows that `$which` picks.
macro_rules! select_poca_keys {
    ($which:literal) => {
        concat!(
            "SELECT poca_key_id, signing_key_id, subject_identity, ed25519_public_key, signature,
                    poca_key_id AS row,
                    (extract(epoch FROM not_before) * 1000000)::int8 AS not_before,
                    (extract(epoch FROM not_after) * 1000000)::int8 AS not_after,
                    (extract(epoch FROM revoked_at) * 1000000)::int8 AS revoked_at
             FROM poca_keys ",
            $which
        )
    };
}

impl Writer {
    /// Stores agents' signed keys, all of them or none.
    pub async fn grant_poca_keys(
        &mut self,
        signed: &[(PocaKey, Vec<u8>)],
        on_existing: OnExisting,
    ) -> Result<(), WriteError> {
        let mut transaction = self.connection.begin().await?;
        for (key, signature_der) in signed {
            insert(&mut transaction, key, signature_der, on_existing).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Agents' keys, by agent and id.
    pub async fn poca_keys(&mut self, filter: &Filter) -> Result<Vec<PocaKeyEntry>, WriteError> {
        let mut entries = self.poca_keys_after(filter, None, None).await?;
        entries.sort_by(|a, b| a.subject_identity.cmp(&b.subject_identity));
        Ok(entries)
    }

    /// At most `most` of them, by id, from the first after `after`.
    pub async fn poca_keys_after(
        &mut self,
        filter: &Filter,
        after: Option<&str>,
        most: Option<u32>,
    ) -> Result<Vec<PocaKeyEntry>, WriteError> {
        let rows = select(&mut self.connection, filter, after, most).await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// As [`Writer::poca_keys_after`], with what they hang on.
    pub async fn stored_poca_keys(
        &mut self,
        filter: &Filter,
        after: Option<&str>,
        most: Option<u32>,
    ) -> Result<Vec<StoredPocaKey>, WriteError> {
        let rows = select(&mut self.connection, filter, after, most).await?;
        stored(&mut self.connection, rows, self.trust_roots.as_ref()).await
    }
}

impl Import<'_> {
    /// Adds agents' keys as [`Import::add`] does permissions.
    pub async fn add_poca_keys(
        &mut self,
        rows: &[SignedRow<PocaKey>],
    ) -> Result<Added<StoredPocaKey>, WriteError> {
        let ids = column(rows, |row| row.signed.poca_key_id.to_string());
        let inserted = sqlx::query(
            "INSERT INTO poca_keys
                 (poca_key_id, signing_key_id, subject_identity, ed25519_public_key, not_before,
                  not_after, signature, revoked_at)
             SELECT r.id, r.key_id, r.identity, r.public_key, r.not_before::timestamptz,
                    r.not_after::timestamptz, r.signature, r.revoked_at::timestamptz
             FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[],
                         $7::bytea[], $8::text[])
                  WITH ORDINALITY
                  AS r (id, key_id, identity, public_key, not_before, not_after, signature,
                        revoked_at, number)
             JOIN principal_signing_keys k ON k.key_id = r.key_id
             ORDER BY r.number
             ON CONFLICT (poca_key_id) DO NOTHING",
        )
        .bind(&ids)
        .bind(column(rows, |row| row.signed.signing_key_id.to_string()))
        .bind(column(rows, |row| row.signed.subject_identity.to_string()))
        .bind(column(rows, |row| row.signed.ed25519_public_key.to_vec()))
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
        let found = sqlx::query_as(select_poca_keys!("WHERE poca_key_id = ANY($1)"))
            .bind(&ids)
            .fetch_all(&mut *self.transaction)
            .await?;
        Ok(Added {
            new: inserted.rows_affected(),
            stored: stored(&mut self.transaction, found, self.trust_roots.as_ref()).await?,
        })
    }
}

impl StoredPocaKey {
    /// Its id, whatever it holds.
    pub fn poca_key_id(&self) -> &str {
        &self.row.poca_key_id
    }

    /// Whether it was taken back.
    pub fn is_revoked(&self) -> bool {
        self.row.validity.is_revoked()
    }

    /// What the service judges, signatures checked, but for every destination; or the column that
    /// holds what no such key can.
    pub fn candidate(&self) -> Result<PocaCandidate, &'static str> {
        self.with_signature(&self.row.signature)
    }

    /// Whether its key made this signature too, over what it says.
    pub fn is_signed_by(&self, signature_der: &[u8]) -> bool {
        self.with_signature(signature_der)
            .is_ok_and(|candidate| candidate.is_signed())
    }

    fn with_signature(&self, signature_der: &[u8]) -> Result<PocaCandidate, &'static str> {
        let key = poca_key(
            &self.row.poca_key_id,
            &self.row.signing_key_id,
            &self.row.subject_identity,
            &self.row.ed25519_public_key,
            self.row.validity.window(),
        )?;
        let principal = self.principal.as_deref();
        Ok(PocaCandidate::new(
            key,
            self.is_revoked(),
            signature_der,
            principal.map(|principal| &principal.signer),
            principal.map_or(&[], |principal| &principal.scopes),
            self.roots.as_ref(),
        ))
    }
}

/// Adds a row.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    key: &PocaKey,
    signature_der: &[u8],
    on_existing: OnExisting,
) -> Result<(), WriteError> {
    let conflict = match on_existing {
        OnExisting::Refuse => "",
        OnExisting::Replace => {
            "ON CONFLICT (poca_key_id) DO UPDATE
             SET signing_key_id = EXCLUDED.signing_key_id,
                 subject_identity = EXCLUDED.subject_identity,
                 ed25519_public_key = EXCLUDED.ed25519_public_key,
                 not_before = EXCLUDED.not_before, not_after = EXCLUDED.not_after,
                 signature = EXCLUDED.signature, revoked_at = NULL, updated_at = now()"
        }
    };
    let insert = format!(
        "INSERT INTO poca_keys
             (poca_key_id, signing_key_id, subject_identity, ed25519_public_key, not_before,
              not_after, signature)
         VALUES ($1, $2, $3, $4, $5::text::timestamptz, $6::text::timestamptz, $7)
         {conflict}"
    );
    sqlx::query(AssertSqlSafe(insert))
        .bind(key.poca_key_id.as_str())
        .bind(key.signing_key_id.as_str())
        .bind(key.subject_identity.as_str())
        .bind(key.ed25519_public_key.as_slice())
        .bind(key.window.not_before().to_string())
        .bind(key.window.not_after().to_string())
        .bind(signature_der)
        .execute(connection)
        .await?;
    Ok(())
}

async fn select(
    connection: &mut PgConnection,
    filter: &Filter,
    after: Option<&str>,
    most: Option<u32>,
) -> Result<Vec<Row>, WriteError> {
    let rows = sqlx::query_as(select_poca_keys!(
        "WHERE ($1::text IS NULL OR poca_key_id = $1)
           AND ($2::text IS NULL OR subject_identity = $2)
           AND ($3::text IS NULL OR signing_key_id = $3)
           AND ($4::bytea IS NULL OR ed25519_public_key = $4)
           AND ($5::text IS NULL OR poca_key_id > $5)
         ORDER BY poca_key_id LIMIT $6"
    ))
    .bind(filter.id.as_ref().map(Id::as_str))
    .bind(filter.identity.as_ref().map(Identity::as_str))
    .bind(filter.key_id.as_ref().map(Id::as_str))
    .bind(filter.ed25519_public_key.as_ref().map(<[u8; 32]>::as_slice))
    .bind(after)
    .bind(most.map(i64::from))
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Rows, and what they hang on: few principals sign for many agents, so each is read once.
async fn stored(
    connection: &mut PgConnection,
    rows: Vec<Row>,
    roots: Option<&TrustRoots>,
) -> Result<Vec<StoredPocaKey>, WriteError> {
    let key_ids: BTreeSet<_> = rows.iter().map(|row| row.signing_key_id.clone()).collect();
    let key_ids: Vec<_> = key_ids.into_iter().collect();
    let principals = principals(connection, &key_ids).await?;
    let stored = |row: Row| StoredPocaKey {
        principal: principals.get(&row.signing_key_id).cloned(),
        row,
        roots: roots.cloned(),
    };
    Ok(rows.into_iter().map(stored).collect())
}

/// The registered keys of these ids that can be used.
async fn principals(
    connection: &mut PgConnection,
    key_ids: &[String],
) -> Result<HashMap<String, Arc<Principal>>, WriteError> {
    type Key = (String, String, Vec<u8>, i64, i64, bool, Option<Vec<u8>>);
    let keys: Vec<Key> = sqlx::query_as(
        "SELECT key_id, algorithm, public_key_spki_der,
                (extract(epoch FROM not_before) * 1000000)::int8,
                (extract(epoch FROM not_after) * 1000000)::int8,
                revoked_at IS NOT NULL, root_signature
         FROM principal_signing_keys WHERE key_id = ANY($1)",
    )
    .bind(key_ids)
    .fetch_all(&mut *connection)
    .await?;
    let mut scopes = scopes(connection, key_ids).await?;
    let read = |(key_id, algorithm, spki, not_before, not_after, revoked, root_signature): Key| {
        let signer = Signer {
            key: PrincipalKey::from_stored(&algorithm, &spki).ok()?,
            window: window(not_before, not_after)?,
            revoked,
            root_signature,
        };
        let scopes = scopes.remove(&key_id).unwrap_or_default();
        Some((key_id, Arc::new(Principal { signer, scopes })))
    };
    Ok(keys.into_iter().filter_map(read).collect())
}

/// What each of these keys may delegate and was not taken back; what can't be read delegates
/// nothing.
pub(crate) async fn scopes(
    connection: &mut PgConnection,
    key_ids: &[String],
) -> Result<HashMap<String, Vec<Scope>>, WriteError> {
    type Row = (String, String, i64, i64, Option<Vec<u8>>);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT signing_key_id, destination,
                (extract(epoch FROM not_before) * 1000000)::int8,
                (extract(epoch FROM not_after) * 1000000)::int8, root_signature
         FROM principal_key_permissions
         WHERE signing_key_id = ANY($1) AND revoked_at IS NULL",
    )
    .bind(key_ids)
    .fetch_all(connection)
    .await?;
    let mut scopes: HashMap<String, Vec<Scope>> = HashMap::new();
    for (key_id, destination, not_before, not_after, root_signature) in rows {
        let destination = Destination::from_normal_form(&destination);
        if let (Some(destination), Some(window)) = (destination, window(not_before, not_after)) {
            scopes.entry(key_id).or_default().push(Scope {
                destination,
                window,
                revoked: false,
                root_signature,
            });
        }
    }
    Ok(scopes)
}

impl TryFrom<Row> for PocaKeyEntry {
    type Error = WriteError;

    fn try_from(row: Row) -> Result<Self, WriteError> {
        let (window, revoked_at) = row.validity.read("poca_keys")?;
        Ok(Self {
            poca_key_id: row.poca_key_id,
            signing_key_id: row.signing_key_id,
            subject_identity: row.subject_identity,
            ed25519_public_key: row.ed25519_public_key,
            window,
            revoked_at,
            signature: row.signature,
        })
    }
}
