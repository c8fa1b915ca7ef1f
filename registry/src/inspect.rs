//! What the service would read, for people who ask why.

use permission::{Candidate, Facts, Request, TrustRoots};

use crate::lookup::{CandidateRow, SELECT_CANDIDATES, facts};
use crate::writer::{WriteError, Writer};

/// A permission as stored, with its key and scopes.
#[derive(Debug)]
pub struct Stored {
    row: CandidateRow,
    roots: Option<TrustRoots>,
}

impl Stored {
    /// Rows that count as far as `roots` say.
    pub(crate) fn all(rows: Vec<CandidateRow>, roots: Option<&TrustRoots>) -> Vec<Self> {
        let stored = |row| Self {
            row,
            roots: roots.cloned(),
        };
        rows.into_iter().map(stored).collect()
    }

    /// Its id, whatever it holds.
    pub fn permission_id(&self) -> &str {
        &self.row.permission_id
    }

    /// Whether it was taken back.
    pub fn is_revoked(&self) -> bool {
        self.row.revoked
    }

    /// What `judge` takes, signatures checked; or the column that holds what no permission can.
    pub fn candidate(&self) -> Result<Candidate, &'static str> {
        self.row.to_candidate(None, self.roots.as_ref())
    }

    /// Whether its key made this signature too, over what it says.
    pub fn is_signed_by(&self, signature_der: &[u8]) -> bool {
        let signed = self.row.with_signature(signature_der);
        signed
            .to_candidate(None, None)
            .is_ok_and(|candidate| candidate.is_signed())
    }
}

/// The columns of a [`CandidateRow`], as the lookup reads them, for the permissions that `$which`
/// picks, in the order of their ids.
macro_rules! select_stored {
    ($which:literal) => {
        concat!(
            "
SELECT p.permission_id, p.signing_key_id, p.subject_identity, p.subject_public_key_spki_der,
       p.destination,
       (extract(epoch FROM p.not_before) * 1000000)::int8 AS not_before,
       (extract(epoch FROM p.not_after) * 1000000)::int8 AS not_after,
       p.revoked_at IS NOT NULL AS revoked,
       p.signature,
       k.algorithm AS key_algorithm,
       k.public_key_spki_der AS key_spki_der,
       (extract(epoch FROM k.not_before) * 1000000)::int8 AS key_not_before,
       (extract(epoch FROM k.not_after) * 1000000)::int8 AS key_not_after,
       k.revoked_at IS NOT NULL AS key_revoked,
       k.root_signature AS key_root_signature,
       coalesce(s.not_before, '{}') AS scope_not_before,
       coalesce(s.not_after, '{}') AS scope_not_after,
       coalesce(s.revoked, '{}') AS scope_revoked,
       coalesce(s.root_signature, '{}') AS scope_root_signature
FROM (
    SELECT permission_id, signing_key_id, subject_identity, subject_public_key_spki_der,
           destination, not_before, not_after, revoked_at, signature
    FROM permission_registry
",
            $which,
            "
) p
LEFT JOIN principal_signing_keys k ON k.key_id = p.signing_key_id
LEFT JOIN LATERAL (
    SELECT array_agg((extract(epoch FROM c.not_before) * 1000000)::int8) AS not_before,
           array_agg((extract(epoch FROM c.not_after) * 1000000)::int8) AS not_after,
           array_agg(c.revoked_at IS NOT NULL) AS revoked,
           array_agg(c.root_signature) AS root_signature
    FROM (
        SELECT not_before, not_after, revoked_at, root_signature
        FROM principal_key_permissions
        WHERE signing_key_id = p.signing_key_id AND destination = p.destination
          AND not_before <= p.not_before AND not_after >= p.not_after
        ORDER BY (revoked_at IS NULL) DESC, not_after DESC
        LIMIT 16
    ) c
) s ON true
ORDER BY p.permission_id"
        )
    };
}
pub(crate) use select_stored;

/// `$2` of them, from `$1` on.
const SELECT_STORED: &str =
    select_stored!("WHERE permission_id >= $1 ORDER BY permission_id LIMIT $2");

impl Writer {
    /// What the service reads when it is asked that: by the same statement.
    pub async fn facts(&mut self, request: &Request) -> Result<Facts, WriteError> {
        let rows = self.candidates(request).await?;
        Ok(facts(request, &rows, self.trust_roots.as_ref()))
    }

    /// The rows behind [`Writer::facts`], one by one.
    pub async fn stored_for(&mut self, request: &Request) -> Result<Vec<Stored>, WriteError> {
        let rows = self.candidates(request).await?;
        Ok(Stored::all(rows, self.trust_roots.as_ref()))
    }

    /// The permission of that id.
    pub async fn stored(&mut self, permission_id: &str) -> Result<Option<Stored>, WriteError> {
        let mut rows = self.stored_from(permission_id, 1).await?;
        rows.retain(|row| row.permission_id() == permission_id);
        Ok(rows.pop())
    }

    /// At most `most` permissions in the order of their ids, from the first after `after`.
    pub async fn stored_after(
        &mut self,
        after: &str,
        most: u32,
    ) -> Result<Vec<Stored>, WriteError> {
        let mut rows = self.stored_from(after, most.saturating_add(1)).await?;
        rows.retain(|row| row.permission_id() != after);
        rows.truncate(most as usize);
        Ok(rows)
    }

    async fn stored_from(&mut self, first: &str, most: u32) -> Result<Vec<Stored>, WriteError> {
        let rows: Vec<CandidateRow> = sqlx::query_as(SELECT_STORED)
            .bind(first)
            .bind(i64::from(most))
            .fetch_all(&mut self.connection)
            .await?;
        Ok(Stored::all(rows, self.trust_roots.as_ref()))
    }

    async fn candidates(&mut self, request: &Request) -> Result<Vec<CandidateRow>, WriteError> {
        let rows = sqlx::query_as(SELECT_CANDIDATES)
            .bind(request.identity.as_str())
            .bind(request.destination.to_string())
            .bind(request.spki.as_der());
        Ok(rows.fetch_all(&mut self.connection).await?)
    }
}
