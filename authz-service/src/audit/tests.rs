use std::fs;
use std::time::Instant;

use ::audit::{Head, Outcome, Verifier};
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::check::now;

struct Scene {
    audit: Audit,
    writer: AuditWriter,
    folder: TempDir,
}

fn options(folder: &TempDir) -> AuditOptions {
    AuditOptions {
        path: folder.path().join("audit.jsonl"),
        stdout: false,
        max_file_bytes: 1 << 20,
        replica: "gw-1".to_owned(),
        max_waiting: 8,
        sync_delay: None,
    }
}

impl Scene {
    fn start() -> Self {
        Self::start_with(None, 0)
    }

    /// With a disk that fails so often, once it has begun.
    fn start_with(sync_delay: Option<Duration>, failing_syncs: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = AuditOptions {
            sync_delay,
            ..options(&folder)
        };
        let (log, mut writer) = Audit::begin(&options, Metrics::default()).unwrap();
        writer.file.failing_syncs = failing_syncs;
        let task = tokio::spawn(writer::run(Arc::clone(&log), writer, Wakers::default()));
        Self {
            audit: Audit(Some(Arc::clone(&log))),
            writer: AuditWriter { log, task },
            folder,
        }
    }

    /// How often all records were brought to disk since it began.
    fn syncs(&self) -> u64 {
        syncs(&self.writer.log.metrics)
    }

    /// Waits for a record that says so many are missing; returns all records.
    async fn resumed(&self, unwritten: u64) -> Vec<Value> {
        let deadline = Instant::now() + Duration::from_secs(40);
        loop {
            let records = self.records();
            let resumed = records.iter().filter(|it| it["event"] == "resumed");
            let missing: Vec<_> = resumed.filter_map(|it| it["unwritten"].as_u64()).collect();
            if missing == [unwritten] && self.audit.is_writable() {
                return records;
            }
            assert!(Instant::now() < deadline, "{records:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The records in the file, whose chain is held against its rules.
    fn records(&self) -> Vec<Value> {
        let text = fs::read_to_string(options(&self.folder).path).unwrap();
        let mut verifier = Verifier::after(Head::START);
        let read = |line: &str| {
            verifier.next(line.as_bytes()).unwrap();
            serde_json::from_str(line).unwrap()
        };
        text.lines().map(read).collect()
    }
}

fn syncs(metrics: &Metrics) -> u64 {
    let text = metrics.text(None);
    let name = "agent_gateway_audit_syncs_total ";
    let counted = text.lines().find_map(|line| line.strip_prefix(name));
    // The service's start is the first.
    counted.unwrap().parse::<u64>().unwrap() - 1
}

fn deny() -> Record<'static> {
    Record::new(now(), Event::Decision(Outcome::Deny, 403))
}

#[tokio::test]
async fn a_record_is_on_disk_when_it_counts_as_written() {
    let scene = Scene::start();
    for number in 0..5 {
        assert_eq!(scene.audit.record(&deny()).await, Ok(()));
        assert_eq!(scene.syncs(), number as u64 + 1);
        let records = scene.records();
        assert_eq!(records.len(), number + 2);
        assert_eq!(records[0]["event"], "started");
        assert_eq!(records[number + 1]["decision"], "deny");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_many_at_once_are_one_chain() {
    let scene = Scene::start();
    let recorders = (0..8).map(|_| {
        let audit = scene.audit.clone();
        tokio::spawn(async move {
            for _ in 0..50 {
                audit.record(&deny()).await.unwrap();
            }
        })
    });
    for recorder in recorders.collect::<Vec<_>>() {
        recorder.await.unwrap();
    }
    assert_eq!(scene.records().len(), 401);
}

/// As while the disk is stuck: the writer runs later.
#[tokio::test]
async fn a_full_queue_refuses_and_what_it_refused_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let (log, writer) = Audit::begin(&options(&folder), Metrics::default()).unwrap();
    let audit = Audit(Some(Arc::clone(&log)));
    assert!(audit.is_writable());
    let waiting: Vec<_> = (0..8).map(|_| log.take(&deny()).unwrap()).collect();
    assert!(!audit.is_writable());
    for _ in 0..2 {
        assert_eq!(audit.record(&deny()).await, Err(Unwritable));
    }
    let task = tokio::spawn(writer::run(Arc::clone(&log), writer, Wakers::default()));
    for mut written in waiting {
        let written = written.wait_for(Option::is_some).await.unwrap();
        assert_eq!(*written, Some(true));
    }
    assert!(audit.is_writable());
    assert_eq!(audit.record(&deny()).await, Ok(()));
    let scene = Scene {
        audit,
        writer: AuditWriter { log, task },
        folder,
    };
    let records = scene.records();
    let events: Vec<_> = records.iter().map(|record| &record["event"]).collect();
    let mut expected = vec!["decision"; 11];
    (expected[0], expected[9]) = ("started", "resumed");
    assert_eq!(events, expected);
    assert_eq!(records[9]["unwritten"], 2);
}

/// So long that the disk gets nothing by itself.
const LATER: Option<Duration> = Some(Duration::from_hours(1));

#[tokio::test]
async fn after_the_end_nothing_is_taken_and_all_that_was_taken_is_on_disk() {
    for (delay, expected) in [(None, 2), (LATER, 1)] {
        let scene = Scene::start_with(delay, 0);
        let Scene {
            audit,
            writer,
            folder,
        } = scene;
        assert_eq!(audit.record(&deny()).await, Ok(()));
        let log = Arc::clone(&writer.log);
        let waiting: Vec<_> = (0..4).map(|_| log.take(&deny()).unwrap()).collect();
        writer.close().await;
        for written in waiting {
            assert_eq!(*written.borrow(), Some(true));
        }
        assert_eq!(audit.record(&deny()).await, Err(Unwritable));
        assert!(!audit.is_writable());
        let text = fs::read_to_string(options(&folder).path).unwrap();
        assert_eq!(text.lines().count(), 6);
        // And once more at the very end, whatever is left.
        assert_eq!(syncs(&log.metrics), expected + u64::from(delay.is_none()));
    }
}

#[tokio::test]
async fn what_the_disk_did_not_take_is_denied_and_not_in_the_file() {
    // Twice more while it is looked whether it works again.
    let scene = Scene::start_with(None, 3);
    assert_eq!(scene.audit.record(&deny()).await, Err(Unwritable));
    assert!(!scene.audit.is_writable());
    let records = scene.resumed(1).await;
    assert_eq!(records.len(), 2);
    assert_eq!(scene.audit.record(&deny()).await, Ok(()));
    assert_eq!(scene.records().len(), 3);
}

#[tokio::test]
async fn nor_is_it_in_the_file_after_a_stop_at_that_moment() {
    let scene = Scene::start_with(None, 1);
    // The writer waits then, and after the failure it waits again, until the stop.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(scene.audit.record(&deny()).await, Err(Unwritable));
    scene.writer.close().await;
    let text = fs::read_to_string(options(&scene.folder).path).unwrap();
    assert!(!text.contains("\"decision\""), "{text}");
}

#[tokio::test]
async fn what_was_answered_before_the_disk_failed_stays() {
    let scene = Scene::start_with(Some(Duration::from_millis(1)), 3);
    assert_eq!(scene.audit.record(&deny()).await, Ok(()));
    let records = scene.resumed(0).await;
    let events: Vec<_> = records.iter().map(|record| &record["event"]).collect();
    assert_eq!(events, ["started", "decision", "resumed"]);
    assert_eq!(scene.audit.record(&deny()).await, Ok(()));
    assert_eq!(scene.records().len(), 4);
}

#[tokio::test]
async fn what_is_off_takes_everything() {
    let audit = Audit::off();
    assert_eq!(audit.record(&deny()).await, Ok(()));
    assert!(audit.is_writable() && !audit.is_on());
}
