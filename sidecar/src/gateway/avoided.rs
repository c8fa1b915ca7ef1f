//! Which addresses gave no connection lately: the others are tried before them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long an address stays behind the others. One that drops packets costs seconds each time it
/// is tried; one that is back is used again after this, if it comes earlier in the order.
const AVOID_TIME: Duration = Duration::from_secs(10);

/// Addresses, each with the time from which on it is like any other. Only what failed in the last
/// [`AVOID_TIME`] is kept.
///
/// Shared between whoever connects and the connections that are up, which may fall silent.
#[derive(Debug, Clone, Default)]
pub(super) struct Avoided(Arc<Mutex<HashMap<SocketAddr, Instant>>>);

impl Avoided {
    /// It failed.
    pub(super) fn add(&self, address: SocketAddr, now: Instant) {
        let mut avoided = self.addresses();
        avoided.retain(|_, until| *until > now);
        avoided.insert(address, now + AVOID_TIME);
    }

    /// It works.
    pub(super) fn remove(&self, address: SocketAddr) {
        self.addresses().remove(&address);
    }

    /// Until when others are to be tried before it, if so.
    pub(super) fn until(&self, address: SocketAddr, now: Instant) -> Option<Instant> {
        let until = self.addresses().get(&address).copied();
        until.filter(|until| *until > now)
    }

    /// Held for moments, never across an await.
    fn addresses(&self) -> MutexGuard<'_, HashMap<SocketAddr, Instant>> {
        // Nothing panics while it holds the lock halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_that_failed_is_avoided_for_a_while_or_until_it_works() {
        let (avoided, now) = (Avoided::default(), Instant::now());
        let [one, two] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let moment = Duration::from_millis(1);
        assert_eq!(avoided.until(one, now), None);
        avoided.add(one, now);
        assert_eq!(
            avoided.until(one, now + AVOID_TIME - moment),
            Some(now + AVOID_TIME)
        );
        assert_eq!(avoided.until(one, now + AVOID_TIME), None);
        assert_eq!(avoided.until(two, now), None);
        avoided.remove(one);
        assert_eq!(avoided.until(one, now), None);
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let (avoided, now) = (Avoided::default(), Instant::now());
        for port in 1..1000 {
            avoided.add(([127, 0, 0, 1], port).into(), now);
        }
        avoided.add(([127, 0, 0, 2], 1).into(), now + AVOID_TIME);
        assert_eq!(avoided.addresses().len(), 1);
    }
}
