//! How soon a revocation is felt: from just before its COMMIT is sent, so that nothing is left
//! out, to what the agent sees.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use testbed::Session;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::lane::{Gateway, Way};
use crate::Effort;
use crate::report::{Report, Target};
use crate::statistics::percentile;
use crate::usage;

const REVOKE: &str = "BEGIN; UPDATE permission_registry SET revoked_at = now()";
const GRANT_AGAIN: &str = "UPDATE permission_registry SET revoked_at = NULL";

/// A revocation that takes longer than this is not going to be felt.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tunnels being opened at a time.
const AT_A_TIME: usize = 32;

/// Until a CONNECT is refused, with CONNECTs one after the other all the while.
pub(crate) async fn refused(gateway: &Gateway, effort: Effort, report: &mut Report) -> Result<()> {
    let mut session = Session::open(&gateway.database)?;
    let mut taken = Vec::new();
    let revocations = if effort.short { 40 } else { 200 };
    for number in 0..revocations {
        gateway.authz.settle().await;
        let way = gateway.lane.way();
        way.open().await?;
        // At another moment between two polls each time.
        sleep(Duration::from_millis(number * 37 % 200)).await;
        session.run(REVOKE)?;
        let asking = tokio::spawn(async move { first_refusal(&way).await });
        let committing = Instant::now();
        session.run("COMMIT")?;
        let refused = timeout(PATIENCE, asking).await??;
        taken.push(millis(refused?.saturating_duration_since(committing)));
        let (_, head) = gateway.lane.way().connect().await?;
        ensure!(is_refusal(&head), "allowed after a refusal: {head}");
        session.run(GRANT_AGAIN)?;
    }
    gateway.authz.settle().await;
    let p99 = percentile(&taken, 0.99);
    let name = format!("COMMIT to CONNECT refused: p99 of {revocations}");
    report.measure(
        "revocation",
        &name,
        "ms",
        taken,
        p99,
        Some(Target::AtMost(250.0)),
    );
    Ok(())
}

async fn first_refusal(way: &Way) -> Result<Instant> {
    loop {
        let (_, head) = way.connect().await?;
        if is_refusal(&head) {
            return Ok(Instant::now());
        }
        ensure!(
            head.starts_with("HTTP/1.1 200 "),
            "neither tunnel nor refusal: {head}"
        );
    }
}

fn is_refusal(head: &str) -> bool {
    head.starts_with("HTTP/1.1 403 ") && head.contains("details=\"permission_revoked\"")
}

/// Until each of many open tunnels is cut; and what an open tunnel takes in the service.
pub(crate) async fn cut(gateway: &mut Gateway, effort: Effort, report: &mut Report) -> Result<()> {
    let (revocations, tunnels) = if effort.short { (3, 300) } else { (20, 1000) };
    let mut session = Session::open(&gateway.database)?;
    let mut taken = Vec::new();
    let service = gateway.authz.process().id();
    for number in 0..revocations {
        gateway.authz.settle().await;
        let before = usage::memory(service)?;
        let open = open_many(&gateway.lane.way(), tunnels).await?;
        let held = gateway.authz.metric("agent_gateway_open_tunnels").await?;
        let expected = f64::from(u32::try_from(tunnels)?);
        ensure!(
            (held - expected).abs() < 0.5,
            "the service holds {held} tunnels"
        );
        if number == 0 {
            let each = (usage::memory(service)? - before) / expected / 1024.0;
            let name = format!("memory of each of {tunnels} open tunnels");
            report.measure(
                "tunnels",
                &name,
                "KiB",
                vec![each],
                each,
                Some(Target::AtMost(32.0)),
            );
        }
        let mut ends = JoinSet::new();
        for tunnel in open {
            ends.spawn(cut_at(tunnel));
        }
        session.run(REVOKE)?;
        let committing = Instant::now();
        session.run("COMMIT")?;
        while let Some(end) = timeout(PATIENCE, ends.join_next()).await? {
            taken.push(millis(end??.saturating_duration_since(committing)));
        }
        session.run(GRANT_AGAIN)?;
    }
    let p99 = percentile(&taken, 0.99);
    let name = format!("COMMIT to cut: p99 of {revocations} x {tunnels} tunnels");
    report.measure(
        "revocation",
        &name,
        "ms",
        taken,
        p99,
        Some(Target::AtMost(500.0)),
    );
    Ok(())
}

async fn open_many(way: &Way, count: usize) -> Result<Vec<TcpStream>> {
    let (mut opening, mut open) = (JoinSet::new(), Vec::with_capacity(count));
    for _ in 0..count {
        if opening.len() >= AT_A_TIME {
            open.push(opening.join_next().await.context("none opens")???);
        }
        let way = way.clone();
        opening.spawn(async move { way.open().await });
    }
    while let Some(opened) = opening.join_next().await {
        open.push(opened??);
    }
    Ok(open)
}

/// When the tunnel is cut, which never looks like an orderly end.
async fn cut_at(mut tunnel: TcpStream) -> Result<Instant> {
    match tunnel.read(&mut [0; 16]).await {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(Instant::now()),
        Err(error) => Err(error.into()),
        Ok(length) => bail!("{length} bytes where a reset was due"),
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
