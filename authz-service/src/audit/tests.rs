use std::fs;

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
        let folder = tempfile::tempdir().unwrap();
        let (audit, writer) =
            Audit::open(&options(&folder), Metrics::default(), Wakers::default()).unwrap();
        Self {
            audit,
            writer,
            folder,
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

fn deny() -> Record<'static> {
    Record::new(now(), Event::Decision(Outcome::Deny, 403))
}

#[tokio::test]
async fn a_record_is_in_the_file_when_it_counts_as_written() {
    let scene = Scene::start();
    for number in 0..5 {
        assert_eq!(scene.audit.record(&deny()).await, Ok(()));
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

#[tokio::test]
async fn after_the_end_nothing_is_taken_and_all_that_was_taken_is_there() {
    let scene = Scene::start();
    let audit = scene.audit.clone();
    assert_eq!(audit.record(&deny()).await, Ok(()));
    scene.writer.close().await;
    assert_eq!(audit.record(&deny()).await, Err(Unwritable));
    assert!(!audit.is_writable());
}

#[tokio::test]
async fn what_is_off_takes_everything() {
    let audit = Audit::off();
    assert_eq!(audit.record(&deny()).await, Ok(()));
    assert!(audit.is_writable() && !audit.is_on());
}
