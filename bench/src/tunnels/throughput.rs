//! Bytes a second through open tunnels.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::far_end::{CHUNK, FarEnd, READ, SEND};
use super::lane::Lane;
use crate::Effort;
use crate::report::{Report, Rounds, Target};

/// Tunnels that carry bytes at a time.
const TUNNELS: usize = 8;
/// As many as the comparison asks for: one of them is not read.
const WITH_STALLED: usize = 50;

/// Before anything is counted, for buffers to fill.
const RUN_UP: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// Both directions, beside the same path with nobody asked.
pub(crate) async fn measure(
    far_end: &FarEnd,
    with: &Lane,
    without: &Lane,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    for (direction, name) in [(Direction::Up, "up"), (Direction::Down, "down")] {
        let mut rounds = Rounds::default();
        for _ in 0..effort.rounds() {
            let carry = async |lane| carry(far_end, lane, TUNNELS, direction, effort).await;
            rounds.before.push(carry(without).await?);
            rounds.ours.push(carry(with).await?);
            rounds.after.push(carry(without).await?);
        }
        let name = format!("{TUNNELS} tunnels: bytes {name}");
        report.compare("tunnels", &name, "MB/s", rounds, None);
    }
    Ok(())
}

/// What a tunnel that nobody reads costs the others of the same sidecar.
pub(crate) async fn stalled(
    far_end: &FarEnd,
    lane: &Lane,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let mut rounds = Rounds::default();
    for _ in 0..effort.rounds() {
        let others = async || carry(far_end, lane, WITH_STALLED - 1, Direction::Down, effort).await;
        rounds.before.push(others().await?);
        let mut unread = lane.way().open().await?;
        unread.write_u8(SEND).await?;
        // Until all that lies between is full.
        sleep(2 * RUN_UP).await;
        rounds.ours.push(others().await?);
        drop(unread);
        rounds.after.push(others().await?);
    }
    let name = format!("one of {WITH_STALLED} stalled: the others' bytes down");
    report.compare("tunnels", &name, "MB/s", rounds, Some(Target::AtLeast(0.9)));
    Ok(())
}

/// Megabytes a second over `tunnels` in one direction.
async fn carry(
    far_end: &FarEnd,
    lane: &Lane,
    tunnels: usize,
    direction: Direction,
    effort: Effort,
) -> Result<f64> {
    let way = lane.way();
    // Aborted when dropped.
    let mut moving: JoinSet<Result<()>> = JoinSet::new();
    let counter = match direction {
        Direction::Up => far_end.received(),
        Direction::Down => Arc::default(),
    };
    for _ in 0..tunnels {
        let (tunnel, counter) = (way.open().await?, Arc::clone(&counter));
        match direction {
            Direction::Up => moving.spawn(send(tunnel)),
            Direction::Down => moving.spawn(receive(tunnel, counter)),
        };
    }
    sleep(RUN_UP).await;
    let (before, began) = (counter.load(Ordering::Relaxed), Instant::now());
    sleep(Duration::from_millis(if effort.short { 500 } else { 1000 })).await;
    let moved = counter.load(Ordering::Relaxed) - before;
    let took = began.elapsed();
    if let Some(ended) = moving.try_join_next() {
        ended??;
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let megabytes = moved as f64 / 1e6;
    Ok(megabytes / took.as_secs_f64())
}

async fn send(mut tunnel: TcpStream) -> Result<()> {
    let mut bytes = vec![0; CHUNK];
    if let Some(first) = bytes.first_mut() {
        *first = READ;
    }
    loop {
        tunnel.write_all(&bytes).await?;
    }
}

async fn receive(mut tunnel: TcpStream, received: Arc<AtomicU64>) -> Result<()> {
    tunnel.write_u8(SEND).await?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = tunnel.read(&mut buffer).await?;
        anyhow::ensure!(length > 0, "the tunnel ended");
        received.fetch_add(length as u64, Ordering::Relaxed);
    }
}
