//! Allows and denies in turn; the denies for each of three reasons.

use std::sync::Arc;

use anyhow::Result;
use testbed::rows::Times;

use super::{CONCURRENCY, Service, WARM, compare, count, empty_beside};
use crate::Effort;
use crate::load::run;
use crate::question::Question;
use crate::report::Report;

/// Permissions that no longer count, of each kind.
const ENDED: usize = 1000;

/// Adds revoked and expired permissions to the registry of `service`, and asks about all of it.
pub(crate) async fn measure(
    service: &mut Service,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let questions = questions(service)?;
    service.authz.settle().await;
    let ours = service.asked();
    let (_empty, empty) = empty_beside(ours, &questions).await?;
    for concurrency in CONCURRENCY {
        service.registry.touch()?;
        service.authz.settle().await;
        run(ours, &questions, questions.len(), 64).await?;
        let count = count(effort, concurrency);
        run(empty, &questions, count, concurrency).await?;
        let mut rounds = Vec::new();
        for _ in 0..effort.rounds() {
            rounds.push([
                run(empty, &questions, count, concurrency).await?,
                run(ours, &questions, count, concurrency).await?,
                run(empty, &questions, count, concurrency).await?,
            ]);
        }
        let name = format!("half denied, c{concurrency}");
        compare(report, "checks", &name, &rounds, |_| None);
    }
    Ok(())
}

/// One half allowed; of the other a third each revoked, expired and never granted.
fn questions(service: &Service) -> Result<Arc<[Question]>> {
    let Service {
        registry, agents, ..
    } = service;
    let revoked = registry.fill("revoked", ENDED, &Times::default())?;
    registry.database.execute(
        "UPDATE permission_registry SET revoked_at = now() WHERE subject_identity LIKE 'revoked-%'",
    )?;
    let expired = registry.fill("expired", ENDED, &Times::from_now(-3600, -1800))?;
    let denied = [
        registry.questions(&revoked, 0..ENDED, Some("permission_revoked")),
        registry.questions(&expired, 0..ENDED, Some("permission_expired")),
        agents.ungranted("elsewhere.test:443"),
    ];
    let [mut revoked, mut expired, mut ungranted] =
        denied.map(|of_kind| of_kind.into_iter().cycle());
    let denied = std::iter::from_fn(|| Some([revoked.next()?, expired.next()?, ungranted.next()?]));
    let allowed = registry.questions(agents, 0..WARM / 2, None);
    let turns = allowed.into_iter().zip(denied.flatten());
    Ok(turns.flat_map(|(allow, deny)| [allow, deny]).collect())
}
