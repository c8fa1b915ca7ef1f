//! The connection to the registry, and how long anything in it may take.

use std::future::Future;
use std::time::Duration;

use registry::Writer;
use tokio::time::timeout;

use crate::environment;
use crate::failure::{Failure, RootFailure};
use crate::trust::Trust;

/// Longest wait for an answer. The server gives a statement up after 30 s and says so; this is
/// for a server that says nothing at all.
const PATIENCE: Duration = Duration::from_secs(40);

/// Connects to the registry that the environment names, which must be the one that is meant.
pub(crate) async fn open(trust: &Trust) -> Result<Writer, Failure> {
    if trust.unplaced.is_empty() {
        open_any(trust).await
    } else {
        Err(RootFailure::NoRegistryId.into())
    }
}

/// As [`open`], also where roots are given and nobody says for which registry.
pub(crate) async fn open_any(trust: &Trust) -> Result<Writer, Failure> {
    let url = environment::database_url()?;
    let mut registry = within(Writer::open(&url)).await?;
    if let Some(expected) = &trust.registry_id {
        let found = within(registry.registry_id()).await?;
        if found != expected.as_str() {
            let expected = expected.clone();
            return Err(RootFailure::OtherRegistry { found, expected }.into());
        }
    }
    Ok(registry.trusting(trust.roots.clone()))
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
