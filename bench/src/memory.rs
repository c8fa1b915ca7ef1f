//! Starting before a great many permissions, and keeping many of them in memory.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use testbed::{Authz, AuthzOptions};

use crate::Effort;
use crate::checks::Service;
use crate::load;
use crate::population::Registry;
use crate::question::Question;
use crate::report::{Report, Target};
use crate::statistics::{means, percentile};
use crate::usage;

/// Entries that the target for memory is about.
const ENTRIES: usize = 100_000;

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
pub(crate) async fn cached(large: &mut Service, report: &mut Report) -> Result<()> {
    let entries = ENTRIES.min(large.agents.permissions());
    let questions = large.registry.questions(&large.agents, 0..entries, None);
    let questions: Arc<[Question]> = questions.into();
    let target = (entries == ENTRIES).then_some(Target::AtMost(150.0));
    let name = format!("memory with {entries} permissions cached");
    large.authz.start_again_with(&large.registry.options())?;
    let asked = large.asked();
    let idle = usage::memory(asked.process)? / 1e6;
    let filled = load::run(asked, &questions, questions.len(), 64).await?;
    let full = usage::memory(asked.process)? / 1e6;
    report.measure("memory", &name, "MB", vec![full], full, target);
    let cache = large.cache().await?;
    let decided = entries - filled.undecided;
    ensure!(
        cache.known_entries == decided as u64,
        "{} of {decided} permissions are in memory",
        cache.known_entries
    );
    report.note(format!(
        "{name}: {idle:.0} MB before the first Check; {} entries are there, {} of {} bytes by the \
         service's count",
        cache.known_entries, cache.known_bytes, cache.max_bytes
    ));
    Ok(())
}
