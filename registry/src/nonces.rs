//! Nonces that were used, in Postgres: one statement each, on a pool and a role of their own.

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use permission::Timestamp;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::time::{Instant, timeout, timeout_at};

use crate::connection::{OpenError, Options, connect_options};
use crate::connections::TRUSTED_IDLE;
use crate::lookup::LookupError;
use crate::schema;

/// Takes note of nonces, with the role `agent_gateway_relay`.
#[derive(Clone, Debug)]
pub struct NonceTable {
    pool: PgPool,
    acquire_timeout: Duration,
    query_timeout: Duration,
}

/// Adds a row, unless it is there or would be pruned at once: then it may have been there.
const INSERT_NONCE: &str = "
INSERT INTO relay_nonces (key, expires_at)
SELECT $1, expires_at FROM (SELECT $2::text::timestamptz AS expires_at) AS new
WHERE expires_at > now() - agent_gateway_nonce_margin()
ON CONFLICT (key) DO NOTHING";

impl NonceTable {
    /// Connects, and makes sure that the schema is the one this program knows and that this role
    /// may add nonces.
    pub async fn open(options: &Options) -> Result<Self, OpenError> {
        let connect = connect_options(&options.url)?;
        let millis = options.query_timeout.as_millis();
        // A nonce is used once its row can't be lost any more, whatever the server's default is.
        let session = format!("SET statement_timeout = {millis}; SET synchronous_commit = on");
        let pool = PgPoolOptions::new()
            .max_connections(options.max_connections)
            .acquire_timeout(options.acquire_timeout)
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    Ok(meta.idle_for < TRUSTED_IDLE || connection.ping().await.is_ok())
                })
            })
            .after_connect(move |connection, _| {
                let session = session.clone();
                Box::pin(async move {
                    connection.execute(sqlx::AssertSqlSafe(session)).await?;
                    Ok(())
                })
            })
            .connect_lazy_with(connect.clone());
        timeout(options.connect_timeout, async {
            let mut first = PgConnection::connect_with(&connect)
                .await
                .map_err(OpenError::Unreachable)?;
            schema::check(&mut first).await?;
            if !may_insert(&mut first)
                .await
                .map_err(OpenError::Unreachable)?
            {
                return Err(OpenError::NoRight("INSERT on relay_nonces"));
            }
            first.close().await.map_err(OpenError::Unreachable)
        })
        .await
        .map_err(|_| OpenError::TimedOut(options.connect_timeout))??;
        Ok(Self {
            pool,
            acquire_timeout: options.acquire_timeout,
            query_timeout: options.query_timeout,
        })
    }

    /// Uses a nonce: true for exactly one of all calls with the same key, on whatever replica, and
    /// only once its row is durable. False also where it is so old that it may have been forgotten.
    ///
    /// Not tried again where the connection breaks: a row that was added although no answer came
    /// would look used.
    pub async fn insert(
        &self,
        key: &[u8; 32],
        expires_at: Timestamp,
        deadline: Instant,
    ) -> Result<bool, LookupError> {
        let query = sqlx::query(INSERT_NONCE)
            .bind(key.to_vec())
            .bind(expires_at.to_string());
        let done = self
            .run(deadline, |connection| query.execute(connection).boxed())
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Forgets a part of what has long expired; whether there may be more.
    pub async fn prune(&self, deadline: Instant) -> Result<bool, LookupError> {
        let query = sqlx::query_scalar::<_, i64>("SELECT agent_gateway_prune_nonces()");
        let pruned = self
            .run(deadline, |connection| query.fetch_one(connection).boxed())
            .await?;
        Ok(pruned > 0)
    }

    /// How many there are, counted up to `most`.
    pub async fn count(&self, most: u64, deadline: Instant) -> Result<u64, LookupError> {
        let query = sqlx::query_scalar::<_, i64>(
            "SELECT count(*) FROM (SELECT FROM relay_nonces LIMIT $1) AS counted",
        )
        .bind(i64::try_from(most).unwrap_or(i64::MAX));
        let counted = self
            .run(deadline, |connection| query.fetch_one(connection).boxed())
            .await?;
        Ok(u64::try_from(counted).unwrap_or(0))
    }

    async fn run<T>(
        &self,
        deadline: Instant,
        run: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>>,
    ) -> Result<T, LookupError> {
        let until = |limit: Duration| deadline.min(Instant::now() + limit);
        let acquired = timeout_at(until(self.acquire_timeout), self.pool.acquire()).await;
        let mut connection = match acquired {
            Ok(Ok(connection)) => connection,
            Ok(Err(sqlx::Error::PoolTimedOut)) | Err(_) => return Err(LookupError::TimedOut),
            Ok(Err(error)) => return Err(error.into()),
        };
        let done = timeout_at(until(self.query_timeout), run(&mut connection)).await;
        if !matches!(done, Ok(Ok(_))) {
            // Dead; or its answer may still come, never to be taken for another query's.
            connection.close_on_drop();
        }
        Ok(done.map_err(|_| LookupError::TimedOut)??)
    }
}

async fn may_insert(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT has_table_privilege('relay_nonces', 'INSERT')")
        .fetch_one(connection)
        .await
}
