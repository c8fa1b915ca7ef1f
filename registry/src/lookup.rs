//! The read behind each decision: everything about one request, in one statement.

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use permission::{
    Candidate, Destination, Facts, Id, Identity, Permission, PrincipalKey, Request, Scope, Signer,
    Spki, Timestamp, TrustRoots, Window,
};
use sqlx::PgConnection;
use tokio::time::{Instant, timeout_at};

use crate::connection::Reader;

/// Why the registry gave no answer. None of these may become an allow.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// No free connection, or no answer, in time.
    #[error("registry did not answer in time")]
    TimedOut,
    /// A standby that was just started can't tell how old its data is.
    #[error("the standby has replayed no transaction yet: its primary must have a heartbeat")]
    NothingReplayed,
    /// How old a standby's data is is told by two clocks, so both must be right.
    #[error(
        "the standby has a transaction from {0:?} in the future: a clock is wrong, here or at its primary"
    )]
    ClockAhead(Duration),
    /// The connection or the query failed.
    #[error("registry can't be read: {0}")]
    Failed(#[from] sqlx::Error),
}

/// One candidate row with its key and the windows of its scopes, all as stored.
///
/// Times are microseconds since the Unix epoch, so that none can be misread on the way.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct CandidateRow {
    pub(crate) permission_id: String,
    signing_key_id: String,
    subject_identity: String,
    subject_public_key_spki_der: Vec<u8>,
    destination: String,
    not_before: i64,
    not_after: i64,
    pub(crate) revoked: bool,
    signature: Vec<u8>,
    key_algorithm: Option<String>,
    key_spki_der: Option<Vec<u8>>,
    key_not_before: Option<i64>,
    key_not_after: Option<i64>,
    key_revoked: bool,
    key_root_signature: Option<Vec<u8>>,
    scope_not_before: Vec<i64>,
    scope_not_after: Vec<i64>,
    scope_revoked: Vec<bool>,
    scope_root_signature: Vec<Option<Vec<u8>>>,
}

/// At most 16 permissions, the ones most likely to allow first, and of each one's key at most 16
/// scopes that cover it: any number of others could come before the one that counts.
pub(crate) const SELECT_CANDIDATES: &str = "
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
    WHERE subject_identity = $1 AND destination = $2 AND subject_public_key_spki_der = $3
    ORDER BY (revoked_at IS NULL) DESC, not_after DESC
    LIMIT 16
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
ORDER BY (p.revoked_at IS NULL) DESC, p.not_after DESC";

impl Reader {
    /// Reads all that a decision about `request` needs; ends by `deadline`.
    pub async fn facts(&self, request: &Request, deadline: Instant) -> Result<Facts, LookupError> {
        let rows = self.rows(request, deadline).await?;
        Ok(facts(request, &rows, self.trust_roots.as_ref()))
    }

    /// How many rows [`Reader::facts`] would look at: its query on a connection of sqlx's pool, with
    /// nothing made of the answer, to measure the rest by.
    pub async fn candidates(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<usize, LookupError> {
        let mut connection = timeout_at(deadline, self.connections.pooled())
            .await
            .map_err(|_| LookupError::TimedOut)??;
        Ok(select(&mut connection, request).await?.len())
    }

    async fn rows(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Vec<CandidateRow>, LookupError> {
        self.run(deadline, |connection| select(connection, request))
            .await
    }

    /// Runs one read on a pooled connection, within the acquire and query timeouts and `deadline`.
    ///
    /// A connection that proves dead is dropped and the read tried on another: after a restart of
    /// the database every pooled one may be dead.
    pub(crate) async fn run<T>(
        &self,
        deadline: Instant,
        read: impl for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>>,
    ) -> Result<T, LookupError> {
        let until = |limit: Duration| deadline.min(Instant::now() + limit);
        let mut dead = 0;
        loop {
            let lent = timeout_at(until(self.acquire_timeout), self.connections.lend()).await;
            let mut lent = match lent {
                Ok(Ok(lent)) => lent,
                Ok(Err(sqlx::Error::PoolTimedOut)) | Err(_) => return Err(LookupError::TimedOut),
                Ok(Err(error)) => return Err(error.into()),
            };
            match timeout_at(until(self.query_timeout), read(lent.connection())).await {
                Ok(Ok(value)) => {
                    lent.keep();
                    return Ok(value);
                }
                Ok(Err(error)) if is_dead(&error) && dead < self.max_connections => {
                    dead += 1;
                    lent.close();
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    lent.close();
                    return Err(LookupError::TimedOut);
                }
            }
        }
    }
}

fn select<'c>(
    connection: &'c mut PgConnection,
    request: &Request,
) -> BoxFuture<'c, Result<Vec<CandidateRow>, sqlx::Error>> {
    sqlx::query_as(SELECT_CANDIDATES)
        .bind(request.identity.as_str().to_owned())
        .bind(request.destination.to_string())
        .bind(request.spki.as_der().to_vec())
        .fetch_all(connection)
        .boxed()
}

/// The domain's view of what was read for one request; with it they share their texts, for they are
/// kept together.
pub(crate) fn facts(request: &Request, rows: &[CandidateRow], roots: Option<&TrustRoots>) -> Facts {
    // Facts are kept, and there is mostly one: a vector that grows has room for four.
    let mut facts = Facts {
        candidates: Vec::with_capacity(rows.len()),
        unreadable: 0,
    };
    for row in rows {
        match row.to_candidate(Some(request), roots) {
            Ok(candidate) => facts.candidates.push(candidate),
            Err(column) => {
                facts.unreadable += 1;
                tracing::warn!(
                    table = "permission_registry",
                    column,
                    permission.id = row.permission_id.escape_debug().to_string(),
                    "a row holds what can't be signed, and is taken as unsigned"
                );
            }
        }
    }
    facts
}

/// Whether the connection, and not the query, is at fault.
fn is_dead(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        // Class 57, operator intervention: 57P01 admin_shutdown, 57P02 crash_shutdown.
        sqlx::Error::Database(error) => {
            matches!(error.code().as_deref(), Some("57P01" | "57P02"))
        }
        _ => false,
    }
}

impl CandidateRow {
    /// The domain's view of a row, or the column that holds what no permission can hold.
    ///
    /// What the row has in common with the request that it was read for is the request's own.
    pub(crate) fn to_candidate(
        &self,
        read_for: Option<&Request>,
        roots: Option<&TrustRoots>,
    ) -> Result<Candidate, &'static str> {
        let identity = read_for.map(|request| &request.identity);
        let identity = identity.filter(|known| known.as_str() == self.subject_identity);
        let spki = read_for.map(|request| &request.spki);
        let spki = spki.filter(|known| known.as_der() == self.subject_public_key_spki_der);
        let destination = Destination::from_normal_form(&self.destination).ok_or("destination")?;
        let known = read_for.map(|request| &request.destination);
        let known = known.filter(|known| **known == destination);
        let permission = Permission {
            permission_id: Id::parse(&self.permission_id).map_err(|_| "permission_id")?,
            signing_key_id: Id::parse(&self.signing_key_id).map_err(|_| "signing_key_id")?,
            subject_identity: match identity {
                Some(known) => known.clone(),
                None => Identity::parse(&self.subject_identity).map_err(|_| "subject_identity")?,
            },
            subject_spki: match spki {
                Some(known) => known.clone(),
                None => Spki::from_der(&self.subject_public_key_spki_der)
                    .map_err(|_| "subject_public_key_spki_der")?,
            },
            destination: known.cloned().unwrap_or(destination),
            window: window(self.not_before, self.not_after).ok_or("not_before")?,
        };
        let scopes = (self.scope_not_before.iter().zip(&self.scope_not_after))
            .zip(self.scope_revoked.iter().zip(&self.scope_root_signature))
            .filter_map(|((not_before, not_after), (revoked, root_signature))| {
                Some(Scope {
                    destination: permission.destination.clone(),
                    window: window(*not_before, *not_after)?,
                    revoked: *revoked,
                    root_signature: root_signature.clone(),
                })
            })
            .collect::<Vec<_>>();
        Ok(Candidate::new(
            permission,
            self.revoked,
            &self.signature,
            self.signer().as_ref(),
            &scopes,
            roots,
        ))
    }

    /// The same row, if this were its signature.
    pub(crate) fn with_signature(&self, signature_der: &[u8]) -> Self {
        Self {
            signature: signature_der.to_vec(),
            ..self.clone()
        }
    }

    /// The row's key, if it is registered and one that can be used.
    fn signer(&self) -> Option<Signer> {
        let (algorithm, spki) = (
            self.key_algorithm.as_deref()?,
            self.key_spki_der.as_deref()?,
        );
        let key = PrincipalKey::from_stored(algorithm, spki)
            .inspect_err(|error| {
                tracing::warn!(
                    table = "principal_signing_keys",
                    signing_key.id = self.signing_key_id.escape_debug().to_string(),
                    %error,
                    "a registered key can't be used"
                );
            })
            .ok()?;
        let window = window(self.key_not_before?, self.key_not_after?)?;
        Some(Signer {
            key,
            window,
            revoked: self.key_revoked,
            root_signature: self.key_root_signature.clone(),
        })
    }
}

pub(crate) fn window(not_before: i64, not_after: i64) -> Option<Window> {
    let not_before = Timestamp::from_unix_micros(not_before).ok()?;
    Window::new(not_before, Timestamp::from_unix_micros(not_after).ok()?).ok()
}
