//! Agents' keys from the registry, in memory while they are known to be current.
//!
//! What is kept are rows whose signatures were checked; whether one counts is judged at each call.
//! They are as fresh as permissions are: by the same change feed, age and confirmation. Only agents
//! with a permission for the tool get this far, so nobody unknown fills this or has it read.

use std::sync::Arc;

use permission::{Destination, Identity, PocaCandidate, Timestamp};
use poca::PublicKey;
use quick_cache::Weighter;
use quick_cache::sync::Cache as Quick;
use registry::LookupError;
use tokio::time::{Instant, timeout_at};

use crate::cache::{Cache, Unavailable};
use crate::freshness::{BootTime, Stamp, Tag};
use crate::loads::Loads;

/// Most bytes that are kept, about.
const MAX_BYTES: u64 = 32 * 1024 * 1024;
/// What an entry takes at least, and what a key in it takes at most, ids and scopes included.
const ENTRY_BYTES: u64 = 1024;
const KEY_BYTES: u64 = 2048;
/// How often keys are read that change meanwhile.
const TRIES: usize = 4;

type Name = (Identity, Destination);

/// Keys by agent and destination.
#[derive(Debug)]
pub(crate) struct AgentKeys {
    kept: Arc<Kept>,
    loads: Arc<Loads<Name, Arc<Entry>>>,
}

#[derive(Debug)]
struct Kept {
    /// Knows what is current.
    permissions: Cache,
    entries: Quick<Name, Arc<Entry>, Weight>,
}

/// An agent's rows and what they rest on.
#[derive(Debug)]
pub(crate) struct Entry {
    rows: Vec<(PublicKey, PocaCandidate)>,
    stamp: Stamp,
    tags: Box<[Tag]>,
    loaded: BootTime,
}

impl Entry {
    /// The keys that count at the time `now`.
    pub(crate) fn counting<'a>(
        &'a self,
        identity: &'a Identity,
        destination: &'a Destination,
        now: Timestamp,
    ) -> impl Iterator<Item = PublicKey> + 'a {
        let counts = move |row: &&(PublicKey, PocaCandidate)| {
            row.1.judge(identity, destination, now).is_ok()
        };
        self.rows.iter().filter(counts).map(|(key, _)| *key)
    }
}

impl AgentKeys {
    /// Nothing yet; current as long as `permissions` would be.
    pub(crate) fn new(permissions: Cache) -> Self {
        let most = usize::try_from(MAX_BYTES / ENTRY_BYTES).unwrap_or(usize::MAX);
        Self {
            loads: Loads::new(permissions.options().max_lookups),
            kept: Arc::new(Kept {
                permissions,
                entries: Quick::with_weighter(most, MAX_BYTES, Weight),
            }),
        }
    }

    /// An agent's keys for a destination, as the registry has them now; ends by `deadline`.
    pub(crate) async fn of(
        &self,
        identity: &Identity,
        destination: &Destination,
        deadline: Instant,
    ) -> Result<Arc<Entry>, Unavailable> {
        let kept = &self.kept;
        if !kept.permissions.is_confirmed() {
            kept.permissions.confirm(deadline).await?;
        }
        let name = (identity.clone(), destination.clone());
        for _ in 0..TRIES {
            let found = kept.entries.get(&name);
            if let Some(entry) = found.filter(|entry| kept.is_current(entry)) {
                return Ok(entry);
            }
            let load = self.loads.join(&name, || {
                let (kept, name) = (Arc::clone(kept), name.clone());
                async move { kept.load(&name).await }
            });
            let entry = timeout_at(deadline, load?)
                .await
                .map_err(|_| Unavailable::Lookup(Arc::new(LookupError::TimedOut)))??;
            if kept.is_unchanged(&entry) {
                return Ok(entry);
            }
        }
        Err(Unavailable::Unconfirmed)
    }

    /// Whether what was decided on this entry a moment ago would be decided again.
    pub(crate) fn still_hold(&self, entry: &Entry) -> bool {
        self.kept.is_unchanged(entry) && self.kept.permissions.is_confirmed()
    }
}

impl Kept {
    fn is_current(&self, entry: &Entry) -> bool {
        let max_age = self.permissions.options().max_age;
        self.is_unchanged(entry) && BootTime::now().since(entry.loaded) < max_age
    }

    fn is_unchanged(&self, entry: &Entry) -> bool {
        let freshness = self.permissions.freshness();
        freshness.is_current(entry.stamp, &entry.tags)
    }

    async fn load(&self, name: &Name) -> Result<Arc<Entry>, Unavailable> {
        let freshness = self.permissions.freshness();
        // Before the read: what changes during it makes it stale.
        let (stamp, loaded) = (freshness.stamp(), BootTime::now());
        let deadline = Instant::now() + self.permissions.options().lookup_timeout;
        let (identity, destination) = name;
        let reader = self.permissions.reader();
        let rows = reader.poca_keys(identity, destination, deadline).await;
        let rows = rows.map_err(|error| Unavailable::Lookup(Arc::new(error)))?;
        let mut tags = vec![freshness.poca_tag(identity.as_str())];
        for row in &rows {
            tags.push(freshness.signing_key_tag(row.key().signing_key_id.as_str()));
        }
        // A key under which anybody's signature might verify counts as none.
        let usable = |row: PocaCandidate| {
            let key = PublicKey::from_bytes(&row.key().ed25519_public_key).ok()?;
            Some((key, row))
        };
        let entry = Arc::new(Entry {
            rows: rows.into_iter().filter_map(usable).collect(),
            stamp,
            tags: tags.into(),
            loaded,
        });
        self.entries.insert(name.clone(), Arc::clone(&entry));
        Ok(entry)
    }
}

#[derive(Debug, Clone)]
struct Weight;

impl Weighter<Name, Arc<Entry>> for Weight {
    fn weight(&self, _: &Name, entry: &Arc<Entry>) -> u64 {
        ENTRY_BYTES + KEY_BYTES * entry.rows.len() as u64
    }
}
