//! Tunnels through the real sidecar and Envoy, beside the same path with nobody asked.

mod far_end;
mod lane;
pub(crate) mod revoked;
pub(crate) mod throughput;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;
use tokio::task::JoinSet;

use crate::Effort;
use crate::load::micros;
use crate::report::{Report, Rounds, Target};
use crate::statistics::percentile;

pub(crate) use far_end::FarEnd;
pub(crate) use lane::{Gateway, Lane};

/// How many tunnels are being opened at a time.
const CONCURRENCY: [usize; 2] = [1, 16];

/// CONNECTs that are closed as soon as they are open.
pub(crate) async fn set_ups(
    with: &Lane,
    without: &Lane,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    for concurrency in CONCURRENCY {
        let all = if effort.short { 400 } else { 2000 };
        let count = if concurrency == 1 { all / 4 } else { all };
        open(with, count, concurrency).await?;
        open(without, count, concurrency).await?;
        let mut columns: [Rounds; 3] = Default::default();
        for _ in 0..effort.rounds() {
            let before = open(without, count, concurrency).await?;
            let ours = open(with, count, concurrency).await?;
            let after = open(without, count, concurrency).await?;
            for (index, column) in columns.iter_mut().enumerate() {
                column.before.extend(before.get(index));
                column.ours.extend(ours.get(index));
                column.after.extend(after.get(index));
            }
        }
        let figures = [("a second", "1/s"), ("p50", "us"), ("p99", "us")];
        for (column, (figure, unit)) in columns.into_iter().zip(figures) {
            let name = format!("CONNECTs, c{concurrency}: {figure}");
            report.compare("tunnels", &name, unit, column, None);
        }
    }
    Ok(())
}

/// CONNECTs in one instant, as when all agents of a machine start; each must get its tunnel.
pub(crate) async fn at_once(with: &Lane, effort: Effort, report: &mut Report) -> Result<()> {
    let count = if effort.short { 300 } else { 1000 };
    let (mut opening, began) = (JoinSet::new(), Instant::now());
    for _ in 0..count {
        let way = with.way();
        opening.spawn(async move { way.connect().await });
    }
    let (mut open, mut refusal) = (Vec::new(), None);
    while let Some(answered) = opening.join_next().await {
        match answered? {
            Ok((tunnel, head)) if head.starts_with("HTTP/1.1 200 ") => open.push(tunnel),
            Ok((_, head)) => refusal = Some(head),
            Err(error) => refusal = Some(error.to_string()),
        }
    }
    let took = began.elapsed();
    if let Some(head) = refusal {
        report.note(format!("{count} CONNECTs in one instant: one got {head}"));
    }
    let opened = f64::from(u32::try_from(open.len())?);
    let name = format!("{count} CONNECTs in one instant, {took:.1?}: opened");
    let all = Target::AtLeast(count.into());
    report.measure("tunnels", &name, "", vec![opened], opened, Some(all));
    Ok(())
}

/// Set-ups a second, their p50 and p99 in microseconds.
async fn open(lane: &Lane, count: usize, concurrency: usize) -> Result<[f64; 3]> {
    let (next, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let mut workers: JoinSet<Result<Vec<f64>>> = JoinSet::new();
    for _ in 0..concurrency {
        let (next, way) = (next.clone(), lane.way());
        workers.spawn(async move {
            let mut latencies = Vec::new();
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let asked = Instant::now();
                let tunnel = way.open().await?;
                latencies.push(micros(asked.elapsed()));
                drop(tunnel);
            }
            Ok(latencies)
        });
    }
    let mut latencies = Vec::with_capacity(count);
    while let Some(done) = workers.join_next().await {
        latencies.extend(done??);
    }
    let rate = f64::from(u32::try_from(count)?) / began.elapsed().as_secs_f64();
    let [p50, p99] = [0.5, 0.99].map(|part| percentile(&latencies, part));
    Ok([rate, p50, p99])
}
