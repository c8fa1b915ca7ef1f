//! The connection to the registry, and how long anything in it may take.

use std::future::Future;
use std::time::Duration;

use registry::Writer;
use tokio::time::timeout;

use crate::environment;
use crate::failure::Failure;

/// Longest wait for an answer. The server gives a statement up after 30 s and says so; this is
/// for a server that says nothing at all.
const PATIENCE: Duration = Duration::from_secs(40);

/// Connects to the registry that the environment names.
pub(crate) async fn open() -> Result<Writer, Failure> {
    let url = environment::database_url()?;
    within(Writer::open(&url)).await
}

/// Waits for the database, but not for ever.
pub(crate) async fn within<T, E: Into<Failure>>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    match timeout(PATIENCE, work).await {
        Ok(outcome) => outcome.map_err(Into::into),
        Err(_) => Err(Failure::DatabaseSilent(PATIENCE)),
    }
}
