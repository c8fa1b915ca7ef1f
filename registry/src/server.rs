//! Which database server is followed: a lookup anywhere else would read another history.
//!
//! Behind one address there can be several servers, one after another (a failover, a restored
//! copy) or at once (a standby beside its primary). Cached facts are as fresh as the change feed
//! says only if both come from the same one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use permission::Timestamp;
use sqlx::PgConnection;

use crate::lookup::LookupError;

/// A standby's primary, or this machine, may have its clock wrong by so much, in microseconds.
const CLOCK_TOLERANCE: i64 = 250_000;

/// A server, and which of its histories.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Server {
    pub(crate) standby: bool,
    pub(crate) system: String,
    pub(crate) timeline: i32,
    /// When a standby was started, in microseconds: what tells it from another standby of the same
    /// primary, which may have replayed less.
    pub(crate) standby_started: Option<i64>,
}

/// The columns of a [`Server`].
macro_rules! server_columns {
    () => {
        "pg_is_in_recovery() AS standby,
         (SELECT system_identifier::text FROM pg_control_system()) AS system,
         (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline,
         CASE WHEN pg_is_in_recovery() THEN
             (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::int8
         END AS standby_started"
    };
}

impl Server {
    /// The one at the other end.
    pub(crate) async fn of(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        sqlx::query_as(concat!("SELECT ", server_columns!()))
            .fetch_one(connection)
            .await
    }
}

/// How far a standby has followed its primary.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Replayed {
    #[sqlx(flatten)]
    server: Server,
    /// When the last transaction that was replayed was committed, by the primary's clock.
    committed_at: Option<i64>,
}

impl Replayed {
    /// To be asked before what is then read: whatever was replayed by now is seen by it.
    pub(crate) async fn by(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        sqlx::query_as(concat!(
            "SELECT ",
            server_columns!(),
            ", (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::int8
                  AS committed_at"
        ))
        .fetch_one(connection)
        .await
    }

    /// How old it is what `server` then told, where `now` is a time before it was asked.
    pub(crate) fn age(&self, server: &Server, now: Timestamp) -> Result<Duration, LookupError> {
        if self.server != *server {
            return Err(LookupError::Failed(sqlx::Error::Protocol(
                "another server answered meanwhile".to_owned(),
            )));
        }
        if !server.standby {
            return Ok(Duration::ZERO);
        }
        let committed_at = self.committed_at.ok_or(LookupError::NothingReplayed)?;
        let age = now.as_unix_micros().saturating_sub(committed_at);
        if age < -CLOCK_TOLERANCE {
            let ahead = Duration::from_micros(age.unsigned_abs());
            return Err(LookupError::ClockAhead(ahead));
        }
        Ok(Duration::from_micros(u64::try_from(age).unwrap_or(0)))
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
        followed.as_ref().is_none_or(|(known, _)| known == server)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn standby(started: i64) -> Server {
        Server {
            standby: true,
            system: "7".to_owned(),
            timeline: 1,
            standby_started: Some(started),
        }
    }

    fn replayed(committed_at: Option<i64>) -> Replayed {
        Replayed {
            server: standby(5),
            committed_at,
        }
    }

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_unix_micros(micros).unwrap()
    }

    #[test]
    fn a_standby_is_as_old_as_the_last_transaction_it_replayed() {
        for (committed_at, age) in [(3_000_000, 7_000_000), (10_000_000, 0), (10_250_000, 0)] {
            let told = replayed(Some(committed_at)).age(&standby(5), at(10_000_000));
            assert_eq!(told.unwrap(), Duration::from_micros(age));
        }
    }

    #[test]
    fn a_transaction_from_the_future_and_none_at_all_tell_nothing() {
        let ahead = replayed(Some(10_250_001)).age(&standby(5), at(10_000_000));
        assert!(
            matches!(ahead, Err(LookupError::ClockAhead(_))),
            "{ahead:?}"
        );
        let none = replayed(None).age(&standby(5), at(10_000_000));
        assert!(
            matches!(none, Err(LookupError::NothingReplayed)),
            "{none:?}"
        );
    }

    #[test]
    fn what_another_standby_replayed_says_nothing_about_this_one() {
        let other = replayed(Some(10_000_000)).age(&standby(6), at(10_000_000));
        assert!(matches!(other, Err(LookupError::Failed(_))), "{other:?}");
        let followed = Followed::default();
        followed.set(standby(5));
        assert!(followed.is(&standby(5)));
        assert!(!followed.is(&standby(6)));
    }
}
