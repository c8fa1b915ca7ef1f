//! The gateway's services, as their admin interfaces show them.

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use permission::Destination;
use proto::admin::v1::operations_client::OperationsClient;
use proto::admin::v1::{FreshnessRequest, FreshnessResponse};
use registry::Revoked;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Longest wait for one answer, connecting included.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two questions to the same service.
const PAUSE: Duration = Duration::from_millis(20);

/// Where a service's admin interface is: `HOST:PORT` or `unix:/PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica(String);

/// Why a text names no admin interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not HOST:PORT or unix:/PATH")]
pub struct ParseReplicaError;

impl FromStr for Replica {
    type Err = ParseReplicaError;

    fn from_str(text: &str) -> Result<Self, ParseReplicaError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let usable = Path::new(path).is_absolute() && !path.contains(['?', '#', '%', ' ']);
            return usable
                .then(|| Self(text.to_owned()))
                .ok_or(ParseReplicaError);
        }
        // The port has no default: 443 would never be right.
        let destination = Destination::from_normal_form(text).ok_or(ParseReplicaError)?;
        Ok(Self(destination.to_string()))
    }
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a service has not confirmed, or not answered.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// It can't be reached.
    #[error("can't be reached")]
    Unreachable(#[source] tonic::transport::Error),
    /// It took what was sent and kept silent.
    #[error("gave no answer within {0:?}")]
    Silent(Duration),
    /// It refused.
    #[error("answered {}: {}", .0.code(), .0.message())]
    Refused(Box<Status>),
    /// It reads another registry.
    #[error("follows another database server than this one")]
    OtherDatabase,
    /// It knows older changes alone.
    #[error("does not know it yet")]
    Behind,
}

impl Replica {
    /// A connection to it.
    pub(crate) async fn connect(&self) -> Result<OperationsClient<Channel>, ReplicaError> {
        let uri = match self.0.strip_prefix("unix:") {
            Some(_) => self.0.clone(),
            None => format!("http://{}", self.0),
        };
        let endpoint = Endpoint::from_shared(uri).map_err(ReplicaError::Unreachable)?;
        let channel = timeout(PATIENCE, endpoint.connect())
            .await
            .map_err(|_| ReplicaError::Silent(PATIENCE))?;
        Ok(OperationsClient::new(
            channel.map_err(ReplicaError::Unreachable)?,
        ))
    }

    /// Waits until it knows what was revoked before `since`; returns how long after.
    async fn confirms(
        self,
        revoked: Revoked,
        since: Instant,
        limit: Duration,
    ) -> Result<(Self, Duration), (Self, ReplicaError)> {
        loop {
            match self.knows(&revoked, since).await {
                Ok(()) => return Ok((self, since.elapsed())),
                Err(error) if since.elapsed() >= limit => return Err((self, error)),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    async fn knows(&self, revoked: &Revoked, since: Instant) -> Result<(), ReplicaError> {
        let mut client = self.connect().await?;
        let asked = Instant::now();
        let answer = answer(client.freshness(FreshnessRequest {})).await?;
        if answer.timeline != revoked.timeline || answer.system_identifier != revoked.system {
            return Err(ReplicaError::OtherDatabase);
        }
        if confirms(&answer, revoked.xid, asked.duration_since(since)) {
            Ok(())
        } else {
            Err(ReplicaError::Behind)
        }
    }
}

/// Whether a service that was asked `asked` after the commit of `xid` knew of it.
///
/// Either it says so of the transaction, or its last confirmation that it knows all there is came
/// after the commit: one long transaction elsewhere holds back the first, but not the second.
fn confirms(answer: &FreshnessResponse, xid: u64, asked: Duration) -> bool {
    // The age is rounded down.
    let since_confirmed = answer
        .confirmed_age_ms
        .map(|age| Duration::from_millis(age.saturating_add(1)));
    answer.handled_below_xid > xid || since_confirmed.is_some_and(|age| age < asked)
}

/// Waits for an answer, but not for ever.
pub(crate) async fn answer<T>(
    asking: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, ReplicaError> {
    timeout(PATIENCE, asking)
        .await
        .map_err(|_| ReplicaError::Silent(PATIENCE))?
        .map(tonic::Response::into_inner)
        .map_err(|status| ReplicaError::Refused(Box::new(status)))
}

/// How long each service took to confirm, or those that have not in time and why.
pub(crate) async fn all_confirm(
    replicas: &[Replica],
    revoked: &Revoked,
    since: Instant,
    limit: Duration,
) -> Result<Vec<(Replica, Duration)>, Vec<(Replica, ReplicaError)>> {
    let mut waiting: JoinSet<_> = replicas
        .iter()
        .map(|replica| replica.clone().confirms(revoked.clone(), since, limit))
        .collect();
    let (mut confirmed, mut missing) = (Vec::new(), Vec::new());
    while let Some(ended) = waiting.join_next().await {
        match ended {
            Ok(Ok(replica)) => confirmed.push(replica),
            Ok(Err(replica)) => missing.push(replica),
            // A task that panicked; it is not among the confirmed, so it must be missing.
            Err(_) => missing.push((Replica("?".to_owned()), ReplicaError::Behind)),
        }
    }
    if missing.is_empty() {
        Ok(confirmed)
    } else {
        Err(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_later_than_the_commit_confirms_it() {
        let answer = |age, below| FreshnessResponse {
            confirmed_age_ms: age,
            handled_below_xid: below,
            ..Default::default()
        };
        let asked = Duration::from_millis(100);
        for (age, below, expected) in [
            (None, 7, false),
            (None, 8, true),
            (Some(99), 7, false),
            (Some(98), 7, true),
            (Some(100), 7, false),
            (Some(u64::MAX), 7, false),
            (Some(500), 8, true),
        ] {
            assert_eq!(
                confirms(&answer(age, below), 7, asked),
                expected,
                "{age:?} {below}"
            );
        }
    }

    #[test]
    fn addresses_have_a_port_or_are_absolute_paths() {
        for good in [
            "127.0.0.1:9002",
            "[::1]:9002",
            "authz:9002",
            "unix:/run/a.sock",
        ] {
            assert_eq!(good.parse::<Replica>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "authz",
            "http://authz:1",
            "unix:a.sock",
            "unix:",
            "authz:0",
            "unix:/a?b",
        ] {
            assert_eq!(bad.parse::<Replica>(), Err(ParseReplicaError), "{bad}");
        }
    }
}
