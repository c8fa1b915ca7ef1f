//! Loads under way, for others to join: however many wait for the same, it is read once.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::{BoxFuture, FusedFuture as _, Shared};
use registry::LookupError;
use tokio::runtime::Handle;

use crate::cache::Unavailable;

type Loaded<V> = Result<V, Unavailable>;

/// Loads by what they are of, at most so many.
#[derive(Debug)]
pub(crate) struct Loads<K, V> {
    max: usize,
    /// Locked only to look, add or remove.
    under_way: Mutex<HashMap<K, Load<V>>>,
}

/// A load that is under way.
struct Load<V> {
    loaded: Shared<BoxFuture<'static, Loaded<V>>>,
    /// Whether it goes on without anybody waiting for it.
    has_task: Arc<AtomicBool>,
}

impl<K, V> Loads<K, V> {
    /// None yet, and at most `max` at a time; further ones fail at once.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            under_way: Mutex::default(),
        })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.under_way().len()
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<K, Load<V>>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, V> Loads<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The load of `key` that is under way, or a new one.
    pub(crate) fn join<F>(
        self: &Arc<Self>,
        key: &K,
        load: impl FnOnce() -> F,
    ) -> Result<Waiting<V>, Unavailable>
    where
        F: Future<Output = Loaded<V>> + Send + 'static,
    {
        let mut under_way = self.under_way();
        if let Some(load) = under_way.get(key) {
            return Ok(Waiting(load.clone()));
        }
        if under_way.len() >= self.max {
            return Err(Unavailable::Overloaded);
        }
        let place = Place {
            loads: Arc::clone(self),
            key: key.clone(),
        };
        let load = load();
        let load = async move {
            let _place = place;
            load.await
        };
        // A panic must not stay behind for whoever asks next.
        let loaded = AssertUnwindSafe(load).catch_unwind().map(|ended| {
            let lost = || Unavailable::Lookup(Arc::new(LookupError::TimedOut));
            ended.unwrap_or_else(|_| Err(lost()))
        });
        let load = Load {
            loaded: loaded.boxed().shared(),
            has_task: Arc::default(),
        };
        under_way.insert(key.clone(), load.clone());
        Ok(Waiting(load))
    }
}

/// Waits for a load, and does its work meanwhile: a task of its own costs two more switches. It gets
/// one as soon as somebody gives up waiting, and so always ends.
pub(crate) struct Waiting<V>(Load<V>)
where
    V: Clone + Send + Sync + 'static;

impl<V: Clone + Send + Sync + 'static> Future for Waiting<V> {
    type Output = Loaded<V>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Loaded<V>> {
        self.0.loaded.poll_unpin(cx)
    }
}

impl<V: Clone + Send + Sync + 'static> Drop for Waiting<V> {
    fn drop(&mut self) {
        let Load { loaded, has_task } = &self.0;
        let has_ended = loaded.is_terminated() || loaded.peek().is_some();
        if has_ended || has_task.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(loaded.clone());
        }
    }
}

/// That others may join a load, until this is dropped.
struct Place<K: Eq + Hash, V> {
    loads: Arc<Loads<K, V>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Place<K, V> {
    fn drop(&mut self) {
        self.loads.under_way().remove(&self.key);
    }
}

impl<V> Clone for Load<V> {
    fn clone(&self) -> Self {
        Self {
            loaded: self.loaded.clone(),
            has_task: Arc::clone(&self.has_task),
        }
    }
}

impl<V> fmt::Debug for Load<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load").finish_non_exhaustive()
    }
}
