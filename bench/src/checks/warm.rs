//! Decisions in memory: with as many permissions as are asked about, and with a great many more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{CONCURRENCY, FIGURES, Service, WARM, compare, count, empty_beside, memory};
use crate::Effort;
use crate::load::{Asked, Measured, run};
use crate::question::Question;
use crate::report::{Report, Rounds, Target};

/// What was loaded a minute ago is loaded again (`cache.max_age_ms`): before that, all is loaded
/// anew, outside of what is measured.
const STAYS_WARM: Duration = Duration::from_secs(35);

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
    let (few, many) = ((small.asked(), &of_small), (large.asked(), &of_large));
    for concurrency in CONCURRENCY {
        let count = count(effort, concurrency);
        run(empty, &of_small, count, concurrency).await?;
        let mut rounds = Vec::new();
        let (mut warm_since, mut lookups) = (None::<Instant>, 0);
        for number in 0..effort.rounds() {
            if warm_since.is_none_or(|since| since.elapsed() > STAYS_WARM) {
                warm_since = Some(Instant::now());
                warm_up(small, &of_small, concurrency).await?;
                warm_up(large, &of_large, concurrency).await?;
            }
            let missed = small.cache().await?.misses + large.cache().await?.misses;
            rounds.push(round(number, empty, few, many, count, concurrency).await?);
            lookups += small.cache().await?.misses + large.cache().await?.misses - missed;
        }
        if lookups > 0 {
            let asked = 2 * count * effort.rounds();
            report.note(format!(
                "warm, c{concurrency}: {lookups} of {asked} Checks were lookups"
            ));
        }
        tell(report, all, concurrency, &rounds)?;
    }
    Ok(())
}

/// The empty service, the one with few permissions, the one with many, and the empty one again.
async fn round(
    number: usize,
    empty: Asked,
    few: (Asked, &Arc<[Question]>),
    many: (Asked, &Arc<[Question]>),
    count: usize,
    concurrency: usize,
) -> Result<[Measured; 4]> {
    let ask = async |(asked, questions)| run(asked, questions, count, concurrency).await;
    let before = ask((empty, few.1)).await?;
    // In turn, so that neither always comes first.
    let (with_few, with_many) = if number.is_multiple_of(2) {
        let with_few = ask(few).await?;
        (with_few, ask(many).await?)
    } else {
        let with_many = ask(many).await?;
        (ask(few).await?, with_many)
    };
    Ok([before, with_few, with_many, ask((empty, few.1)).await?])
}

fn tell(
    report: &mut Report,
    all: usize,
    concurrency: usize,
    rounds: &[[Measured; 4]],
) -> Result<()> {
    let beside_empty: Vec<_> = rounds
        .iter()
        .map(|[before, few, _, after]| [*before, *few, *after])
        .collect();
    let name = format!("warm, {WARM} of {WARM}, c{concurrency}");
    compare(
        report,
        "checks",
        &name,
        &beside_empty,
        |figure| match figure {
            "cpu a check" if concurrency > 1 => Some(Target::AtMost(1.5)),
            "p99" if concurrency == 64 => Some(Target::AtMost(1.5)),
            _ => None,
        },
    );
    memory(report, &name, &beside_empty)?;
    for (figure, unit, value) in FIGURES {
        let sizes = Rounds {
            before: rounds.iter().map(|[_, few, ..]| value(few)).collect(),
            ours: rounds.iter().map(|[_, _, many, _]| value(many)).collect(),
            after: Vec::new(),
        };
        let target = matches!(figure, "cpu a check" | "p50").then_some(Target::AtMost(1.1));
        let name = format!("warm, {WARM} of {all}, c{concurrency}: {figure}");
        report.compare("more rows", &name, unit, sizes, target);
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
