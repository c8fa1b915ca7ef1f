//! Checks: what one costs the service, beside an empty service that decodes the same request and
//! answers as many bytes.

pub(crate) mod audited;
pub(crate) mod misses;
pub(crate) mod mixed;
pub(crate) mod warm;

use std::sync::Arc;

use anyhow::{Context as _, Result};
use proto::admin::v1::operations_client::OperationsClient;
use proto::admin::v1::{CacheStatsRequest, CacheStatsResponse};
use testbed::Authz;
use testbed::rows::Times;

use crate::Effort;
use crate::empty::Empty;
use crate::load::{self, Asked, Measured};
use crate::population::{Agents, Registry};
use crate::question::Question;
use crate::report::{Report, Rounds, Target};

/// Checks in flight at a time.
pub(crate) const CONCURRENCY: [usize; 3] = [1, 16, 64];

/// Warm permissions, and all that the smaller registry has.
pub(crate) const WARM: usize = 10_000;

/// A service before a registry.
pub(crate) struct Service {
    pub(crate) registry: Registry,
    pub(crate) agents: Agents,
    pub(crate) authz: Authz,
}

impl Service {
    /// A registry with so many permissions, and a service before it as it is shipped.
    pub(crate) async fn start(permissions: usize) -> Result<Self> {
        eprintln!("filling a registry with {permissions} permissions");
        let registry = Registry::new().await?;
        let agents = registry.fill("agent", permissions, &Times::default())?;
        let authz = Authz::start(&registry.options())?;
        Ok(Self {
            registry,
            agents,
            authz,
        })
    }

    /// What the service holds in memory, and how it has done.
    pub(crate) async fn cache(&self) -> Result<CacheStatsResponse> {
        let address = format!("http://{}", self.authz.admin_grpc_addr());
        let mut client = OperationsClient::connect(address).await?;
        Ok(client.cache_stats(CacheStatsRequest {}).await?.into_inner())
    }

    /// Says on stderr what the service complained about last.
    pub(crate) fn tell_complaints(&mut self) {
        let log = self.authz.process().log();
        let complaints = log.lines().filter(|line| !line.contains("\"INFO\""));
        for line in complaints.rev().take(10) {
            eprintln!("authz-service: {line}");
        }
    }

    pub(crate) fn asked(&mut self) -> Asked {
        Asked {
            address: self.authz.grpc_addr(),
            process: self.authz.process().id(),
            empty: None,
        }
    }
}

/// An empty service whose answers are as long as ours to `questions` are on average.
pub(crate) async fn empty_beside(
    asked: Asked,
    questions: &Arc<[Question]>,
) -> Result<(Empty, Asked)> {
    let ours = load::run(asked, questions, questions.len(), 64).await?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "some hundreds of bytes"
    )]
    let bytes = ours.answer.round() as usize;
    let empty = Empty::start(bytes)?;
    let asked = Asked {
        address: empty.address(),
        process: empty.id(),
        empty: Some(bytes),
    };
    Ok((empty, asked))
}

/// How many Checks make a round: alone they are slow, and there is less to see.
fn count(effort: Effort, concurrency: usize) -> usize {
    let all = if effort.short { 3_000 } else { 10_000 };
    if concurrency == 1 { all / 5 } else { all }
}

/// Name, unit, and where it stands.
pub(crate) type Figure = (&'static str, &'static str, fn(&Measured) -> f64);

/// What a Check is judged by.
pub(crate) const FIGURES: [Figure; 5] = [
    ("cpu a check", "us", |round| round.cpu),
    ("checks a second", "1/s", |round| round.rate),
    ("p50", "us", |round| round.p50),
    ("p99", "us", |round| round.p99),
    ("p99.9", "us", |round| round.p999),
];

/// Adds all figures of rounds of empty, ours, empty; `target` says what a figure must reach.
pub(crate) fn compare(
    report: &mut Report,
    part: &'static str,
    name: &str,
    rounds: &[[Measured; 3]],
    target: impl Fn(&str) -> Option<Target>,
) {
    let undecided: usize = rounds.iter().flatten().map(|round| round.undecided).sum();
    if undecided > 0 {
        report.note(format!(
            "{name}: {undecided} Checks could not be decided in time"
        ));
    }
    for (figure, unit, value) in FIGURES {
        let column = |index: usize| {
            let values = rounds.iter().filter_map(|round| round.get(index));
            values.map(value).collect()
        };
        let columns = Rounds {
            before: column(0),
            ours: column(1),
            after: column(2),
        };
        report.compare(
            part,
            &format!("{name}: {figure}"),
            unit,
            columns,
            target(figure),
        );
    }
}

/// Adds what memory services took in the last round.
fn memory(report: &mut Report, name: &str, rounds: &[[Measured; 3]]) -> Result<()> {
    let last = rounds.last().context("no rounds")?;
    let [empty, ours] = [last[0].memory, last[1].memory];
    let name = format!("{name}: memory (the empty service's: {empty:.0})");
    report.measure("checks", &name, "MB", vec![ours], ours, None);
    Ok(())
}
