//! The connections that there are, and making one more: one at a time, with growing pauses while
//! that fails.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::connection::{Connection, Slot};
use super::connector::{ConnectError, Connector};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Most connections at a time. Far more than it takes, unless the gateway allows hardly any tunnels
/// on each.
const MAX_CONNECTIONS: usize = 1024;

/// How an attempt ended, for all who wait for it; `None` while it goes on.
type Outcome = Option<Result<(), Arc<ConnectError>>>;

#[derive(Debug)]
pub(super) struct Pool {
    connector: Connector,
    /// Held for moments, never across an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By number, in the order in which they were made. Tunnels go to the first that has room,
    /// so that the last ones fall idle.
    connections: BTreeMap<u64, Connection>,
    made: u64,
    /// The attempt that goes on, or the last one.
    attempt: Option<watch::Receiver<Outcome>>,
    failures: u32,
    next_attempt: Option<Instant>,
    last_connected: Option<SystemTime>,
    last_failure: Option<(SystemTime, Arc<ConnectError>)>,
    /// How often all connections were given up; one whose making began before is, too.
    renewals: u64,
}

/// How the way to the gateway is, for whoever asks.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) gateways: Vec<String>,
    pub(crate) connections: usize,
    pub(crate) last_connected: Option<SystemTime>,
    pub(crate) last_failure: Option<(SystemTime, Arc<ConnectError>)>,
}

impl Pool {
    pub(super) fn new(connector: Connector) -> Self {
        Self {
            connector,
            state: Mutex::default(),
        }
    }

    /// Room for a tunnel, on a new connection if need be. Whoever waits for the same connection
    /// gets the same error, unless a tunnel has ended meanwhile.
    pub(super) async fn slot(self: &Arc<Self>) -> Result<Slot, Arc<ConnectError>> {
        let mut failure = None;
        loop {
            let mut attempt = {
                let mut state = self.state();
                if let Some(slot) = state.slot() {
                    return Ok(slot);
                }
                if state.connections.len() >= MAX_CONNECTIONS {
                    failure = Some(Arc::new(ConnectError::TooMany));
                }
                if let Some(failure) = failure {
                    return Err(failure);
                }
                self.attempt(&mut state)
            };
            let outcome = attempt.wait_for(Option::is_some).await;
            if let Ok(Some(Err(error))) = outcome.as_deref() {
                failure = Some(Arc::clone(error));
            }
            // Or somebody else may have been quicker, then the next attempt follows.
        }
    }

    /// The number of the newest connection.
    pub(super) fn newest(&self) -> u64 {
        self.state().made
    }

    /// Begins an attempt that nobody waits for.
    pub(super) fn connect_early(self: &Arc<Self>) {
        self.attempt(&mut self.state());
    }

    pub(super) fn way(&self) -> Way {
        let state = self.state();
        let connections = state.connections.values();
        Way {
            gateways: self.connector.gateways(),
            connections: connections.filter(|of| of.is_alive()).count(),
            last_connected: state.last_connected,
            last_failure: state.last_failure.clone(),
        }
    }

    /// No more tunnels on this connection; those that are open go on.
    pub(super) fn discard(&self, connection: u64) {
        self.state().connections.remove(&connection);
    }

    /// No more tunnels on any connection that there is; those that are open go on.
    pub(super) fn renew(&self) {
        let mut state = self.state();
        state.renewals += 1;
        state.connections.clear();
    }

    /// The attempt that goes on, or a new one.
    fn attempt(self: &Arc<Self>, state: &mut State) -> watch::Receiver<Outcome> {
        if let Some(attempt) = &state.attempt {
            let sender_lives = attempt.has_changed().is_ok();
            if sender_lives && attempt.borrow().is_none() {
                return attempt.clone();
            }
        }
        let (told, outcome) = watch::channel(None);
        state.attempt = Some(outcome.clone());
        let (pool, not_before) = (Arc::clone(self), state.next_attempt);
        let renewals = state.renewals;
        tokio::spawn(async move {
            if let Some(not_before) = not_before {
                sleep_until(not_before).await;
            }
            let result = pool.connector.connect().await;
            told.send_replace(Some(pool.record(result, renewals)));
        });
        outcome
    }

    fn record(
        &self,
        result: Result<Connection, ConnectError>,
        renewals: u64,
    ) -> Result<(), Arc<ConnectError>> {
        let mut state = self.state();
        match result {
            // Whoever waits finds no room, and begins another attempt.
            Ok(_) if state.renewals != renewals => Ok(()),
            Ok(connection) => {
                state.made += 1;
                let number = state.made;
                state.connections.insert(number, connection);
                state.failures = 0;
                state.last_connected = Some(SystemTime::now());
                state.next_attempt = None;
                Ok(())
            }
            Err(error) => {
                let pause = pause(state.failures, fastrand::f64());
                state.failures = state.failures.saturating_add(1);
                state.next_attempt = Some(Instant::now() + pause);
                let error = Arc::new(error);
                state.last_failure = Some((SystemTime::now(), Arc::clone(&error)));
                Err(error)
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn slot(&mut self) -> Option<Slot> {
        self.connections
            .retain(|_, connection| connection.is_alive());
        self.connections
            .iter()
            .find_map(|(number, connection)| connection.slot(*number))
    }
}

/// How long to wait after so many failures: doubled each time, and spread by `random` (0 to 1)
/// over the upper half, so that sidecars don't come back all at once.
fn pause(failures: u32, random: f64) -> Duration {
    let full = FIRST_PAUSE
        .saturating_mul(2_u32.saturating_pow(failures))
        .min(LONGEST_PAUSE);
    full.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let pauses: Vec<u128> = [0, 1, 2, 5, 6, 31, u32::MAX]
            .map(|n| pause(n, 1.0).as_millis())
            .to_vec();
        assert_eq!(pauses, [100, 200, 400, 3200, 5000, 5000, 5000]);
    }

    #[test]
    fn pauses_are_spread_over_their_upper_half() {
        assert_eq!(pause(0, 0.0), Duration::from_millis(50));
        assert_eq!(pause(9, 0.0), Duration::from_millis(2500));
        assert_eq!(pause(9, 0.5), Duration::from_millis(3750));
    }
}
