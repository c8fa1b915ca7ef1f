//! The schema's version, and the migrations that bring a database to it.

use std::time::Duration;

use sqlx::{Connection as _, Executor as _, PgConnection};

use tokio::time::timeout;

use crate::connection::{OpenError, connect_options};

/// The migrations, in order; the n-th brings a database to version n. Files are append-only.
const MIGRATIONS: [(&str, &str); 6] = [
    (
        "0001_signed_authorization_registry.sql",
        include_str!("../../migrations/0001_signed_authorization_registry.sql"),
    ),
    (
        "0002_change_feed.sql",
        include_str!("../../migrations/0002_change_feed.sql"),
    ),
    (
        "0003_root_of_trust.sql",
        include_str!("../../migrations/0003_root_of_trust.sql"),
    ),
    (
        "0004_relay_nonces.sql",
        include_str!("../../migrations/0004_relay_nonces.sql"),
    ),
    (
        "0005_heartbeat.sql",
        include_str!("../../migrations/0005_heartbeat.sql"),
    ),
    (
        "0006_poca_keys.sql",
        include_str!("../../migrations/0006_poca_keys.sql"),
    ),
];

/// The version this program works with.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a handful"
)]
pub const SCHEMA_VERSION: i32 = MIGRATIONS.len() as i32;

/// Longest wait for the database to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a lock.
const LOCK_TIMEOUT: &str = "60s";

/// Two migrations at a time would trip over each other; the number is arbitrary and ours.
const MIGRATION_LOCK: i64 = 0x6167_6774_6d69_6772;

/// Why a database is not one that this program can work with.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Never migrated.
    #[error("database has no registry: migration {} was never applied", MIGRATIONS[0].0)]
    Missing,
    /// Made by an older program.
    #[error(
        "registry has schema version {found}, this program needs {SCHEMA_VERSION}: migration {missing} is missing"
    )]
    Older {
        /// The version found.
        found: i32,
        /// The first file that is missing.
        missing: &'static str,
    },
    /// Made by a newer program.
    #[error("registry has schema version {found}, this program knows only {SCHEMA_VERSION}")]
    Newer {
        /// The version found.
        found: i32,
    },
    /// The version couldn't be read.
    #[error("schema version can't be read: {0}")]
    Unreadable(#[source] sqlx::Error),
}

/// Why a migration didn't run.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Couldn't get there.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database is of a newer program; nothing was changed.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The database refused; the file it was in left no trace.
    #[error("migration {file} failed: {source}")]
    Failed {
        /// The file.
        file: &'static str,
        /// What the database said.
        source: sqlx::Error,
    },
}

/// Applies the migrations that are missing and names them. Needs a role that may create tables.
pub async fn migrate(url: &str) -> Result<Vec<&'static str>, MigrateError> {
    let options = connect_options(url)?;
    let connecting = timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await;
    let mut connection = connecting
        .map_err(|_| OpenError::TimedOut(CONNECT_TIMEOUT))?
        .map_err(OpenError::Unreachable)?;
    // A table that somebody holds, or another migration: not waited for without end.
    let limit = format!("SET lock_timeout = '{LOCK_TIMEOUT}'");
    connection
        .execute(sqlx::AssertSqlSafe(limit))
        .await
        .map_err(SchemaError::Unreadable)?;
    let locked = sqlx::query("SELECT pg_advisory_lock($1)").bind(MIGRATION_LOCK);
    locked
        .execute(&mut connection)
        .await
        .map_err(SchemaError::Unreadable)?;

    let found = read_version(&mut connection)
        .await
        .map_err(SchemaError::Unreadable)?
        .unwrap_or(0);
    if found > SCHEMA_VERSION {
        return Err(SchemaError::Newer { found }.into());
    }
    let mut applied = Vec::new();
    for (file, sql) in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        // Each file is a transaction of its own and records its version, as under `psql -f`.
        let run = connection.execute(sqlx::raw_sql(*sql)).await;
        run.map_err(|source| MigrateError::Failed { file, source })?;
        applied.push(*file);
    }
    // The lock ends with the session.
    connection.close().await.map_err(SchemaError::Unreadable)?;
    Ok(applied)
}

/// Makes sure that the version is the one this program works with.
pub(crate) async fn check(connection: &mut PgConnection) -> Result<(), SchemaError> {
    match read_version(connection)
        .await
        .map_err(SchemaError::Unreadable)?
    {
        None | Some(0) => Err(SchemaError::Missing),
        Some(found) if found > SCHEMA_VERSION => Err(SchemaError::Newer { found }),
        Some(found) => {
            let missing = usize::try_from(found)
                .ok()
                .and_then(|index| MIGRATIONS.get(index));
            missing.map_or(Ok(()), |(missing, _)| {
                Err(SchemaError::Older { found, missing })
            })
        }
    }
}

/// The version recorded, or `None` where no registry was ever made.
pub(crate) async fn read_version(
    connection: &mut PgConnection,
) -> Result<Option<i32>, sqlx::Error> {
    const UNDEFINED_TABLE: &str = "42P01";
    let version = "SELECT max(version) FROM agent_gateway_schema_version";
    match sqlx::query_scalar::<_, Option<i32>>(version)
        .fetch_one(connection)
        .await
    {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(UNDEFINED_TABLE) => {
            Ok(None)
        }
        other => other,
    }
}
