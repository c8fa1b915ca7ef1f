//! Which database server is followed: a lookup anywhere else would read another history.
//!
//! Behind one address there can be several servers, one after another (a failover, a restored
//! copy) or at once (a standby beside its primary). Cached facts are as fresh as the change feed
//! says only if both come from the same one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::PgConnection;

/// A server, and which of its histories.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Server {
    pub(crate) standby: bool,
    pub(crate) system: String,
    pub(crate) timeline: i32,
}

impl Server {
    /// The one at the other end.
    pub(crate) async fn of(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        sqlx::query_as(
            "SELECT pg_is_in_recovery() AS standby,
                    (SELECT system_identifier::text FROM pg_control_system()) AS system,
                    (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline",
        )
        .fetch_one(connection)
        .await
    }
}

/// The server that the change feed reads, told to whoever looks permissions up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Followed(Arc<Mutex<Option<(Server, Instant)>>>);

impl Followed {
    /// The feed has connected, to this server.
    pub(crate) fn set(&self, server: Server) {
        *self.lock() = Some((server, Instant::now()));
    }

    /// Whether a connection to `server` may be used for lookups.
    pub(crate) fn is(&self, server: &Server) -> bool {
        let followed = self.lock();
        !server.standby && followed.as_ref().is_none_or(|(known, _)| known == server)
    }

    /// Whether a connection of this age is from before the feed's own, perhaps to another server.
    pub(crate) fn is_younger_than(&self, age: Duration) -> bool {
        let followed = self.lock();
        followed
            .as_ref()
            .is_some_and(|(_, since)| since.elapsed() <= age)
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Server, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
