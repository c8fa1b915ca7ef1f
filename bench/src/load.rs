//! Asks a service as Envoy does, and measures what that costs it.
//!
//! The client is as cheap as can be, for it uses the same processors: one thread, one connection,
//! requests encoded beforehand, answers compared as bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use http::Request;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::question::{Answer, Question};
use crate::statistics::percentile;
use crate::usage;

/// As large as Envoy's, so that no answer ever waits for a window.
const WINDOW: u32 = 1 << 28;

/// Bytes before the message in a gRPC frame.
const FRAME_HEAD: usize = 5;

/// Whom to ask.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) address: SocketAddr,
    pub(crate) process: u32,
    /// The empty service decides nothing: its answers are right if they have this many bytes.
    pub(crate) empty: Option<usize>,
}

/// One round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    /// CPU time of the service for each Check, in microseconds.
    pub(crate) cpu: f64,
    /// Checks a second.
    pub(crate) rate: f64,
    /// Latencies, in microseconds.
    pub(crate) p50: f64,
    /// As above.
    pub(crate) p99: f64,
    /// As above.
    pub(crate) p999: f64,
    /// Resident memory of the service afterwards, in MB.
    pub(crate) memory: f64,
    /// Bytes of an answer, on average.
    pub(crate) answer: f64,
    /// Checks that could not be decided.
    pub(crate) undecided: usize,
}

/// Asks `count` questions, from the first on and round again, with `concurrency` in flight on one
/// connection. A wrong answer is an error.
pub(crate) async fn run(
    asked: Asked,
    questions: &Arc<[Question]>,
    count: usize,
    concurrency: usize,
) -> Result<Measured> {
    let questions = Arc::clone(questions);
    // A thread of its own, so that nothing else in this process delays it.
    let client = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(ask_all(asked, questions, count, concurrency))
    };
    tokio::task::spawn_blocking(client).await?
}

async fn ask_all(
    asked: Asked,
    questions: Arc<[Question]>,
    count: usize,
    concurrency: usize,
) -> Result<Measured> {
    let stream = TcpStream::connect(asked.address).await?;
    stream.set_nodelay(true)?;
    let (client, connection) = Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(stream)
        .await?;
    tokio::spawn(connection);
    let next = Arc::new(AtomicUsize::new(0));
    let (cpu_before, started) = (usage::cpu(asked.process)?, Instant::now());
    let mut workers = JoinSet::new();
    for _ in 0..concurrency {
        let (client, questions) = (client.clone(), Arc::clone(&questions));
        let numbers = next.clone();
        let next = move || Some(numbers.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < count);
        workers.spawn(ask_in_turn(asked, client, questions, next));
    }
    let mut seen = Seen::default();
    while let Some(done) = workers.join_next().await {
        let of_worker = done??;
        seen.latencies.extend(of_worker.latencies);
        seen.bytes += of_worker.bytes;
        seen.undecided += of_worker.undecided;
    }
    let took = started.elapsed();
    let cpu = usage::cpu(asked.process)?.saturating_sub(cpu_before);
    let checks = f64::from(u32::try_from(count)?);
    Ok(Measured {
        cpu: micros(cpu) / checks,
        rate: checks / took.as_secs_f64(),
        p50: percentile(&seen.latencies, 0.5),
        p99: percentile(&seen.latencies, 0.99),
        p999: percentile(&seen.latencies, 0.999),
        memory: usage::memory(asked.process)? / 1e6,
        answer: f64::from(u32::try_from(seen.bytes)?) / checks,
        undecided: seen.undecided,
    })
}

/// What one of those who ask has seen.
#[derive(Debug, Default)]
struct Seen {
    latencies: Vec<f64>,
    bytes: usize,
    undecided: usize,
}

async fn ask_in_turn(
    asked: Asked,
    client: SendRequest<Bytes>,
    questions: Arc<[Question]>,
    next: impl Fn() -> Option<usize>,
) -> Result<Seen> {
    let (mut seen, mut answer) = (Seen::default(), Vec::new());
    while let Some(number) = next() {
        let question = questions.get(number % questions.len());
        let question = question.context("no questions")?;
        let sent = Instant::now();
        ask(&client, question, &mut answer).await?;
        seen.latencies.push(micros(sent.elapsed()));
        let length = answer.len().saturating_sub(FRAME_HEAD);
        seen.bytes += length;
        match asked.empty {
            Some(expected) => ensure!(length == expected, "{length} bytes, not {expected}"),
            None if question.check(&answer)? == Answer::Undecided => seen.undecided += 1,
            None => {}
        }
    }
    Ok(seen)
}

/// One call; `answer` is the frame that came back.
async fn ask(client: &SendRequest<Bytes>, question: &Question, answer: &mut Vec<u8>) -> Result<()> {
    // Envoy's own for the two.
    let timeout = if question.tail.is_empty() {
        "2000m"
    } else {
        "5000m"
    };
    let request = Request::post("http://authorization/envoy.service.auth.v3.Authorization/Check")
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", timeout)
        .header("x-envoy-internal", "true")
        .header("x-forwarded-for", "127.0.0.1")
        .body(())?;
    let mut client = client.clone().ready().await?;
    let (response, mut body) = client.send_request(request, false)?;
    body.send_data(question.frame.clone(), question.tail.is_empty())?;
    if !question.tail.is_empty() {
        body.send_data(question.tail.clone(), true)?;
    }
    let (head, mut received) = response.await?.into_parts();
    answer.clear();
    while let Some(data) = received.data().await {
        let data = data?;
        received.flow_control().release_capacity(data.len())?;
        answer.extend(data);
    }
    // A refusal has none but its head.
    let trailers = received.trailers().await?.unwrap_or(head.headers);
    let status = trailers.get("grpc-status").context("no gRPC status")?;
    ensure!(status == "0", "gRPC status {status:?}: {trailers:?}");
    Ok(())
}

pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
