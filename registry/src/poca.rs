//! Agents' keys for proofs of context: what one call's proof may rest on, in one statement.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use permission::{
    Destination, Id, Identity, PocaCandidate, PocaKey, PrincipalKey, Scope, Signer, TrustRoots,
    Window,
};
use sqlx::PgConnection;
use tokio::time::Instant;

use crate::connection::Reader;
use crate::lookup::{LookupError, window};

/// One row with its signer and the windows of its scopes, all as stored; times in microseconds
/// since the Unix epoch.
#[derive(Debug, sqlx::FromRow)]
struct PocaRow {
    poca_key_id: String,
    signing_key_id: String,
    subject_identity: String,
    ed25519_public_key: Vec<u8>,
    not_before: i64,
    not_after: i64,
    revoked: bool,
    signature: Vec<u8>,
    key_algorithm: Option<String>,
    key_spki_der: Option<Vec<u8>>,
    key_not_before: Option<i64>,
    key_not_after: Option<i64>,
    key_revoked: bool,
    key_root_signature: Option<Vec<u8>>,
    scope_not_before: Vec<i64>,
    scope_not_after: Vec<i64>,
    scope_root_signature: Vec<Option<Vec<u8>>>,
}

/// At most 16 keys of an agent, those most likely to count first, and of each one's signer at most
/// 16 scopes for the destination that may be active: were there others before them, they could hide
/// the one that counts.
const SELECT_POCA_KEYS: &str = "
SELECT p.poca_key_id, p.signing_key_id, p.subject_identity, p.ed25519_public_key,
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
       coalesce(s.root_signature, '{}') AS scope_root_signature
FROM (
    SELECT poca_key_id, signing_key_id, subject_identity, ed25519_public_key, not_before,
           not_after, revoked_at, signature
    FROM poca_keys
    WHERE subject_identity = $1
    ORDER BY (revoked_at IS NULL) DESC, not_after DESC
    LIMIT 16
) p
LEFT JOIN principal_signing_keys k ON k.key_id = p.signing_key_id
LEFT JOIN LATERAL (
    SELECT array_agg((extract(epoch FROM c.not_before) * 1000000)::int8) AS not_before,
           array_agg((extract(epoch FROM c.not_after) * 1000000)::int8) AS not_after,
           array_agg(c.root_signature) AS root_signature
    FROM (
        SELECT not_before, not_after, root_signature
        FROM principal_key_permissions
        WHERE signing_key_id = p.signing_key_id AND destination = $2 AND revoked_at IS NULL
        ORDER BY not_after DESC
        LIMIT 16
    ) c
) s ON true
ORDER BY (p.revoked_at IS NULL) DESC, p.not_after DESC";

impl Reader {
    /// Reads the keys under which an agent's calls to a destination may be proven, and what they
    /// hang on; ends by `deadline`. Rows that hold what can't be signed are left out.
    pub async fn poca_keys(
        &self,
        identity: &Identity,
        destination: &Destination,
        deadline: Instant,
    ) -> Result<Vec<PocaCandidate>, LookupError> {
        let rows = self
            .run(deadline, |connection| {
                select(connection, identity, destination)
            })
            .await?;
        let roots = self.trust_roots.as_ref();
        let mut candidates = Vec::with_capacity(rows.len());
        for row in &rows {
            match row.to_candidate(destination, roots) {
                Ok(candidate) => candidates.push(candidate),
                Err(column) => tracing::warn!(
                    table = "poca_keys",
                    column,
                    poca_key.id = row.poca_key_id.escape_debug().to_string(),
                    "a row holds what can't be signed, and is left out"
                ),
            }
        }
        Ok(candidates)
    }
}

fn select<'c>(
    connection: &'c mut PgConnection,
    identity: &Identity,
    destination: &Destination,
) -> BoxFuture<'c, Result<Vec<PocaRow>, sqlx::Error>> {
    sqlx::query_as(SELECT_POCA_KEYS)
        .bind(identity.as_str().to_owned())
        .bind(destination.to_string())
        .fetch_all(connection)
        .boxed()
}

impl PocaRow {
    /// The domain's view of a row, or the column that holds what no such key can hold.
    fn to_candidate(
        &self,
        destination: &Destination,
        roots: Option<&TrustRoots>,
    ) -> Result<PocaCandidate, &'static str> {
        let key = poca_key(
            &self.poca_key_id,
            &self.signing_key_id,
            &self.subject_identity,
            &self.ed25519_public_key,
            window(self.not_before, self.not_after),
        )?;
        let windows = self.scope_not_before.iter().zip(&self.scope_not_after);
        let scopes: Vec<_> = windows
            .zip(&self.scope_root_signature)
            .filter_map(|((not_before, not_after), root_signature)| {
                Some(Scope {
                    destination: destination.clone(),
                    window: window(*not_before, *not_after)?,
                    revoked: false,
                    root_signature: root_signature.clone(),
                })
            })
            .collect();
        Ok(PocaCandidate::new(
            key,
            self.revoked,
            &self.signature,
            self.signer().as_ref(),
            &scopes,
            roots,
        ))
    }

    /// The row's signer, if it is registered and one that can be used.
    fn signer(&self) -> Option<Signer> {
        let (algorithm, spki) = (
            self.key_algorithm.as_deref()?,
            self.key_spki_der.as_deref()?,
        );
        Some(Signer {
            key: PrincipalKey::from_stored(algorithm, spki).ok()?,
            window: window(self.key_not_before?, self.key_not_after?)?,
            revoked: self.key_revoked,
            root_signature: self.key_root_signature.clone(),
        })
    }
}

/// What a row says, or the column that holds what no such key can hold.
pub(crate) fn poca_key(
    poca_key_id: &str,
    signing_key_id: &str,
    subject_identity: &str,
    ed25519_public_key: &[u8],
    window: Option<Window>,
) -> Result<PocaKey, &'static str> {
    Ok(PocaKey {
        poca_key_id: Id::parse(poca_key_id).map_err(|_| "poca_key_id")?,
        signing_key_id: Id::parse(signing_key_id).map_err(|_| "signing_key_id")?,
        subject_identity: Identity::parse(subject_identity).map_err(|_| "subject_identity")?,
        ed25519_public_key: (ed25519_public_key.try_into()).map_err(|_| "ed25519_public_key")?,
        window: window.ok_or("not_before")?,
    })
}
