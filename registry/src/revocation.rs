//! Taking back: permissions, scopes or a key, in one transaction; and what that would take.

use permission::{Destination, Facts, Id, Identity, Request, Spki};
use sqlx::Connection as _;

use crate::inspect::select_stored;
use crate::listing::Filter;
use crate::lookup::{CandidateRow, facts};
use crate::server::Server;
use crate::writer::{WriteError, Writer};

/// What is to be taken back.
#[derive(Debug, Clone)]
pub enum Revocation {
    /// The permissions that match.
    Permissions(Filter),
    /// What a key may delegate.
    Scopes {
        /// Whose.
        key_id: Id,
        /// All of its scopes for these.
        destinations: Vec<Destination>,
    },
    /// A signing key, and with it all that it signed.
    Key(Id),
    /// Agents' keys for proofs of context that match.
    PocaKeys(Filter),
}

/// What was taken back, and where that stands in the database's history.
#[derive(Debug, Clone)]
pub struct Revoked {
    /// Ids of permissions or `PoCA` keys, destinations of scopes, or the id of the key.
    pub rows: Vec<String>,
    /// The transaction that did it.
    pub xid: u64,
    /// The database server's system identifier.
    pub system: String,
    /// Its timeline.
    pub timeline: i32,
}

impl Revocation {
    /// The permissions that rest on what is taken back match one of these.
    pub fn permissions(&self) -> Vec<Filter> {
        match self {
            Self::Permissions(filter) => vec![filter.clone()],
            Self::Scopes {
                key_id,
                destinations,
            } => destinations
                .iter()
                .map(|destination| Filter {
                    destination: Some(destination.clone()),
                    ..of_key(key_id)
                })
                .collect(),
            Self::Key(key_id) => vec![of_key(key_id)],
            Self::PocaKeys(_) => Vec::new(),
        }
    }

    /// The agents' `PoCA` keys that are taken back, or may rest on what is, match this.
    pub fn poca_keys(&self) -> Option<Filter> {
        match self {
            Self::Permissions(_) => None,
            Self::Scopes { key_id, .. } | Self::Key(key_id) => Some(of_key(key_id)),
            Self::PocaKeys(filter) => Some(filter.clone()),
        }
    }
}

fn of_key(key_id: &Id) -> Filter {
    Filter {
        key_id: Some(key_id.clone()),
        ..Filter::default()
    }
}

const SELECT_OTHERS: &str = select_stored!(
    "WHERE subject_identity = $1 AND destination = $2 AND subject_public_key_spki_der = $3
       AND NOT (($4::text IS NULL OR permission_id = $4)
                AND ($5::text IS NULL OR signing_key_id = $5))
     ORDER BY (revoked_at IS NULL) DESC, not_after DESC
     LIMIT 16"
);

impl Writer {
    /// Takes back what is there of it and was not taken back yet, all or nothing. Of permissions
    /// and `PoCA` keys only those whose ids are in `only`, if that is given.
    pub async fn revoke(
        &mut self,
        what: &Revocation,
        only: Option<&[String]>,
    ) -> Result<Revoked, WriteError> {
        let mut transaction = self.connection.begin().await?;
        let update = match what {
            Revocation::Permissions(filter) => sqlx::query_scalar(
                "UPDATE permission_registry SET revoked_at = now(), updated_at = now()
                 WHERE revoked_at IS NULL
                   AND ($1::text IS NULL OR permission_id = $1)
                   AND ($2::text IS NULL OR subject_identity = $2)
                   AND ($3::bytea IS NULL OR subject_public_key_spki_der = $3)
                   AND ($4::text IS NULL OR destination = $4)
                   AND ($5::text IS NULL OR signing_key_id = $5)
                   AND ($6::text[] IS NULL OR permission_id = ANY($6))
                 RETURNING permission_id",
            )
            .bind(filter.id.as_ref().map(Id::as_str))
            .bind(filter.identity.as_ref().map(Identity::as_str))
            .bind(filter.spki.as_ref().map(Spki::as_der))
            .bind(filter.destination.as_ref().map(ToString::to_string))
            .bind(filter.key_id.as_ref().map(Id::as_str))
            .bind(only),
            Revocation::Scopes {
                key_id,
                destinations,
            } => {
                let destinations: Vec<_> = destinations.iter().map(ToString::to_string).collect();
                sqlx::query_scalar(
                    "UPDATE principal_key_permissions SET revoked_at = now(), updated_at = now()
                     WHERE revoked_at IS NULL AND signing_key_id = $1 AND destination = ANY($2)
                     RETURNING destination",
                )
                .bind(key_id.as_str())
                .bind(destinations)
            }
            Revocation::Key(key_id) => sqlx::query_scalar(
                "UPDATE principal_signing_keys SET revoked_at = now(), updated_at = now()
                 WHERE revoked_at IS NULL AND key_id = $1
                 RETURNING key_id",
            )
            .bind(key_id.as_str()),
            Revocation::PocaKeys(filter) => sqlx::query_scalar(
                "UPDATE poca_keys SET revoked_at = now(), updated_at = now()
                 WHERE revoked_at IS NULL
                   AND ($1::text IS NULL OR poca_key_id = $1)
                   AND ($2::text IS NULL OR subject_identity = $2)
                   AND ($3::text IS NULL OR signing_key_id = $3)
                   AND ($4::bytea IS NULL OR ed25519_public_key = $4)
                   AND ($5::text[] IS NULL OR poca_key_id = ANY($5))
                 RETURNING poca_key_id",
            )
            .bind(filter.id.as_ref().map(Id::as_str))
            .bind(filter.identity.as_ref().map(Identity::as_str))
            .bind(filter.key_id.as_ref().map(Id::as_str))
            .bind(filter.ed25519_public_key.as_ref().map(<[u8; 32]>::as_slice))
            .bind(only),
        };
        let rows = update.fetch_all(&mut *transaction).await?;
        let xid: String = sqlx::query_scalar("SELECT pg_current_xact_id()::text")
            .fetch_one(&mut *transaction)
            .await?;
        let server = Server::of(&mut transaction).await?;
        transaction.commit().await?;
        Ok(Revoked {
            rows,
            xid: xid.parse().map_err(|_| WriteError::Inconsistent {
                table: "(transaction)",
                column: "pg_current_xact_id()",
                row: xid,
            })?,
            system: server.system,
            timeline: server.timeline,
        })
    }

    /// What the service would read for a request that one of `what`'s permissions is for, if they
    /// were gone.
    pub async fn facts_without(
        &mut self,
        request: &Request,
        what: &Filter,
    ) -> Result<Facts, WriteError> {
        let rows: Vec<CandidateRow> = sqlx::query_as(SELECT_OTHERS)
            .bind(request.identity.as_str())
            .bind(request.destination.to_string())
            .bind(request.spki.as_der())
            .bind(what.id.as_ref().map(Id::as_str))
            .bind(what.key_id.as_ref().map(Id::as_str))
            .fetch_all(&mut self.connection)
            .await?;
        Ok(facts(request, &rows, self.trust_roots.as_ref()))
    }
}
