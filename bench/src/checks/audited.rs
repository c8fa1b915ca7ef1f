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

/// Asks `service`, and another one before the same registry that writes an audit.
pub(crate) async fn measure(
    service: &mut Service,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("audit.jsonl");
    let mut options = service.registry.options();
    let variable = "AGENT_GATEWAY__AUDIT__PATH".to_owned();
    options
        .environment
        .push((variable, path.display().to_string()));
    let mut audited = Authz::start(&options)?;
    let on = Asked {
        address: audited.grpc_addr(),
        process: audited.process().id(),
        empty: None,
    };
    let off = service.asked();
    let questions = service.registry.questions(&service.agents, 0..WARM, None);
    let questions: Arc<[Question]> = questions.into();
    report.note(format!(
        "audit: one fdatasync of 1 KiB takes {:.0} us on the disk that it was measured on",
        sync_micros(folder.path())?
    ));
    for concurrency in CONCURRENCY {
        let count = count(effort, concurrency);
        let mut rounds: Vec<[Measured; 3]> = Vec::new();
        for _ in 0..effort.rounds() {
            for asked in [off, on] {
                run(asked, &questions, questions.len(), 64).await?;
            }
            let before = run(off, &questions, count, concurrency).await?;
            let recorded = run(on, &questions, count, concurrency).await?;
            rounds.push([
                before,
                recorded,
                run(off, &questions, count, concurrency).await?,
            ]);
        }
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
            let name = format!("audit on to off, c{concurrency}: {figure}");
            report.compare("audit", &name, unit, columns, target);
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
