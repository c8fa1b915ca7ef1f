//! Starting before a great many permissions, and keeping many of them in memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use testbed::{Authz, AuthzOptions, Database};
use tokio::time::sleep;

use crate::Effort;
use crate::checks::Service;
use crate::load;
use crate::population::{Registry, setting};
use crate::question::Question;
use crate::report::{Report, Target};
use crate::statistics::{means, percentile};
use crate::usage;

/// Entries that the target for memory is about.
const ENTRIES: usize = 100_000;

/// Enough for them (`cache.max_bytes`); the default, 64 MiB, is not.
const MAX_BYTES: &str = "268435456";

/// So that none is read again meanwhile (`cache.max_age_ms`).
const MAX_AGE_MS: &str = "3600000";

/// From the start of the process to ready, before the registry of `large` and before an empty one.
pub(crate) async fn start(large: &Service, effort: Effort, report: &mut Report) -> Result<()> {
    let none = Registry::new().await?;
    let (mut before, mut ours, mut after) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.rounds() {
        before.push(to_ready(&none.options()).await?);
        ours.push(to_ready(&large.registry.options()).await?);
        after.push(to_ready(&none.options()).await?);
    }
    let base = means(&before, &after);
    let more: Vec<_> = ours
        .iter()
        .zip(&base)
        .map(|(ours, none)| ours - none)
        .collect();
    let worst = percentile(&more, 1.0);
    let name = format!(
        "start to ready, {} permissions more: worst",
        effort.permissions
    );
    report.measure("memory", &name, "s", more, worst, Some(Target::AtMost(2.0)));
    Ok(())
}

async fn to_ready(options: &AuthzOptions) -> Result<f64> {
    let began = Instant::now();
    let authz = Authz::start(options)?;
    authz.ready().await?;
    Ok(began.elapsed().as_secs_f64())
}

/// What the service takes that has many permissions in memory; `large`'s is started anew for it.
pub(crate) async fn cached(large: &mut Service, effort: Effort, report: &mut Report) -> Result<()> {
    let entries = ENTRIES.min(large.agents.permissions());
    let questions = large.registry.questions(&large.agents, 0..entries, None);
    let questions: Arc<[Question]> = questions.into();
    let target = (entries == ENTRIES).then_some(Target::AtMost(150.0));
    let name = format!("memory with {entries} permissions cached");
    fill(large, Some(MAX_BYTES), &questions, (&name, target), report).await?;
    if !effort.short {
        let name = "the same, cache.max_bytes as shipped";
        fill(large, None, &questions, (name, None), report).await?;
    }
    Ok(())
}

/// Asks about all of it twice: for the second time, how often the registry is asked tells how much
/// was not in memory.
async fn fill(
    large: &mut Service,
    max_bytes: Option<&str>,
    questions: &Arc<[Question]>,
    (name, target): (&str, Option<Target>),
    report: &mut Report,
) -> Result<()> {
    let mut options = large.registry.options();
    options
        .environment
        .push(setting("CACHE__MAX_AGE_MS", MAX_AGE_MS));
    let max_bytes = max_bytes.map(|bytes| setting("CACHE__MAX_BYTES", bytes));
    options.environment.extend(max_bytes);
    let before = lookups(large).await?;
    large.authz.start_again_with(&options)?;
    let asked = large.asked();
    let idle = usage::memory(asked.process)? / 1e6;
    load::run(asked, questions, questions.len(), 64).await?;
    let full = usage::memory(asked.process)? / 1e6;
    load::run(asked, questions, questions.len(), 64).await?;
    let again = lookups(large).await? - before - questions.len();
    report.measure("memory", name, "MB", vec![full], full, target);
    report.note(format!(
        "{name}: {idle:.0} MB before the first Check; asked again, {again} of {} were not there",
        questions.len()
    ));
    Ok(())
}

/// How many permissions were looked up in the registry so far; its readers are ended first, for
/// only then have they told all.
async fn lookups(large: &mut Service) -> Result<usize> {
    large.authz.process().kill();
    let database: &Database = &large.registry.database;
    let readers = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'agent-gateway'";
    while database.query(readers)? != "0" {
        sleep(Duration::from_millis(10)).await;
    }
    let lookups = "SELECT idx_scan FROM pg_stat_user_indexes
        WHERE indexrelname = 'permission_registry_lookup'";
    Ok(database.query(lookups)?.parse()?)
}
