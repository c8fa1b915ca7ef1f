//! Decisions in memory: with as many permissions as are asked about, and with a great many more.

use std::sync::Arc;

use anyhow::Result;

use super::{CONCURRENCY, FIGURES, Service, WARM, compare, count, empty_beside, memory};
use crate::Effort;
use crate::load::{Measured, run};
use crate::question::Question;
use crate::report::{Report, Rounds, Target};

/// Asks about all permissions of `small`, and about as many of `large`'s; the latter's agents are
/// then no longer among its agents.
pub(crate) async fn measure(
    small: &mut Service,
    large: &mut Service,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let all = large.agents.permissions();
    let sample = large.agents.split_off(WARM);
    let of_small = small.registry.questions(&small.agents, 0..WARM, None);
    let of_large = large.registry.questions(&sample, 0..WARM, None);
    let (of_small, of_large): (Arc<[_]>, Arc<[_]>) = (of_small.into(), of_large.into());
    let (_empty, empty) = empty_beside(small.asked(), &of_small).await?;
    let (ours_small, ours_large) = (small.asked(), large.asked());
    for concurrency in CONCURRENCY {
        warm_up(small, &of_small, concurrency).await?;
        warm_up(large, &of_large, concurrency).await?;
        let count = count(effort, concurrency);
        run(empty, &of_small, count, concurrency).await?;
        let missed = small.cache().await?.misses + large.cache().await?.misses;
        let (mut rounds, mut large_rounds) = (Vec::new(), Vec::new());
        for round in 0..effort.rounds() {
            let before = run(empty, &of_small, count, concurrency).await?;
            // In turn, so that neither always comes first.
            let (with_few, with_many): (Measured, Measured);
            if round % 2 == 0 {
                with_few = run(ours_small, &of_small, count, concurrency).await?;
                with_many = run(ours_large, &of_large, count, concurrency).await?;
            } else {
                with_many = run(ours_large, &of_large, count, concurrency).await?;
                with_few = run(ours_small, &of_small, count, concurrency).await?;
            }
            let after = run(empty, &of_small, count, concurrency).await?;
            rounds.push([before, with_few, after]);
            large_rounds.push(with_many);
        }
        // What was loaded a minute ago is loaded again (`cache.max_age_ms`).
        let missed = small.cache().await?.misses + large.cache().await?.misses - missed;
        if missed > 0 {
            let asked = 2 * count * effort.rounds();
            report.note(format!(
                "warm, c{concurrency}: {missed} of {asked} Checks were lookups"
            ));
        }
        let name = format!("warm, {WARM} of {WARM}, c{concurrency}");
        compare(report, &name, &rounds, |figure| match figure {
            "cpu a check" if concurrency > 1 => Some(Target::AtMost(1.5)),
            "p99" if concurrency == 64 => Some(Target::AtMost(1.5)),
            _ => None,
        });
        memory(report, &name, &rounds)?;
        let few: Vec<_> = rounds.iter().map(|round| round[1]).collect();
        compare_sizes(report, all, concurrency, &few, &large_rounds);
    }
    Ok(())
}

/// Has the service load all of it now, and then asks once more.
async fn warm_up(
    service: &mut Service,
    questions: &Arc<[Question]>,
    concurrency: usize,
) -> Result<()> {
    service.registry.touch()?;
    service.authz.settle().await;
    let asked = service.asked();
    run(asked, questions, questions.len(), 64).await?;
    run(asked, questions, questions.len() / 10, concurrency).await?;
    Ok(())
}

/// Many permissions against few, of the same rounds.
fn compare_sizes(
    report: &mut Report,
    all: usize,
    concurrency: usize,
    few: &[Measured],
    many: &[Measured],
) {
    for (figure, unit, value) in FIGURES {
        let rounds = Rounds {
            before: few.iter().map(value).collect(),
            ours: many.iter().map(value).collect(),
            after: Vec::new(),
        };
        let target = matches!(figure, "cpu a check" | "p50").then_some(Target::AtMost(1.1));
        let name = format!("warm, {WARM} of {all}, c{concurrency}: {figure}");
        report.compare("more rows", &name, unit, rounds, target);
    }
}
