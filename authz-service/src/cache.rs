//! Facts in memory: a warm decision asks nobody, and is never older than is promised.
//!
//! Signatures were verified when facts were loaded; windows are judged at each decision. What is
//! in here is used only while it is current ([`Freshness`]) and the registry has confirmed
//! lately that nothing else changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use permission::{Candidate, Facts, Host, Request};
use quick_cache::Weighter;
use quick_cache::sync::Cache as Quick;
use registry::{LookupError, Reader};
use tokio::time::{Instant, timeout_at};

use crate::freshness::{BootTime, Freshness, Stamp, Tag};
use crate::loads::Loads;

/// Bounds of the cache.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// Most bytes of facts about requests that have a permission, about.
    pub max_bytes: u64,
    /// Most requests remembered that have none, and a KiB for each of them. Apart from the others, so that a flood of
    /// made-up certificates pushes out nobody's permission.
    pub max_unknown: u64,
    /// Most loads under way or waiting for a connection; further ones fail at once.
    pub max_lookups: usize,
    /// Facts this old are loaded again, whatever the change feed says: triggers can be disabled.
    pub max_age: Duration,
    /// Facts are used only if the registry confirmed this lately that it has no other changes.
    pub max_staleness: Duration,
    /// Longest a load may take.
    pub lookup_timeout: Duration,
}

/// No facts that may be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unavailable {
    /// The registry has not confirmed in time that nothing changed.
    #[error("registry did not confirm that its permissions are unchanged")]
    Unconfirmed,
    /// The registry's standby that is read doesn't know lately enough what its primary knows.
    #[error(
        "the standby's last transaction is {0:?} old: it is behind, or its primary has no heartbeat"
    )]
    Behind(Duration),
    /// The registry can't be read.
    #[error(transparent)]
    Lookup(Arc<LookupError>),
    /// Too many loads already.
    #[error("too many registry lookups are waiting")]
    Overloaded,
}

/// Facts and what they rest on.
#[derive(Debug)]
pub struct Entry {
    /// The facts.
    pub facts: Facts,
    stamp: Stamp,
    tags: Box<[Tag]>,
    loaded: BootTime,
}

/// Joining a load that began before a change gives what was before it, and so another try. A key
/// that changes faster than it can be read is not decided about.
const TRIES: usize = 4;

type Loaded = Result<Arc<Entry>, Unavailable>;

/// Facts by request.
#[derive(Debug, Clone)]
pub struct Cache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    reader: Reader,
    freshness: Arc<Freshness>,
    options: CacheOptions,
    known: Quick<Request, Arc<Entry>, Weight>,
    unknown: Quick<Request, Arc<Entry>, Weight>,
    loads: Arc<Loads<Request, Arc<Entry>>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// What the cache holds, and how it has done.
#[derive(Debug, Clone)]
pub struct CacheStats {
    /// Requests in memory that have a permission, valid or not.
    pub known_entries: u64,
    /// About how many bytes they take.
    pub known_bytes: u64,
    /// Requests in memory that have none.
    pub unknown_entries: u64,
    /// About how many bytes they take.
    pub unknown_bytes: u64,
    /// How often what was asked for was there and current.
    pub hits: u64,
    /// How often it was not.
    pub misses: u64,
    /// Loads under way or waiting.
    pub loads: usize,
    /// What bounds them.
    pub options: CacheOptions,
}

impl Entry {
    /// What the facts rest on.
    pub fn tags(&self) -> &[Tag] {
        &self.tags
    }
}

impl Cache {
    /// An empty cache before `reader`.
    pub fn new(reader: Reader, freshness: Arc<Freshness>, options: CacheOptions) -> Self {
        let unknown_bytes = options.max_unknown.saturating_mul(UNKNOWN_BYTES);
        let known = Weight { least: KNOWN_BYTES }.cache(options.max_bytes);
        let unknown = Weight {
            least: UNKNOWN_BYTES,
        };
        let unknown = unknown.cache(unknown_bytes);
        Self(Arc::new(Inner {
            reader,
            freshness,
            known,
            unknown,
            loads: Loads::new(options.max_lookups),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            options,
        }))
    }

    /// Whether this entry may still be used.
    pub fn is_current(&self, entry: &Entry) -> bool {
        self.is_unchanged(entry) && BootTime::now().since(entry.loaded) < self.0.options.max_age
    }

    /// How long until this entry is too old to be used.
    pub fn left(&self, entry: &Entry) -> Duration {
        let age = BootTime::now().since(entry.loaded);
        self.0.options.max_age.saturating_sub(age)
    }

    /// Whether the registry has confirmed lately enough that all its changes are known.
    pub fn is_confirmed(&self) -> bool {
        let known = self.0.freshness.confirmed();
        known.is_some_and(|known| BootTime::now().since(known) <= self.0.options.max_staleness)
    }

    /// Whether what was decided on this entry a moment ago would be decided again.
    pub fn still_holds(&self, entry: &Entry) -> bool {
        self.is_unchanged(entry) && self.is_confirmed()
    }

    /// Whether nothing that this entry rests on is known to have changed.
    pub fn is_unchanged(&self, entry: &Entry) -> bool {
        self.0.freshness.is_current(entry.stamp, &entry.tags)
    }

    /// All that a decision about `request` needs; ends by `deadline`.
    pub async fn facts(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Arc<Entry>, Unavailable> {
        if !self.is_confirmed() {
            Box::pin(self.confirm(deadline)).await?;
        }
        self.confirmed_facts(request, deadline).await
    }

    /// Has the registry confirm now that all its changes are known.
    pub async fn confirm(&self, deadline: Instant) -> Result<(), Unavailable> {
        let freshness = &self.0.freshness;
        if !freshness.confirm(BootTime::now(), deadline).await {
            return Err(Unavailable::Unconfirmed);
        }
        if self.is_confirmed() {
            return Ok(());
        }
        let known = freshness.confirmed();
        let age = known.map(|known| BootTime::now().since(known));
        Err(Unavailable::Behind(age.unwrap_or(Duration::MAX)))
    }

    /// As [`Cache::facts`], for a caller who has had the registry's confirmation.
    pub async fn confirmed_facts(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Arc<Entry>, Unavailable> {
        let Inner { known, unknown, .. } = &*self.0;
        for _ in 0..TRIES {
            let cached = known.get(request).or_else(|| unknown.get(request));
            if let Some(entry) = cached.filter(|entry| self.is_current(entry)) {
                self.0.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(entry);
            }
            self.0.misses.fetch_add(1, Ordering::Relaxed);
            // Apart, as all that is waited for: a Check that needs none of it stays small.
            let entry = Box::pin(self.loaded(request, deadline)).await?;
            if self.is_unchanged(&entry) {
                return Ok(entry);
            }
        }
        Err(Unavailable::Unconfirmed)
    }

    async fn loaded(&self, request: &Request, deadline: Instant) -> Loaded {
        let load = self.0.loads.join(request, || {
            let (inner, request) = (Arc::clone(&self.0), request.clone());
            async move { inner.load(&request).await }
        });
        timeout_at(deadline, load?)
            .await
            .map_err(|_| Unavailable::Lookup(Arc::new(LookupError::TimedOut)))?
    }

    /// What bounds it.
    pub(crate) fn options(&self) -> &CacheOptions {
        &self.0.options
    }

    /// What it reads from.
    pub(crate) fn reader(&self) -> &Reader {
        &self.0.reader
    }

    /// By which it knows what changed.
    pub(crate) fn freshness(&self) -> &Freshness {
        &self.0.freshness
    }

    /// What it holds.
    pub fn stats(&self) -> CacheStats {
        let inner = &self.0;
        CacheStats {
            known_entries: inner.known.len() as u64,
            known_bytes: inner.known.weight(),
            unknown_entries: inner.unknown.len() as u64,
            unknown_bytes: inner.unknown.weight(),
            hits: inner.hits.load(Ordering::Relaxed),
            misses: inner.misses.load(Ordering::Relaxed),
            loads: inner.loads.count(),
            options: inner.options.clone(),
        }
    }
}

impl Inner {
    async fn load(&self, request: &Request) -> Result<Arc<Entry>, Unavailable> {
        let (stamp, loaded) = (self.freshness.stamp(), BootTime::now());
        let deadline = Instant::now() + self.options.lookup_timeout;
        let facts = self.reader.facts(request, deadline).await;
        let facts = facts.map_err(|error| Unavailable::Lookup(Arc::new(error)))?;
        let entry = Arc::new(self.entry(request, facts, stamp, loaded));
        let (keep, drop) = if entry.facts.candidates.is_empty() {
            (&self.unknown, &self.known)
        } else {
            (&self.known, &self.unknown)
        };
        drop.remove(request);
        keep.insert(request.clone(), Arc::clone(&entry));
        Ok(entry)
    }

    fn entry(&self, request: &Request, facts: Facts, stamp: Stamp, loaded: BootTime) -> Entry {
        let keys = facts.candidates.iter().map(|candidate| {
            self.freshness
                .signing_key_tag(candidate.permission().signing_key_id.as_str())
        });
        let mut tags: Vec<Tag> = keys.collect();
        tags.push(self.freshness.request_tag(request));
        Entry {
            facts,
            stamp,
            tags: tags.into(),
            loaded,
        }
    }
}

/// Each unknown request counts as this much at least: that bounds their number and their bytes.
const UNKNOWN_BYTES: u64 = 1024;
/// No known one takes less.
const KNOWN_BYTES: u64 = 512;

/// Weighs entries, in bytes of memory.
#[derive(Debug, Clone)]
struct Weight {
    /// Each counts as this much at least.
    least: u64,
}

impl Weight {
    fn cache(self, max_bytes: u64) -> Quick<Request, Arc<Entry>, Self> {
        let most = usize::try_from(max_bytes / self.least).unwrap_or(usize::MAX);
        Quick::with_weighter(most, max_bytes, self)
    }
}

impl Weighter<Request, Arc<Entry>> for Weight {
    /// What the allocator hands out for an entry, and its share of the cache's tables. Identity and
    /// key are counted in full, though entries of one agent share them while its certificate is
    /// remembered.
    fn weight(&self, request: &Request, entry: &Arc<Entry>) -> u64 {
        // Key, value, links and index, and half of that for one that was pushed out: the cache
        // remembers for a while that it was there.
        const TABLES: usize = (size_of::<Request>() + 40) * 3 / 2;
        let host = match request.destination.host() {
            Host::Name(name) => shared(name.len()),
            Host::Ipv4(_) | Host::Ipv6(_) => 0,
        };
        let identity = shared(request.identity.as_str().len());
        let request = identity + shared(request.spki.as_der().len()) + host;
        let candidates = &entry.facts.candidates;
        let ids = candidates.iter().map(Candidate::permission).map(|row| {
            shared(row.permission_id.as_str().len()) + shared(row.signing_key_id.as_str().len())
        });
        let facts = allocated(size_of_val(candidates.as_slice())) + ids.sum::<usize>();
        let entry = shared(size_of::<Entry>()) + allocated(size_of_val(&*entry.tags));
        let bytes = TABLES + request + facts + entry;
        self.least.max(bytes as u64)
    }
}

/// What the allocator takes for so many bytes: its own word, in steps of 16, 32 at least.
fn allocated(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        _ => (bytes + size_of::<usize>()).next_multiple_of(16).max(32),
    }
}

/// As [`allocated`], of what is counted by an `Arc`.
fn shared(bytes: usize) -> usize {
    allocated(2 * size_of::<usize>() + bytes)
}
