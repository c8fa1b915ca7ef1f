//! Warm Checks whose decisions are recorded, beside the same without an audit.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use testbed::Authz;

use super::{CONCURRENCY, FIGURES, Service, count};
use crate::Effort;
use crate::load::{Asked, Measured, run};
use crate::question::Question;
use crate::report::{Report, Rounds, Target};

/// So few that all of them stay warm.
const WARM: usize = 1000;

/// How an audit is kept, and the settings for it.
const KEPT: [(&str, Option<&str>); 2] = [("audit on", None), ("audit within 50 ms", Some("50"))];

/// Asks `service`, and others before the same registry that write an audit.
pub(crate) async fn measure(
    service: &mut Service,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut audited = Vec::new();
    for (place, (_, delay)) in KEPT.into_iter().enumerate() {
        let path = folder.path().join(format!("audit-{place}.jsonl"));
        let mut options = service.registry.options();
        let mut set = |key: &str, value: String| {
            let name = format!("AGENT_GATEWAY__AUDIT__{key}");
            options.environment.push((name, value));
        };
        set("PATH", path.display().to_string());
        if let Some(delay) = delay {
            set("SYNC_DELAY_MS", delay.to_owned());
        }
        audited.push(Authz::start(&options)?);
    }
    let on: Vec<Asked> = audited
        .iter_mut()
        .map(|audited| Asked {
            address: audited.grpc_addr(),
            process: audited.process().id(),
            empty: None,
        })
        .collect();
    let off = service.asked();
    let questions = service.registry.questions(&service.agents, 0..WARM, None);
    let questions: Arc<[Question]> = questions.into();
    report.note(format!(
        "audit: one fdatasync of 1 KiB takes {:.0} us on the disk that it was measured on",
        sync_micros(folder.path())?
    ));
    for concurrency in CONCURRENCY {
        let count = count(effort, concurrency);
        let mut rounds: [Vec<[Measured; 3]>; KEPT.len()] = Default::default();
        for _ in 0..effort.rounds() {
            for asked in on.iter().copied().chain([off]) {
                run(asked, &questions, questions.len(), 64).await?;
            }
            let mut before = run(off, &questions, count, concurrency).await?;
            for (on, rounds) in on.iter().zip(&mut rounds) {
                let recorded = run(*on, &questions, count, concurrency).await?;
                let after = run(off, &questions, count, concurrency).await?;
                rounds.push([before, recorded, after]);
                before = after;
            }
        }
        for ((kept, _), rounds) in KEPT.iter().zip(&rounds) {
            for (figure, unit, value) in FIGURES {
                let column =
                    |place: usize| rounds.iter().filter_map(move |it| it.get(place)).map(value);
                let columns = Rounds {
                    before: column(0).collect(),
                    ours: column(1).collect(),
                    after: column(2).collect(),
                };
                let target =
                    (figure == "cpu a check" && concurrency > 1).then_some(Target::AtMost(1.15));
                let name = format!("{kept} to off, c{concurrency}: {figure}");
                report.compare("audit", &name, unit, columns, target);
            }
        }
    }
    Ok(())
}

/// The median time that one write of about two records takes to be on disk.
fn sync_micros(folder: &std::path::Path) -> Result<f64> {
    use std::io::Write as _;
    let mut file = std::fs::File::create(folder.join("sync"))?;
    let mut samples = Vec::new();
    for _ in 0..100 {
        let began = Instant::now();
        file.write_all(&[b'x'; 1024])?;
        file.sync_data()?;
        samples.push(crate::load::micros(began.elapsed()));
    }
    Ok(crate::statistics::median(&samples))
}
