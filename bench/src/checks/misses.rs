//! Checks that find nothing in memory: each is about an agent, a key and a destination never asked
//! about, for which there is a permission. What they cost beyond an empty call is set beside the
//! bare query, through a pool as large as the service's.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use permission::Request;
use registry::{Options, Reader};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{CONCURRENCY, Service, compare, count, empty_beside};
use crate::Effort;
use crate::load::{micros, run};
use crate::question::Question;
use crate::report::{Report, Rounds, Target};
use crate::statistics::percentile;

/// The service's own defaults (`policy.max_connections` and the waits beside it).
const POOL: u32 = 5;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(1);
const QUERY_TIMEOUT: Duration = Duration::from_millis(500);

/// Hands out permissions, none twice.
struct Unasked<'a> {
    service: &'a Service,
    left: Range<usize>,
}

impl Unasked<'_> {
    fn questions(&mut self, count: usize) -> Result<Arc<[Question]>> {
        let first = self.left.start;
        self.left.start += count;
        ensure!(
            self.left.start <= self.left.end,
            "all permissions were asked about"
        );
        let Service {
            registry, agents, ..
        } = self.service;
        let taken = first..self.left.start;
        Ok(registry.questions(agents, taken, None).into())
    }

    /// Permissions for the bare query, from the other end.
    fn requests(&mut self, count: usize) -> Result<Vec<Request>> {
        let end = self.left.end;
        self.left.end = end.saturating_sub(count);
        ensure!(
            self.left.start <= self.left.end,
            "all permissions were asked about"
        );
        let Service {
            registry, agents, ..
        } = self.service;
        registry.requests(agents, self.left.end..end)
    }
}

/// Asks `service` about agents that it has not met.
pub(crate) async fn measure(
    service: &mut Service,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let ours = service.asked();
    let mut unasked = Unasked {
        service,
        left: 0..service.agents.permissions(),
    };
    let reader = Reader::open(&Options {
        url: service.registry.database.url(),
        max_connections: POOL,
        connect_timeout: Duration::from_secs(5),
        acquire_timeout: ACQUIRE_TIMEOUT,
        query_timeout: QUERY_TIMEOUT,
        trust_roots: None,
    })
    .await?;
    let before = service.cache().await?.misses;
    let (_empty, empty) = empty_beside(ours, &unasked.questions(200)?).await?;
    query(&reader, unasked.requests(200)?, 16).await?;
    for concurrency in CONCURRENCY {
        let count = count(effort, concurrency) / if effort.short { 4 } else { 2 };
        let (mut rounds, mut beyond) = (Vec::new(), Rounds::default());
        for _ in 0..effort.rounds() {
            let questions = unasked.questions(count)?;
            let bare = query(&reader, unasked.requests(count / 2)?, concurrency).await?;
            let before = run(empty, &questions, count, concurrency).await?;
            let missed = run(ours, &questions, count, concurrency).await?;
            let after = run(empty, &questions, count, concurrency).await?;
            let again = query(&reader, unasked.requests(count / 2)?, concurrency).await?;
            beyond.before.push(bare);
            beyond
                .ours
                .push(missed.p50 - f64::midpoint(before.p50, after.p50));
            beyond.after.push(again);
            rounds.push([before, missed, after]);
        }
        compare(
            report,
            "checks",
            &format!("all-miss, c{concurrency}"),
            &rounds,
            |_| None,
        );
        let name = format!("all-miss, c{concurrency}: p50 - empty's, to a bare query's");
        let target = (concurrency < 64).then_some(Target::AtMost(2.0));
        report.compare("checks", &name, "us", beyond, target);
    }
    let asked = unasked.left.start;
    let missed = service.cache().await?.misses - before;
    ensure!(
        missed >= asked as u64,
        "{missed} misses where {asked} were due"
    );
    let certificates = service.agents.permissions() / 10;
    if asked > certificates {
        report.note(format!(
            "all-miss: {asked} keys of {certificates} certificates, so most certificates were known"
        ));
    }
    Ok(())
}

/// The p50 of the query that a miss makes, in microseconds, each for another of `requests`.
async fn query(reader: &Reader, requests: Vec<Request>, concurrency: usize) -> Result<f64> {
    let (requests, next): (Arc<[_]>, _) = (requests.into(), Arc::new(AtomicUsize::new(0)));
    let mut workers: JoinSet<Result<Vec<f64>>> = JoinSet::new();
    for _ in 0..concurrency {
        let (reader, requests, next) = (reader.clone(), Arc::clone(&requests), next.clone());
        workers.spawn(async move {
            let mut latencies = Vec::new();
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                let began = Instant::now();
                let rows = reader.candidates(request, began + QUERY_TIMEOUT);
                let rows = rows.await.context("the bare query")?;
                latencies.push(micros(began.elapsed()));
                ensure!(rows == 1, "{rows} rows");
            }
            Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(done) = workers.join_next().await {
        latencies.extend(done??);
    }
    Ok(percentile(&latencies, 0.5))
}
