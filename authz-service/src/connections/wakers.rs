//! Has answers that become ready together leave together.
//!
//! An answer wakes its connection, and tokio next runs what was woken last: of many answers that
//! become ready at once each would be a write of its own, which costs more than the decision. A
//! connection that has been woken behind all of them finds them all when its turn comes. Answers
//! are right without this, only dearer.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Context;

use futures::task::AtomicWaker;

/// For so many times of waking a connection that was read from is taken to owe answers: what it
/// asks while one batch is written belongs to the next.
const OWES: u8 = 2;

/// The connections whose answers wait for the same thing; clones know the same ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wakers(Arc<Mutex<Vec<Weak<Slot>>>>);

/// One connection, known until this is dropped.
#[derive(Debug)]
pub(super) struct Waking(Arc<Slot>);

#[derive(Debug, Default)]
struct Slot {
    waker: AtomicWaker,
    owes: AtomicU8,
}

impl Wakers {
    fn slots(&self) -> MutexGuard<'_, Vec<Weak<Slot>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection.
    pub(super) fn slot(&self) -> Waking {
        let slot = Arc::new(Slot::default());
        let mut slots = self.slots();
        slots.retain(|slot| slot.strong_count() > 0);
        slots.push(Arc::downgrade(&slot));
        Waking(slot)
    }

    /// Wakes those that seem to owe answers, behind whatever was woken before. Needs a tokio runtime.
    pub(crate) fn wake(&self) {
        let mut woken = false;
        for slot in self.slots().iter().filter_map(Weak::upgrade) {
            let owes = slot.owes.load(Ordering::Relaxed);
            if owes > 0 {
                slot.owes.store(owes - 1, Ordering::Relaxed);
                slot.waker.wake();
                woken = true;
            }
        }
        if woken {
            // What is woken last is run first, and this moves the connection to the queue's end.
            tokio::spawn(async {});
        }
    }
}

impl Waking {
    /// The connection's task looks for what there is to read.
    pub(super) fn reading(&self, cx: &Context<'_>) {
        self.0.waker.register(cx.waker());
    }

    /// There was something.
    pub(super) fn has_read(&self) {
        self.0.owes.store(OWES, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits to be woken again, and says how often it was.
    fn wait(waking: &Waking, count: &Arc<Count>) -> usize {
        waking.reading(&Context::from_waker(&Arc::clone(count).into()));
        count.0.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_connection_is_woken_for_two_batches_after_it_was_read_from() {
        let wakers = Wakers::default();
        let (busy, idle) = (wakers.slot(), wakers.slot());
        let (of_busy, of_idle) = (Arc::default(), Arc::default());
        busy.has_read();
        for woken in [0, 1, 2, 2] {
            assert_eq!(wait(&busy, &of_busy), woken);
            assert_eq!(wait(&idle, &of_idle), 0);
            wakers.wake();
        }
        busy.has_read();
        wakers.wake();
        assert_eq!(wait(&busy, &of_busy), 3);
    }

    #[tokio::test]
    async fn a_connection_that_has_ended_is_forgotten() {
        let wakers = Wakers::default();
        let ended = wakers.slot();
        ended.has_read();
        drop(ended);
        wakers.wake();
        let _open = wakers.slot();
        assert_eq!(wakers.slots().len(), 1);
    }
}
