//! How many tunnels there may be, in total and for each agent key.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use permission::Spki;

/// Bounds on tunnels.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most tunnels at a time.
    pub total: usize,
    /// Most tunnels of one agent key.
    pub per_key: usize,
    /// How long tunnels live on while the registry confirms nothing.
    pub max_unconfirmed: Duration,
    /// Grounds are looked up again after this, whatever the change feed says.
    pub max_age: Duration,
}

/// Counts open tunnels. Locked only to count.
#[derive(Debug)]
pub(super) struct Places {
    total: usize,
    per_key: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_key: HashMap<Spki, usize>,
}

/// A tunnel's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    key: Spki,
}

impl Places {
    pub(super) fn new(total: usize, per_key: usize) -> Self {
        Self {
            total,
            per_key,
            taken: Mutex::default(),
        }
    }

    /// A place for a tunnel of `key`, if there is one.
    pub(super) fn take(self: &Arc<Self>, key: &Spki) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by_key.get(key).copied().unwrap_or(0);
        if taken.total >= self.total || own >= self.per_key {
            return None;
        }
        taken.total += 1;
        taken.by_key.insert(key.clone(), own + 1);
        Some(Place {
            places: Arc::clone(self),
            key: key.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self
            .places
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        if let Entry::Occupied(mut own) = taken.by_key.entry(self.key.clone()) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use testbed::rows::Principal;

    use super::*;

    fn key(seed: u8) -> Spki {
        Spki::from_der(&Principal::new("agent", seed).unwrap().spki()).unwrap()
    }

    #[test]
    fn neither_one_key_nor_all_together_take_more_than_their_share() {
        let places = Arc::new(Places::new(3, 2));
        let (a, b) = (places.take(&key(1)), places.take(&key(1)));
        assert!(a.is_some() && b.is_some());
        assert!(places.take(&key(1)).is_none(), "per key");
        let c = places.take(&key(2));
        assert!(c.is_some());
        assert!(places.take(&key(3)).is_none(), "total");
        drop(a);
        assert!(places.take(&key(3)).is_some());
        drop((b, c));
        assert!(places.taken.lock().unwrap().by_key.is_empty());
    }
}
