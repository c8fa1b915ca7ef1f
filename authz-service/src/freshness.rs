//! What is known to have changed in the registry, and up to when that is known.
//!
//! Cached values carry a [`Stamp`] taken before they were loaded and the [`Tag`]s of what they
//! rest on. A change advances its tags; a value with a tag advanced after its stamp is stale.
//! So a load that was in flight when its key changed is stale from the start, whenever it ends,
//! and nothing needs to be found and removed.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use permission::Request;
use registry::{Batch, Change, Progress, Read};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

/// Tags share this many slots by hash; a collision costs a needless load, never a stale answer.
const SLOTS: usize = 1 << 16;

/// A point on a clock that also runs while the machine sleeps (`CLOCK_BOOTTIME`).
///
/// The one that tokio and std use stands still during suspend: after a night's sleep everything
/// would look fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// The present.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
        Self(Duration::new(seconds, nanos))
    }

    /// This long before; not before the clock began.
    #[must_use]
    pub fn before(self, earlier: Duration) -> Self {
        Self(self.0.saturating_sub(earlier))
    }

    /// How long ago `earlier` was.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Something that values rest on: a request's permissions, a signing key, or an agent's `PoCA` keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag(usize);

/// When a load began, in changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(u64);

/// The one place where changes arrive; written by the feed's task alone.
#[derive(Debug)]
pub struct Freshness {
    hasher: RandomState,
    /// For each tag, the last change that touched it.
    slots: Box<[AtomicU64]>,
    /// The last change that touched everything.
    floor: AtomicU64,
    /// The number of changes applied.
    generation: AtomicU64,
    /// What the last read told; `None` before the first.
    confirmed: watch::Sender<Option<Confirmed>>,
    /// Where the last confirmation came from. Locked only to copy.
    progress: Mutex<Option<Progress>>,
    /// Asks the feed's task to read now.
    wanted: Notify,
    /// Who waits for which tag. Locked only to add, remove or wake.
    watchers: Mutex<Watchers>,
}

/// A read of the feed that was applied.
#[derive(Debug, Clone, Copy)]
struct Confirmed {
    /// When it began.
    read: BootTime,
    /// Everything committed before this moment was in it; a standby may be behind.
    known: BootTime,
}

#[derive(Debug, Default)]
struct Watchers {
    next: u64,
    by_tag: HashMap<Tag, HashMap<u64, Arc<Notify>>>,
}

/// Waits for changes of some tags; made by [`Freshness::watch`].
#[derive(Debug)]
pub struct Watch {
    freshness: Arc<Freshness>,
    id: u64,
    tags: Box<[Tag]>,
    changed: Arc<Notify>,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            floor: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            confirmed: watch::Sender::new(None),
            progress: Mutex::default(),
            wanted: Notify::new(),
            watchers: Mutex::default(),
        }
    }
}

impl Freshness {
    /// To be taken before a load begins.
    pub fn stamp(&self) -> Stamp {
        Stamp(self.generation.load(Ordering::SeqCst))
    }

    /// Whether nothing that a value rests on has changed since `stamp`.
    pub fn is_current(&self, stamp: Stamp, tags: &[Tag]) -> bool {
        let untouched = |slot: &AtomicU64| slot.load(Ordering::SeqCst) <= stamp.0;
        untouched(&self.floor)
            && tags
                .iter()
                .all(|tag| self.slots.get(tag.0).is_some_and(untouched))
    }

    /// The tag of a request's own rows.
    pub fn request_tag(&self, request: &Request) -> Tag {
        let destination = request.destination.to_string();
        self.permission_tag(
            request.identity.as_str(),
            request.spki.as_der(),
            &destination,
        )
    }

    /// The tag of a signing key and its scopes.
    pub fn signing_key_tag(&self, key_id: &str) -> Tag {
        Self::slot(self.hasher.hash_one(("key", key_id)))
    }

    /// The tag of an agent's `PoCA` keys.
    pub fn poca_tag(&self, identity: &str) -> Tag {
        Self::slot(self.hasher.hash_one(("poca", identity)))
    }

    fn permission_tag(&self, identity: &str, spki: &[u8], destination: &str) -> Tag {
        Self::slot(self.hasher.hash_one((identity, spki, destination)))
    }

    fn slot(hash: u64) -> Tag {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "any bits of the hash will do"
        )]
        Tag(hash as usize % SLOTS)
    }

    /// Applies what a read of the feed found that began at `began`.
    pub fn apply(&self, Read { batch, age }: &Read, began: BootTime) {
        // Slots first, then the generation: a stamp of the new generation is only given out when
        // a load that takes it will see the changes, and then the confirmation.
        let next = self.generation.load(Ordering::SeqCst) + 1;
        match batch {
            Batch::Everything(_) => self.floor.store(next, Ordering::SeqCst),
            Batch::Changes(changes) => {
                for change in changes {
                    let Tag(slot) = self.tag(change);
                    if let Some(slot) = self.slots.get(slot) {
                        slot.store(next, Ordering::SeqCst);
                    }
                }
            }
        }
        self.generation.store(next, Ordering::SeqCst);
        self.confirmed.send_replace(Some(Confirmed {
            read: began,
            known: began.before(*age),
        }));
        self.wake(batch);
    }

    fn wake(&self, batch: &Batch) {
        let watchers = self.watchers();
        let wake = |waiting: &HashMap<u64, Arc<Notify>>| {
            for changed in waiting.values() {
                changed.notify_one();
            }
        };
        match batch {
            Batch::Everything(_) => watchers.by_tag.values().for_each(wake),
            Batch::Changes(changes) => {
                // Each tag once: many rows may be of one agent, and many tunnels too.
                let tags: HashSet<Tag> = changes.iter().map(|change| self.tag(change)).collect();
                let waiting = tags.iter().filter_map(|tag| watchers.by_tag.get(tag));
                waiting.for_each(wake);
            }
        }
    }

    /// Begins to wait for changes of `tags`. What changed before is for the caller to look at,
    /// afterwards, by [`Freshness::is_current`].
    pub fn watch(self: &Arc<Self>, tags: &[Tag]) -> Watch {
        let changed = Arc::new(Notify::new());
        let mut watchers = self.watchers();
        let id = watchers.next;
        watchers.next += 1;
        for tag in tags {
            watchers
                .by_tag
                .entry(*tag)
                .or_default()
                .insert(id, Arc::clone(&changed));
        }
        Watch {
            freshness: Arc::clone(self),
            id,
            tags: tags.into(),
            changed,
        }
    }

    fn watchers(&self) -> MutexGuard<'_, Watchers> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tag(&self, change: &Change) -> Tag {
        match change {
            Change::Permission {
                identity,
                spki,
                destination,
            } => self.permission_tag(identity, spki, destination),
            Change::SigningKey(key_id) => self.signing_key_tag(key_id),
            Change::PocaKey(identity) => self.poca_tag(identity),
        }
    }

    /// Notes how far the feed was read.
    pub fn note(&self, progress: Option<Progress>) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    /// How far the feed was read when it last could be; for people to see.
    pub fn progress(&self) -> Option<Progress> {
        let progress = self.progress.lock();
        progress.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The moment up to which every change is known.
    pub fn confirmed(&self) -> Option<BootTime> {
        self.confirmed.borrow().map(|confirmed| confirmed.known)
    }

    /// Waits until all that the database knew at `moment` is known here; false if that isn't so by
    /// `deadline`. A standby may not have known all: see [`Freshness::confirmed`].
    pub async fn confirm(&self, moment: BootTime, deadline: Instant) -> bool {
        let mut confirmed = self.confirmed.subscribe();
        let reached =
            |last: &Option<Confirmed>| last.is_some_and(|confirmed| confirmed.read >= moment);
        if reached(&confirmed.borrow_and_update()) {
            return true;
        }
        self.want();
        matches!(
            timeout_at(deadline, confirmed.wait_for(reached)).await,
            Ok(Ok(_))
        )
    }

    /// Asks for a read soon.
    pub fn want(&self) {
        self.wanted.notify_one();
    }

    /// Returns when somebody asked for a read.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

impl Watch {
    /// Returns when one of the tags may have changed since this was last called.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watchers = self.freshness.watchers();
        for tag in &self.tags {
            if let Some(waiting) = watchers.by_tag.get_mut(tag) {
                waiting.remove(&self.id);
                if waiting.is_empty() {
                    watchers.by_tag.remove(tag);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use permission::{Identity, Spki};
    use registry::Why;

    use super::*;

    fn request(identity: &str) -> Request {
        Request {
            identity: Identity::parse(identity).unwrap(),
            spki: Spki::from_der(&testbed::rows::Principal::new("agent", 9).unwrap().spki())
                .unwrap(),
            destination: "docstore".parse().unwrap(),
        }
    }

    /// As a primary tells it.
    fn read(batch: Batch) -> Read {
        Read {
            batch,
            age: Duration::ZERO,
        }
    }

    fn changed(request: &Request) -> Read {
        read(Batch::Changes(vec![Change::Permission {
            identity: request.identity.to_string(),
            spki: request.spki.as_der().to_vec(),
            destination: request.destination.to_string(),
        }]))
    }

    #[test]
    fn a_change_makes_stale_what_was_loaded_before_it_and_nothing_else() {
        let freshness = Freshness::default();
        let (touched, other) = (request("agent-alpha"), request("agent-beta"));
        let before = freshness.stamp();
        freshness.apply(&changed(&touched), BootTime::now());
        assert!(!freshness.is_current(before, &[freshness.request_tag(&touched)]));
        assert!(freshness.is_current(before, &[freshness.request_tag(&other)]));
        assert!(freshness.is_current(freshness.stamp(), &[freshness.request_tag(&touched)]));
    }

    #[test]
    fn a_signing_key_makes_stale_all_that_rests_on_it() {
        let freshness = Freshness::default();
        let before = freshness.stamp();
        let tags = [
            freshness.request_tag(&request("a")),
            freshness.signing_key_tag("org-alice"),
        ];
        let key = |id: &str| read(Batch::Changes(vec![Change::SigningKey(id.to_owned())]));
        freshness.apply(&key("org-bob"), BootTime::now());
        assert!(freshness.is_current(before, &tags));
        freshness.apply(&key("org-alice"), BootTime::now());
        assert!(!freshness.is_current(before, &tags));
    }

    #[test]
    fn everything_makes_everything_stale() {
        let freshness = Freshness::default();
        let before = freshness.stamp();
        freshness.apply(&read(Batch::Everything(Why::First)), BootTime::now());
        assert!(!freshness.is_current(before, &[]));
        assert!(freshness.is_current(freshness.stamp(), &[]));
    }

    #[tokio::test]
    async fn a_confirmation_is_waited_for_and_asked_for_and_counts_from_the_reads_beginning() {
        let freshness = Freshness::default();
        let moment = BootTime::now();
        let soon = || Instant::now() + Duration::from_millis(50);
        assert!(!freshness.confirm(moment, soon()).await);
        // It was asked for.
        tokio::time::timeout(Duration::from_secs(5), freshness.wanted())
            .await
            .unwrap();
        let earlier = BootTime(moment.0.checked_sub(Duration::from_nanos(1)).unwrap());
        freshness.apply(&read(Batch::Changes(Vec::new())), earlier);
        assert!(!freshness.confirm(moment, soon()).await);
        freshness.apply(&read(Batch::Changes(Vec::new())), moment);
        assert!(freshness.confirm(moment, soon()).await);
    }

    #[tokio::test]
    async fn what_a_standby_tells_is_known_up_to_its_age() {
        let freshness = Freshness::default();
        let (moment, age) = (BootTime::now(), Duration::from_millis(7));
        let behind = Read {
            age,
            ..read(Batch::Everything(Why::First))
        };
        freshness.apply(&behind, moment);
        let soon = Instant::now() + Duration::from_millis(50);
        assert!(freshness.confirm(moment, soon).await);
        assert_eq!(freshness.confirmed(), Some(moment.before(age)));
        assert_eq!(moment.since(moment.before(age)), age);
    }

    #[tokio::test]
    async fn a_watch_is_woken_by_its_own_changes_and_leaves_nothing_behind() {
        let freshness = Arc::new(Freshness::default());
        let (touched, other) = (request("agent-alpha"), request("agent-beta"));
        let watch = freshness.watch(&[freshness.request_tag(&touched)]);
        let woken = || tokio::time::timeout(Duration::from_millis(20), watch.changed());
        freshness.apply(&changed(&other), BootTime::now());
        assert!(woken().await.is_err());
        freshness.apply(&changed(&touched), BootTime::now());
        assert!(woken().await.is_ok());
        assert!(woken().await.is_err());
        freshness.apply(&read(Batch::Everything(Why::Pruned)), BootTime::now());
        assert!(woken().await.is_ok());
        drop(watch);
        assert!(freshness.watchers().by_tag.is_empty());
    }
}
