//! Asks a service as Envoy does, and measures what that costs it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use tonic::transport::Endpoint;

/// One round.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    /// CPU time of the service for each Check, in microseconds.
    pub(crate) cpu_us: f64,
    /// Checks a second.
    pub(crate) rate: f64,
    /// Latencies, in microseconds.
    pub(crate) p50_us: f64,
    /// As above.
    pub(crate) p99_us: f64,
    /// As above.
    pub(crate) p999_us: f64,
}

/// Sends `count` of `requests` with `concurrency` in flight, on one connection as Envoy has it.
///
/// Every answer must be an allow.
pub(crate) async fn run(
    address: SocketAddr,
    process: u32,
    requests: &[CheckRequest],
    count: usize,
    concurrency: usize,
) -> Result<Measured> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    let client = AuthorizationClient::new(endpoint.connect().await?);
    let requests: Arc<[CheckRequest]> = requests.into();
    let next = Arc::new(AtomicUsize::new(0));
    let (cpu_before, started) = (cpu(process)?, Instant::now());
    let workers: Vec<_> = (0..concurrency)
        .map(|_| {
            let (mut client, requests, next) = (client.clone(), requests.clone(), next.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return Ok(latencies);
                    }
                    let request = requests.get(number % requests.len()).cloned();
                    let sent = Instant::now();
                    let answer = client
                        .check(request.unwrap_or_default())
                        .await?
                        .into_inner();
                    latencies.push(sent.elapsed());
                    let code = answer.status.map_or(-1, |status| status.code);
                    ensure!(code == 0, "not allowed: {:?}", answer.http_response);
                }
            })
        })
        .collect();
    let mut latencies = Vec::with_capacity(count);
    for worker in workers {
        latencies.extend(worker.await??);
    }
    let (took, cpu) = (started.elapsed(), cpu(process)?.saturating_sub(cpu_before));
    latencies.sort_unstable();
    let checks = f64::from(u32::try_from(count)?);
    let percentile = |part: f64| -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index"
        )]
        let index = (checks * part) as usize;
        latencies
            .get(index.min(count - 1))
            .map_or(0.0, |latency| micros(*latency))
    };
    Ok(Measured {
        cpu_us: micros(cpu) / checks,
        rate: checks / took.as_secs_f64(),
        p50_us: percentile(0.5),
        p99_us: percentile(0.99),
        p999_us: percentile(0.999),
    })
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// User and system time of a process so far.
fn cpu(process: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // proc(5): the name, in brackets, may hold anything; utime and stime are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(')').context("stat")?;
    let ticks: Vec<u64> = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_micros(
        ticks.iter().sum::<u64>() * 1_000_000 / per_second,
    ))
}
