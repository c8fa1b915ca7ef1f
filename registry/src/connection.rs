//! The service's pool of read-only connections.

use std::str::FromStr as _;
use std::time::Duration;

use futures::FutureExt as _;
use permission::{Id, TrustRoots};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::time::{Instant, timeout};

use crate::connections::{Connections, TRUSTED_IDLE};
use crate::schema::{self, SchemaError};
use crate::server::{Followed, Server};

/// How to reach the registry, and how long to wait for it.
#[derive(Clone)]
pub struct Options {
    /// `postgres://…`; holds a password, so there is no `Debug` for this type.
    pub url: String,
    /// Most connections held at a time.
    pub max_connections: u32,
    /// Longest wait for the first connection, at start.
    pub connect_timeout: Duration,
    /// Longest wait for a connection from the pool.
    pub acquire_timeout: Duration,
    /// Longest a query may run, here and in the server.
    pub query_timeout: Duration,
    /// Whose signature keys and scopes must bear; without any, rows count as they are.
    pub trust_roots: Option<TrustRoots>,
}

impl Options {
    /// Whether the URL is one, without connecting.
    pub fn check(&self) -> Result<(), OpenError> {
        connect_options(&self.url).map(drop)
    }
}

/// Why the registry couldn't be opened at start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not a `postgres://` URL; the text is not repeated, for it may hold a password.
    #[error("database url is not a valid postgres url")]
    BadUrl,
    /// No connection in time.
    #[error("database did not answer within {0:?}")]
    TimedOut(Duration),
    /// Refused, unknown host, wrong password, …
    #[error("database can't be reached: {0}")]
    Unreachable(#[source] sqlx::Error),
    /// Reached, but not usable.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// Reached, but not the registry that the roots of trust vouch in: nothing would be allowed.
    #[error("this is registry {found:?}, and the trust roots are for registry {expected}")]
    OtherRegistry {
        /// What it calls itself.
        found: String,
        /// What was expected.
        expected: Id,
    },
    /// Reached, but not by a role that may do what it is there for.
    #[error("this database role may not {0}")]
    NoRight(&'static str),
}

/// Reads the registry for decisions, with SELECT alone.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(crate) connections: Connections,
    pub(crate) followed: Followed,
    pub(crate) acquire_timeout: Duration,
    pub(crate) query_timeout: Duration,
    pub(crate) max_connections: u32,
    pub(crate) trust_roots: Option<TrustRoots>,
}

impl Reader {
    /// Connects, and makes sure that the schema is the one this program knows.
    pub async fn open(options: &Options) -> Result<Self, OpenError> {
        let connect = connect_options(&options.url)?;
        let millis = options.query_timeout.as_millis();
        // Not as start-up parameters: connection poolers refuse those they don't know.
        let session =
            format!("SET statement_timeout = {millis}; SET default_transaction_read_only = on");
        let followed = Followed::default();
        let (known, newest) = (followed.clone(), followed.clone());
        let pool = PgPoolOptions::new()
            .max_connections(options.max_connections)
            .acquire_timeout(options.acquire_timeout)
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                let outdated = newest.is_younger_than(meta.age);
                Box::pin(async move {
                    let alive = meta.idle_for < TRUSTED_IDLE || connection.ping().await.is_ok();
                    Ok(alive && !outdated)
                })
            })
            .after_connect(move |connection, _| {
                let (session, known) = (session.clone(), known.clone());
                Box::pin(async move {
                    connection.execute(sqlx::AssertSqlSafe(session)).await?;
                    if known.is(&Server::of(connection).await?) {
                        Ok(())
                    } else {
                        let why = "not the database server whose changes are followed";
                        Err(sqlx::Error::Configuration(why.into()))
                    }
                })
            })
            .connect_lazy_with(connect.clone());

        timeout(options.connect_timeout, async {
            let mut first = PgConnection::connect_with(&connect)
                .await
                .map_err(OpenError::Unreachable)?;
            schema::check(&mut first).await?;
            if let Some(roots) = &options.trust_roots {
                must_be(&mut first, roots.registry_id()).await?;
            }
            first.close().await.map_err(OpenError::Unreachable)
        })
        .await
        .map_err(|_| OpenError::TimedOut(options.connect_timeout))??;

        let most = options.max_connections;
        Ok(Self {
            connections: Connections::of(pool, most, followed.clone()),
            followed,
            acquire_timeout: options.acquire_timeout,
            query_timeout: options.query_timeout,
            max_connections: options.max_connections,
            trust_roots: options.trust_roots.clone(),
        })
    }

    /// Whether the registry answers now and still has the right schema; ends by `deadline`.
    pub async fn is_ready(&self, deadline: Instant) -> bool {
        self.run(deadline, |connection| {
            schema::read_version(connection).boxed()
        })
        .await
        .is_ok_and(|version| version == Some(schema::SCHEMA_VERSION))
    }

    /// Whether the role this service connects as could change permissions.
    pub async fn can_write(&self, deadline: Instant) -> Option<bool> {
        self.run(deadline, |connection| {
            let query = sqlx::query_scalar::<_, bool>(
                "SELECT bool_or(has_table_privilege(name, 'INSERT, UPDATE, DELETE')) FROM unnest(
                     ARRAY['permission_registry', 'principal_signing_keys',
                           'principal_key_permissions']) AS name",
            );
            query.fetch_one(connection).boxed()
        })
        .await
        .ok()
    }
}

/// A mistake is told at start. It is no protection, and needs to be none: whatever the registry
/// calls itself, its rows are held against the id that the roots came with.
async fn must_be(connection: &mut PgConnection, expected: &Id) -> Result<(), OpenError> {
    let found = registry_id(connection)
        .await
        .map_err(OpenError::Unreachable)?;
    if found == expected.as_str() {
        return Ok(());
    }
    Err(OpenError::OtherRegistry {
        found,
        expected: expected.clone(),
    })
}

/// What the registry says that it is; empty if nothing.
pub(crate) async fn registry_id(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    let id = "SELECT registry_id FROM registry_identity";
    let id = sqlx::query_scalar(id).fetch_optional(connection).await?;
    Ok(id.unwrap_or_default())
}

pub(crate) fn connect_options(url: &str) -> Result<PgConnectOptions, OpenError> {
    // sqlx takes any scheme; what is meant for another kind of database gets no password of ours.
    if !["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
    {
        return Err(OpenError::BadUrl);
    }
    PgConnectOptions::from_str(url)
        .map(|options| options.application_name("agent-gateway"))
        .map_err(|_| OpenError::BadUrl)
}
