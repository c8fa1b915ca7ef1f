//! The pool's connections, handed from one read to the next.
//!
//! sqlx's pool asks each connection that it gets back whether it still lives, a round trip beside
//! every read. One that has just answered is known to: it waits here for the next read, and goes
//! back to the pool, with its rules, when it was idle or out for long.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPool;
use sqlx::{PgConnection, Postgres};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::server::Followed;

/// A connection idle for longer is asked whether it still lives before it is used: after a
/// restart of the database the pool is full of dead ones. Busy ones are spared the round trip.
pub(crate) const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// How long one is out of the pool, which closes those that have become old.
const LONGEST_OUT: Duration = Duration::from_mins(1);

/// Clones share the connections.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    pool: PgPool,
    followed: Followed,
    /// As many as the pool has connections: it does not know of those that wait here.
    places: Arc<Semaphore>,
    idle: Arc<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf(Mutex<Vec<Idle>>);

#[derive(Debug)]
struct Idle {
    connection: PoolConnection<Postgres>,
    taken: Instant,
    since: Instant,
}

/// A connection for one read; dropped, it goes back to the pool.
#[derive(Debug)]
pub(crate) struct Lent {
    connection: PoolConnection<Postgres>,
    taken: Instant,
    connections: Connections,
    _place: OwnedSemaphorePermit,
}

impl Connections {
    /// Those of `pool`, which has at most `most`.
    pub(crate) fn of(pool: PgPool, most: u32, followed: Followed) -> Self {
        Self {
            pool,
            followed,
            places: Arc::new(Semaphore::new(usize::try_from(most).unwrap_or(usize::MAX))),
            idle: Arc::default(),
        }
    }

    /// Waits without limit for a free one, and within the pool's for a new one.
    pub(crate) async fn lend(&self) -> Result<Lent, sqlx::Error> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| sqlx::Error::PoolClosed)?;
        let (connection, taken) = match self.take_idle() {
            Some(known) => known,
            None => (self.pool.acquire().await?, Instant::now()),
        };
        Ok(Lent {
            connection,
            taken,
            connections: self.clone(),
            _place: place,
        })
    }

    /// One straight from the pool.
    pub(crate) async fn pooled(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        self.pool.acquire().await
    }

    /// The one used last, if it may be; the others are more outdated, and go back to the pool.
    fn take_idle(&self) -> Option<(PoolConnection<Postgres>, Instant)> {
        let mut idle = self.idle();
        let Idle {
            connection,
            taken,
            since,
        } = idle.pop()?;
        if since.elapsed() < TRUSTED_IDLE && !self.followed.is_younger_than(taken.elapsed()) {
            return Some((connection, taken));
        }
        idle.clear();
        None
    }

    /// Locked only to put one in, or take one out.
    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        // Going back to the pool takes a task. Without a runtime there is no pool to go back to
        // either, and sqlx would panic.
        if Handle::try_current().is_err() {
            let idle = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
            idle.drain(..).for_each(mem::forget);
        }
    }
}

impl Lent {
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// It answered, and to the end.
    pub(crate) fn keep(self) {
        let Self {
            connection,
            taken,
            connections,
            _place,
        } = self;
        if taken.elapsed() < LONGEST_OUT {
            connections.idle().push(Idle {
                connection,
                taken,
                since: Instant::now(),
            });
        }
    }

    /// It is dead, or its answer may still come: never to be taken for another read's.
    pub(crate) fn close(mut self) {
        self.connection.close_on_drop();
    }
}
