//! The cache and the change feed, without a service around them: what is forced here happens
//! within microseconds there.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use authz_service::cache::{Cache, CacheOptions, Unavailable};
use authz_service::freshness::{BootTime, Freshness};
use permission::{Decision, Identity, Reason, Request, Spki, Timestamp, decide};
use registry::{Feed, Options, Reader};
use testbed::Database;
use testbed::gateway::AGENT;
use testbed::rows::{Grant, Principal};
use tokio::time::Instant;

use super::DESTINATION;
use super::lock::{Session, wait_for_blocked};

struct Memory {
    cache: Cache,
    freshness: Arc<Freshness>,
    feed: Feed,
    database: Database,
    request: Request,
}

impl Memory {
    /// A cache before a registry with one permission, whose feed is read when the test says.
    async fn start() -> Self {
        let database = testbed::database().await.unwrap();
        registry::migrate(&database.url()).await.unwrap();
        let principal = Principal::registered(&database, &[DESTINATION]).unwrap();
        let spki = Principal::new("agent", 9).unwrap().spki();
        let grant = Grant::new(AGENT, &spki, DESTINATION);
        principal.grant(&database, &grant).unwrap();
        let patience = Duration::from_secs(20);
        let options = Options {
            url: database.url(),
            max_connections: 3,
            connect_timeout: patience,
            acquire_timeout: patience,
            query_timeout: patience,
            trust_roots: None,
        };
        let reader = Reader::open(&options).await.unwrap();
        let freshness = Arc::new(Freshness::default());
        let options = CacheOptions {
            max_bytes: 1 << 20,
            max_unknown: 10,
            max_lookups: 10,
            max_age: patience,
            max_staleness: patience,
            lookup_timeout: patience,
        };
        let feed = Feed::new(&database.url(), patience).unwrap();
        let mut memory = Self {
            feed: feed.leading(&reader),
            cache: Cache::new(reader, Arc::clone(&freshness), options),
            freshness,
            database,
            request: Request {
                identity: Identity::parse(AGENT).unwrap(),
                spki: Spki::from_der(&spki).unwrap(),
                destination: DESTINATION.parse().unwrap(),
            },
        };
        memory.follow().await;
        memory
    }

    /// Reads the feed once.
    async fn follow(&mut self) {
        let began = BootTime::now();
        let read = self.feed.read(soon(), now()).await.unwrap();
        self.freshness.apply(&read, began);
    }

    async fn outcome(&self) -> Result<Option<Reason>, Unavailable> {
        outcome(&self.cache, &self.request, soon()).await
    }
}

/// The reason of a deny, or `None` for an allow.
async fn outcome(
    cache: &Cache,
    request: &Request,
    deadline: Instant,
) -> Result<Option<Reason>, Unavailable> {
    let entry = cache.facts(request, deadline).await?;
    Ok(match decide(&entry.facts, request, now()) {
        Decision::Allow(_) => None,
        Decision::Deny(reason) => Some(reason),
    })
}

fn now() -> Timestamp {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    Timestamp::from_unix_micros(i64::try_from(now.as_micros()).unwrap()).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

const REVOKE: &str = "UPDATE permission_registry SET revoked_at = now()";

#[tokio::test]
async fn what_is_cached_is_used_until_a_change_of_it_is_known() {
    let mut memory = Memory::start().await;
    assert_eq!(memory.outcome().await.unwrap(), None);
    memory.database.execute(REVOKE).unwrap();
    assert_eq!(memory.outcome().await.unwrap(), None, "not from the cache");
    memory.follow().await;
    assert_eq!(
        memory.outcome().await.unwrap(),
        Some(Reason::PermissionRevoked)
    );
}

#[tokio::test]
async fn that_there_is_no_permission_is_cached_and_forgotten_in_the_same_way() {
    let mut memory = Memory::start().await;
    memory
        .database
        .execute("UPDATE permission_registry SET subject_identity = 'other'")
        .unwrap();
    memory.follow().await;
    assert_eq!(memory.outcome().await.unwrap(), Some(Reason::NoPermission));
    let back = format!("UPDATE permission_registry SET subject_identity = '{AGENT}'");
    memory.database.execute(&back).unwrap();
    assert_eq!(memory.outcome().await.unwrap(), Some(Reason::NoPermission));
    memory.follow().await;
    assert_eq!(memory.outcome().await.unwrap(), None);
}

/// The lookup has taken its snapshot, and is held before it gives its rows back; meanwhile the
/// permission is revoked, and the service hears of it. What the lookup then brings is old.
#[tokio::test]
async fn a_lookup_in_flight_cannot_put_an_old_value_back() {
    let mut memory = Memory::start().await;
    memory
        .database
        .execute(
            "ALTER TABLE permission_registry RENAME TO permissions;
             CREATE VIEW permission_registry AS
                 SELECT p.* FROM permissions p
                 CROSS JOIN LATERAL (SELECT pg_advisory_xact_lock_shared(42)) held",
        )
        .unwrap();
    let held = Session::holding(&memory.database, "SELECT pg_advisory_lock(42);");
    let (cache, request) = (memory.cache.clone(), memory.request.clone());
    let in_flight = tokio::spawn(async move { outcome(&cache, &request, soon()).await });
    wait_for_blocked(&memory.database, 1).await;
    memory
        .database
        .execute("UPDATE permissions SET revoked_at = now()")
        .unwrap();
    memory.follow().await;
    drop(held);
    assert_eq!(
        in_flight.await.unwrap().unwrap(),
        Some(Reason::PermissionRevoked)
    );
    assert_eq!(
        memory.outcome().await.unwrap(),
        Some(Reason::PermissionRevoked)
    );
}

#[tokio::test]
async fn equal_requests_share_one_lookup() {
    let memory = Memory::start().await;
    let held = Session::holding(&memory.database, "BEGIN; LOCK permission_registry;");
    let asked: Vec<_> = (0..20)
        .map(|_| {
            let (cache, request) = (memory.cache.clone(), memory.request.clone());
            tokio::spawn(async move { outcome(&cache, &request, soon()).await })
        })
        .collect();
    wait_for_blocked(&memory.database, 1).await;
    // Whoever else asked the database would wait there too.
    tokio::time::sleep(Duration::from_millis(100)).await;
    wait_for_blocked(&memory.database, 1).await;
    drop(held);
    for asked in asked {
        assert_eq!(asked.await.unwrap().unwrap(), None);
    }
}

#[tokio::test]
async fn a_lookup_ends_and_is_of_use_even_if_nobody_waits_for_it_any_more() {
    let memory = Memory::start().await;
    let held = Session::holding(&memory.database, "BEGIN; LOCK permission_registry;");
    for _ in 0..3 {
        let deadline = Instant::now() + Duration::from_millis(100);
        let gave_up = outcome(&memory.cache, &memory.request, deadline).await;
        assert!(
            matches!(gave_up, Err(Unavailable::Lookup(_))),
            "{gave_up:?}"
        );
        assert_eq!(memory.cache.stats().loads, 1);
    }
    wait_for_blocked(&memory.database, 1).await;
    drop(held);
    let ended = async {
        while memory.cache.stats().loads > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout_at(soon(), ended).await.unwrap();
    let _held = Session::holding(&memory.database, "BEGIN; LOCK permission_registry;");
    assert_eq!(memory.outcome().await.unwrap(), None);
}

#[tokio::test]
async fn without_a_confirmation_nothing_is_answered_from_memory() {
    let memory = Memory::start().await;
    let strict = CacheOptions {
        max_bytes: 1 << 20,
        max_unknown: 10,
        max_lookups: 10,
        max_age: Duration::from_secs(20),
        max_staleness: Duration::ZERO,
        lookup_timeout: Duration::from_secs(20),
    };
    let options = Options {
        url: memory.database.url(),
        max_connections: 1,
        connect_timeout: Duration::from_secs(20),
        acquire_timeout: Duration::from_secs(20),
        query_timeout: Duration::from_secs(20),
        trust_roots: None,
    };
    let reader = Reader::open(&options).await.unwrap();
    let cache = Cache::new(reader, Arc::clone(&memory.freshness), strict);
    // Nobody reads the feed, so nobody confirms.
    let deadline = Instant::now() + Duration::from_millis(200);
    let unconfirmed = outcome(&cache, &memory.request, deadline).await;
    assert!(
        matches!(unconfirmed, Err(Unavailable::Unconfirmed)),
        "{unconfirmed:?}"
    );
}
