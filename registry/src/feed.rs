//! The change feed: what was written to the registry since it was last read, in no way missed.
//!
//! Followed by transaction id (migrations/0002 says why). One statement returns the changes and
//! its snapshot's xmin; the next read starts there and leaves out what was handled already.

use std::collections::BTreeSet;
use std::time::Duration;

use permission::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{ConnectOptions as _, Executor as _, PgConnection};
use tokio::time::{Instant, timeout_at};

use crate::connection::{OpenError, Reader, connect_options};
use crate::lookup::LookupError;
use crate::server::{Followed, Replayed, Server};

/// More changes than this at once, and the reader starts afresh: forgetting everything costs less.
const MAX_CHANGES: usize = 10_000;
/// Most handled transactions remembered above a snapshot's xmin, which one long write holds back.
const MAX_HANDLED: usize = 100_000;
/// For so long nothing is confirmed after a standby had a transaction from the future: while it lags
/// behind as far as its primary's clock is ahead, it would look fresh.
const CLOCK_DISTRUST: Duration = Duration::from_mins(1);

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Change {
    /// A permission of this agent key for this destination, all as stored.
    Permission {
        /// The agent.
        identity: String,
        /// The agent's key.
        spki: Vec<u8>,
        /// The destination.
        destination: String,
    },
    /// A signing key, or one of its scopes.
    SigningKey(String),
    /// A `PoCA` key of this agent.
    PocaKey(String),
}

/// One read of the feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// What it found.
    pub batch: Batch,
    /// How long before the read began everything that was committed is known to be in it: none at a
    /// primary, and at a standby how far that is behind.
    pub age: Duration,
}

/// What one read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batch {
    /// These changes, and no others.
    Changes(Vec<Change>),
    /// Anything may have changed.
    Everything(Why),
}

/// Why anything may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The first read.
    #[error("first read")]
    First,
    /// The connection was lost, and with it the certainty that it is the same database.
    #[error("the connection was lost")]
    Reconnected,
    /// Another server, or the same after a failover.
    #[error("another server, or another timeline")]
    OtherServer,
    /// Transaction ids went backwards, or the last change seen is not there: an older copy.
    #[error("the database's history is not the one that was read before")]
    OtherHistory,
    /// The reader was away for so long that changes were pruned.
    #[error("changes were pruned before they were read")]
    Pruned,
    /// A table was truncated.
    #[error("a table was truncated")]
    Truncated,
    /// More at once than are worth following.
    #[error("too many changes at once")]
    TooMany,
}

/// Reads the feed, on a connection of its own: a pool full of lookups can't starve it.
#[derive(Debug)]
pub struct Feed {
    options: PgConnectOptions,
    read_timeout: Duration,
    connection: Option<PgConnection>,
    position: Option<Position>,
    /// Told where this reads.
    followed: Followed,
    /// Until when no standby is believed, for a clock was wrong, and by how much.
    distrusted: Option<(Instant, Duration)>,
}

/// How far the feed was read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Position {
    server: Server,
    /// Everything below was handled.
    xmin: u64,
    /// Handled at or above `xmin`.
    handled: BTreeSet<u64>,
    /// The greatest change handled: its seq and transaction.
    last: Option<(i64, u64)>,
}

/// How far a feed was read, for people to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The server: Postgres's system identifier.
    pub system: String,
    /// Its timeline.
    pub timeline: i32,
    /// Whether it is a standby.
    pub standby: bool,
    /// All changes of transactions below this one are handled.
    pub xmin: u64,
    /// The number of the last change handled.
    pub last_change: Option<i64>,
}

#[derive(Debug, sqlx::FromRow)]
struct FeedRow {
    #[sqlx(flatten)]
    server: Server,
    xmin: String,
    pruned: String,
    last_is_there: bool,
    seq: Option<i64>,
    xid: Option<String>,
    subject_identity: Option<String>,
    destination: Option<String>,
    subject_public_key_spki_der: Option<Vec<u8>>,
    signing_key_id: Option<String>,
}

/// `xid8` has no binary form that sqlx knows, so it travels as text.
///
/// In the order of the index on xid: by seq alone, a planner that knows nothing of the values (the
/// table not analyzed yet, a generic plan) walks through all changes that were ever handled.
const SELECT_CHANGES: &str = "
SELECT s.standby, s.standby_started, s.xmin, s.system, s.timeline, s.pruned, s.last_is_there,
       c.seq, c.xid::text AS xid, c.subject_identity, c.destination,
       c.subject_public_key_spki_der, c.signing_key_id
FROM (
    SELECT pg_is_in_recovery() AS standby,
           CASE WHEN pg_is_in_recovery() THEN
               (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::int8
           END AS standby_started,
           pg_snapshot_xmin(pg_current_snapshot())::text AS xmin,
           (SELECT system_identifier::text FROM pg_control_system()) AS system,
           (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline,
           (SELECT up_to::text FROM registry_changes_pruned) AS pruned,
           EXISTS (SELECT FROM registry_changes WHERE seq = $3 AND xid = $4::text::xid8)
               AS last_is_there
) s
LEFT JOIN LATERAL (
    SELECT seq, xid, subject_identity, destination, subject_public_key_spki_der, signing_key_id
    FROM registry_changes
    WHERE xid >= $1::text::xid8 AND NOT (xid = ANY ($2::text[]::xid8[]))
    ORDER BY xid, seq
    LIMIT $5
) c ON $6";

impl Feed {
    /// A feed that has read nothing yet; the server, too, gives a read up after `read_timeout`.
    pub fn new(url: &str, read_timeout: Duration) -> Result<Self, OpenError> {
        Ok(Self {
            options: connect_options(url)?,
            read_timeout,
            connection: None,
            position: None,
            followed: Followed::default(),
            distrusted: None,
        })
    }

    /// From now on `reader` looks permissions up only at the server that this feed reads, and on
    /// connections no older than the feed's own.
    #[must_use]
    pub fn leading(mut self, reader: &Reader) -> Self {
        self.followed = reader.followed.clone();
        self
    }

    /// Reads what is new; ends by `deadline`. It is `now`, by which a standby's age is told.
    ///
    /// After an error the next read is of everything, and says whether it is still the same
    /// database.
    pub async fn read(&mut self, deadline: Instant, now: Timestamp) -> Result<Read, LookupError> {
        // Taken, so that a connection that was given up on, with an answer still to come, is gone.
        let taken = self.connection.take();
        let before = self.position.as_ref();
        let reconnects = taken.is_none();
        let at_standby = before.is_some_and(|position| position.server.standby);
        let distrusted = self.distrusted.filter(|(until, _)| Instant::now() < *until);
        let read = timeout_at(deadline, async {
            let mut connection = match taken {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            // One by one only on a connection that was there before: else the database may be
            // another one, and what made the last read take too long would do so for ever.
            // Asked first, for what is replayed in between would count as seen.
            let replayed = if at_standby || reconnects {
                Some(Replayed::by(&mut connection).await?)
            } else {
                None
            };
            let rows = select(&mut connection, before, !reconnects).await?;
            let (mut position, mut batch) = advance(before, &rows)?;
            let age = match replayed {
                Some(replayed) => replayed.age(&position.server, now)?,
                // A primary can't have become a standby under its connections.
                None if position.server.standby => return Err(strange()),
                None => Duration::ZERO,
            };
            if let Some((_, ahead)) = distrusted.filter(|_| position.server.standby) {
                return Err(LookupError::ClockAhead(ahead));
            }
            if reconnects && matches!(batch, Batch::Changes(_)) {
                batch = Batch::Everything(Why::Reconnected);
            }
            if reconnects || matches!(batch, Batch::Everything(Why::OtherServer)) {
                // Before anybody hears of the batch: what is loaded after it is loaded there.
                self.followed.set(position.server.clone());
            }
            if matches!(batch, Batch::Everything(_)) {
                // All of it is forgotten now, so all that is there now is handled.
                position.skip_to_end(&mut connection).await?;
            }
            Ok::<_, LookupError>((connection, position, Read { batch, age }))
        });
        match read.await {
            Ok(Ok((connection, position, read))) => {
                self.connection = Some(connection);
                self.position = Some(position);
                Ok(read)
            }
            Ok(Err(error)) => {
                if let (LookupError::ClockAhead(ahead), None) = (&error, distrusted) {
                    self.distrusted = Some((Instant::now() + CLOCK_DISTRUST, *ahead));
                }
                Err(error)
            }
            Err(_) => Err(LookupError::TimedOut),
        }
    }

    /// How far the last good read got; `None` before it.
    pub fn progress(&self) -> Option<Progress> {
        self.position.as_ref().map(|position| Progress {
            system: position.server.system.clone(),
            timeline: position.server.timeline,
            standby: position.server.standby,
            xmin: position.xmin,
            last_change: position.last.map(|(seq, _)| seq),
        })
    }

    /// A connection on which nothing that was given up on goes on for long in the server.
    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        let millis = self.read_timeout.as_millis();
        let limits = format!("SET statement_timeout = {millis}; SET lock_timeout = {millis}");
        connection.execute(sqlx::AssertSqlSafe(limits)).await?;
        Ok(connection)
    }

    /// Commits a transaction where a primary has standbys, so that services there can tell how old
    /// what they read is; ends by `deadline`.
    pub async fn beat(&mut self, deadline: Instant) -> Result<(), LookupError> {
        if self
            .position
            .as_ref()
            .is_none_or(|read| read.server.standby)
        {
            return Ok(());
        }
        let beat = "SELECT count(*) FROM agent_gateway_heartbeat()";
        self.ask(beat, deadline).await.map(drop)
    }

    /// Forgets some old changes, where this server may write; ends by `deadline`. Whether there may be
    /// more of them.
    pub async fn prune(&mut self, deadline: Instant) -> Result<bool, LookupError> {
        let prune = "SELECT CASE WHEN pg_is_in_recovery() THEN 0::bigint ELSE agent_gateway_prune_changes() END";
        let pruned = self.ask(prune, deadline).await?;
        Ok(pruned.is_some_and(|pruned| pruned > 0))
    }

    /// Asks the server that is read for a number, if there is a connection to it.
    async fn ask(
        &mut self,
        query: &'static str,
        deadline: Instant,
    ) -> Result<Option<i64>, LookupError> {
        let Some(mut connection) = self.connection.take() else {
            return Ok(None);
        };
        let number = sqlx::query_scalar(query).fetch_one(&mut connection);
        let number = timeout_at(deadline, number)
            .await
            .map_err(|_| LookupError::TimedOut)?;
        // A refusal leaves it as good as it was: else each one would cost all that is cached.
        self.connection = Some(connection);
        Ok(Some(number?))
    }
}

async fn select(
    connection: &mut PgConnection,
    position: Option<&Position>,
    one_by_one: bool,
) -> Result<Vec<FeedRow>, sqlx::Error> {
    let xmin = position.map_or(0, |position| position.xmin);
    let handled = position.into_iter().flat_map(|position| &position.handled);
    let handled: Vec<String> = handled.map(ToString::to_string).collect();
    let (seq, xid) = position
        .and_then(|position| position.last)
        .unwrap_or((0, 0));
    sqlx::query_as(SELECT_CHANGES)
        .bind(xmin.to_string())
        .bind(handled)
        .bind(seq)
        .bind(xid.to_string())
        .bind(i64::try_from(MAX_CHANGES + 1).unwrap_or(i64::MAX))
        .bind(one_by_one)
        .fetch_all(connection)
        .await
}

impl Position {
    /// Counts all changes that can be seen now as handled.
    async fn skip_to_end(&mut self, connection: &mut PgConnection) -> Result<(), LookupError> {
        let seen: Vec<(i64, String)> = sqlx::query_as(
            "SELECT max(seq), xid::text FROM registry_changes WHERE xid >= $1::text::xid8
             GROUP BY xid ORDER BY max(seq)",
        )
        .bind(self.xmin.to_string())
        .fetch_all(&mut *connection)
        .await?;
        let last: Option<(i64, String)> =
            sqlx::query_as("SELECT seq, xid::text FROM registry_changes ORDER BY seq DESC LIMIT 1")
                .fetch_optional(connection)
                .await?;
        self.handled = seen
            .iter()
            .map(|(_, xid)| number(xid))
            .collect::<Result<_, _>>()?;
        self.last = match last {
            Some((seq, xid)) => Some((seq, number(&xid)?)),
            None => None,
        };
        Ok(())
    }
}

fn number(text: &str) -> Result<u64, LookupError> {
    text.parse().map_err(|_| strange())
}

fn strange() -> LookupError {
    LookupError::Failed(sqlx::Error::Protocol("change feed".to_owned()))
}

/// Turns what was read into a batch and the position after it.
fn advance(before: Option<&Position>, rows: &[FeedRow]) -> Result<(Position, Batch), LookupError> {
    let first = rows.first().ok_or_else(strange)?;
    let mut after = Position {
        server: first.server.clone(),
        xmin: number(&first.xmin)?,
        handled: BTreeSet::new(),
        last: None,
    };
    let pruned = number(&first.pruned)?;
    let Some(before) = before else {
        return Ok((after, Batch::Everything(Why::First)));
    };
    if before.server != after.server {
        return Ok((after, Batch::Everything(Why::OtherServer)));
    }
    let last_is_gone = before
        .last
        .is_some_and(|(_, xid)| !first.last_is_there && xid > pruned);
    if after.xmin < before.xmin || last_is_gone {
        return Ok((after, Batch::Everything(Why::OtherHistory)));
    }
    if pruned >= before.xmin {
        return Ok((after, Batch::Everything(Why::Pruned)));
    }

    after.last = before.last;
    let mut handled = before.handled.clone();
    let mut changes = Vec::new();
    let mut truncated = false;
    for row in rows {
        let (Some(seq), Some(xid)) = (row.seq, &row.xid) else {
            continue;
        };
        let xid = number(xid)?;
        handled.insert(xid);
        if after.last.is_none_or(|(last, _)| seq > last) {
            after.last = Some((seq, xid));
        }
        match row.change() {
            Some(change) => changes.push(change),
            None => truncated = true,
        }
    }
    after.handled = handled.split_off(&after.xmin);
    // The rows were cut off somewhere, perhaps within a transaction.
    if changes.len() > MAX_CHANGES || after.handled.len() > MAX_HANDLED {
        return Ok((after, Batch::Everything(Why::TooMany)));
    }
    if truncated {
        return Ok((after, Batch::Everything(Why::Truncated)));
    }
    Ok((after, Batch::Changes(changes)))
}

impl FeedRow {
    fn change(&self) -> Option<Change> {
        if let Some(key) = &self.signing_key_id {
            return Some(Change::SigningKey(key.clone()));
        }
        let identity = self.subject_identity.clone()?;
        if self.destination.is_none() && self.subject_public_key_spki_der.is_none() {
            return Some(Change::PocaKey(identity));
        }
        Some(Change::Permission {
            identity,
            spki: self.subject_public_key_spki_der.clone()?,
            destination: self.destination.clone()?,
        })
    }
}

/// Hears that there is something to read. What it says is a hint: none may come, or come late.
#[derive(Debug)]
pub struct Wakeups {
    listener: PgListener,
}

impl Wakeups {
    /// Listens on a connection of its own. Standbys and some other engines refuse.
    pub async fn listen(url: &str) -> Result<Self, OpenError> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .connect_lazy_with(connect_options(url)?);
        let mut listener = PgListener::connect_with(&pool)
            .await
            .map_err(OpenError::Unreachable)?;
        listener.ignore_pool_close_event(true);
        listener
            .listen("agent_gateway_changes")
            .await
            .map_err(OpenError::Unreachable)?;
        Ok(Self { listener })
    }

    /// Returns when there was a notification, or when one may have been lost.
    pub async fn next(&mut self) -> Result<(), OpenError> {
        self.listener
            .try_recv()
            .await
            .map(drop)
            .map_err(OpenError::Unreachable)
    }
}
