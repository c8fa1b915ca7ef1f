use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use permission::Identity;
use poca::{CLOCK_SKEW, Expected, Headers, Manifest, SecretKey, sign, verify};

use super::*;

fn start() -> Timestamp {
    "2026-05-01T00:00:00Z".parse().unwrap()
}

fn after(seconds: i64) -> Timestamp {
    start().saturating_add_micros(seconds * 1_000_000)
}

/// A proof that is refused as expired from so many seconds after the start, and a microsecond.
fn proof(caller: &str, nonce: &str, ends_after: i64) -> Proof {
    let key = SecretKey::from_seed(&[7; 32]);
    let skew = i64::try_from(CLOCK_SKEW.as_secs()).unwrap();
    let manifest = Manifest {
        caller: Identity::parse(caller).unwrap(),
        tool: "echo".to_owned(),
        intent: String::new(),
        scopes: Vec::new(),
        payload_sha256: [0; 32],
        nonce: nonce.to_owned(),
        expires: after(ends_after - skew),
    };
    let signed = sign(&key, &manifest).unwrap();
    let expected = Expected {
        caller: &manifest.caller,
        tool: "echo",
        payload_sha256: [0; 32],
        keys: &[key.public_key()],
        now: start(),
        max_ttl: Duration::from_hours(24 * 10_000),
    };
    let headers = Headers {
        manifest: Some(&signed.manifest),
        signature: Some(&signed.signature),
    };
    verify(&headers, &expected).unwrap()
}

fn use_up(memory: &Memory, proof: &Proof, now: Timestamp) -> Result<(), &'static str> {
    let used = memory.use_up(proof, now, Instant::now());
    let used = used.now_or_never().expect("memory waits for nothing");
    used.map_err(|refusal| match refusal {
        Refusal::Used => "used",
        Refusal::Full => "full",
        Refusal::Unavailable(_) => "unavailable",
    })
}

#[test]
fn a_nonce_is_used_once_by_each_caller() {
    let memory = Memory::new(100);
    let used = |caller, nonce, ends| use_up(&memory, &proof(caller, nonce, ends), start());
    assert_eq!(used("agent", "n", 360), Ok(()));
    assert_eq!(used("agent", "n", 360), Err("used"));
    // Another manifest with the same nonce.
    assert_eq!(used("agent", "n", 400), Err("used"));
    assert_eq!(used("agent", "m", 360), Ok(()));
    assert_eq!(used("agent-beta", "n", 360), Ok(()));
    // Put together they are the same text.
    assert_eq!(used("agen", "tn", 360), Ok(()));
}

#[test]
fn a_nonce_is_remembered_for_as_long_as_its_proof_counts() {
    let memory = Memory::new(100);
    let used = proof("agent", "n", 360);
    assert_eq!(use_up(&memory, &used, start()), Ok(()));
    let last = used.expires_at().saturating_add_micros(-1);
    for now in [start(), after(359), after(360), last] {
        assert_eq!(use_up(&memory, &used, now), Err("used"), "{now}");
    }
}

#[test]
fn what_has_expired_makes_room() {
    let memory = Memory::new(2);
    assert_eq!(use_up(&memory, &proof("agent", "a", 100), start()), Ok(()));
    assert_eq!(use_up(&memory, &proof("agent", "b", 200), start()), Ok(()));
    let third = proof("agent", "c", 300);
    assert_eq!(use_up(&memory, &third, after(100)), Err("full"));
    assert_eq!(use_up(&memory, &third, after(101)), Ok(()));
    assert_eq!(memory.len(), 2);
    // Nothing that counts was pushed out for it.
    let second = proof("agent", "b", 200);
    assert_eq!(use_up(&memory, &second, after(101)), Err("used"));
    let fourth = proof("agent", "d", 300);
    assert_eq!(use_up(&memory, &fourth, after(101)), Err("full"));
    let much_later = proof("agent", "e", 20_000);
    assert_eq!(use_up(&memory, &much_later, after(10_000)), Ok(()));
    assert_eq!(memory.len(), 1);
}

/// Full, it still tells a replay from what it has no room for.
#[test]
fn a_full_memory_knows_what_it_has_seen() {
    let memory = Memory::new(1);
    let only = proof("agent", "a", 100);
    assert_eq!(use_up(&memory, &only, start()), Ok(()));
    assert_eq!(use_up(&memory, &only, start()), Err("used"));
    let other = proof("agent", "b", 100);
    assert_eq!(use_up(&memory, &other, start()), Err("full"));
}

#[test]
fn a_clock_that_is_set_back_makes_no_nonce_new() {
    let memory = Memory::new(100);
    let used = proof("agent", "a", 100);
    assert_eq!(use_up(&memory, &used, start()), Ok(()));
    assert_eq!(
        use_up(&memory, &proof("agent", "b", 900), after(500)),
        Ok(())
    );
    assert_eq!(memory.len(), 1, "it was forgotten");
    assert_eq!(use_up(&memory, &used, start()), Err("used"));
    // What ends later than anything forgotten is not held up.
    let later = proof("agent", "c", 102);
    assert_eq!(use_up(&memory, &later, start()), Ok(()));
}

#[test]
fn of_many_at_once_one_gets_it() {
    let memory = Arc::new(Memory::new(100));
    let shared = Arc::new(proof("agent", "n", 360));
    let barrier = Arc::new(std::sync::Barrier::new(16));
    let threads: Vec<_> = (0..16)
        .map(|_| {
            let (memory, proof) = (Arc::clone(&memory), Arc::clone(&shared));
            let barrier = Arc::clone(&barrier);
            std::thread::spawn(move || {
                barrier.wait();
                use_up(&memory, &proof, start()).is_ok()
            })
        })
        .collect();
    let passed = threads.into_iter().map(|thread| thread.join().unwrap());
    assert_eq!(passed.filter(|passed| *passed).count(), 1);
}

async fn table(database: &testbed::Database, max: usize) -> Table {
    let patience = Duration::from_secs(20);
    let options = registry::Options {
        url: database.url(),
        max_connections: 2,
        connect_timeout: patience,
        acquire_timeout: patience,
        query_timeout: patience,
        trust_roots: None,
    };
    Table::new(registry::NonceTable::open(&options).await.unwrap(), max)
}

/// As [`proof`], by the clock of the database.
fn proof_now(nonce: &str) -> Proof {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros();
    let now = Timestamp::from_unix_micros(i64::try_from(since).unwrap()).unwrap();
    let seconds = (now.as_unix_micros() - start().as_unix_micros()) / 1_000_000;
    proof("agent", nonce, seconds + 360)
}

#[tokio::test]
async fn a_nonce_that_another_replica_has_seen_is_used() {
    let database = testbed::database().await.unwrap();
    registry::migrate(&database.url()).await.unwrap();
    let (one, two) = (table(&database, 100).await, table(&database, 100).await);
    let (proof, soon) = (proof_now("n"), Instant::now() + Duration::from_secs(20));
    assert!(one.use_up(&proof, start(), soon).await.is_ok());
    for replica in [&one, &two, &table(&database, 100).await] {
        let again = replica.use_up(&proof, start(), soon).await;
        assert!(matches!(again, Err(Refusal::Used)), "{again:?}");
    }
    assert!(two.use_up(&proof_now("m"), start(), soon).await.is_ok());
}

#[tokio::test]
async fn a_full_table_is_refused_until_something_has_expired() {
    let database = testbed::database().await.unwrap();
    registry::migrate(&database.url()).await.unwrap();
    let table = table(&database, 2).await;
    let soon = Instant::now() + Duration::from_secs(20);
    for nonce in ["a", "b"] {
        assert!(table.use_up(&proof_now(nonce), start(), soon).await.is_ok());
        table.upkeep().await.unwrap();
    }
    let full = table.use_up(&proof_now("c"), start(), soon).await;
    assert!(matches!(full, Err(Refusal::Full)), "{full:?}");
    let expire = "UPDATE relay_nonces SET expires_at = now() - interval '6 minutes'";
    database.execute(expire).unwrap();
    table.upkeep().await.unwrap();
    assert!(table.use_up(&proof_now("c"), start(), soon).await.is_ok());
    database.execute("DROP TABLE relay_nonces").unwrap();
    assert!(table.upkeep().await.is_err());
    let gone = table.use_up(&proof_now("d"), start(), soon).await;
    assert!(matches!(gone, Err(Refusal::Unavailable(_))), "{gone:?}");
}
