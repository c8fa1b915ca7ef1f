//! The audit: a record of each decision, on disk before the decision is answered, or soon after.
//!
//! Whoever decides puts its record into a queue and waits; one task seals all that came meanwhile
//! into the chain, has it written, and lets those who wait go on. What can't be written is denied,
//! and said: `/readyz`, a metric, and a record once writing is possible again.

mod access_log;
mod ends;
mod file;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::audit::{Draft, Event, Record, Target};
use permission::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::connections::Wakers;
use crate::metrics::Metrics;
use crate::tunnels::Tunnel;

pub use access_log::AccessLog;
pub(crate) use ends::AwaitedEnd;
use ends::{End, Ends};
pub use file::AuditFileError;
use writer::{RETRY, Writer};

/// How long Envoy's word on a tunnel's end is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How decisions are recorded.
#[derive(Debug, Clone)]
pub struct AuditOptions {
    /// The file that records are appended to.
    pub path: PathBuf,
    /// Whether each line also goes to stdout.
    pub stdout: bool,
    /// The file's size in bytes at which a new one is begun.
    pub max_file_bytes: u64,
    /// The name that this replica's records bear.
    pub replica: String,
    /// Most records that wait to be written; further decisions are denied.
    pub max_waiting: usize,
    /// How long after its decision was answered the disk may get a record that until then only the
    /// operating system has; `None`: the disk has it before.
    pub sync_delay: Option<Duration>,
}

/// A record that could not be written: its decision must not be acted upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unwritable;

/// Where records go; clones write to the same chain.
#[derive(Debug, Clone)]
pub struct Audit(Option<Arc<Log>>);

/// The task that writes. It ends when told to, after what it was given.
#[derive(Debug)]
#[must_use]
pub struct AuditWriter {
    log: Arc<Log>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Log {
    queue: Mutex<Queue>,
    /// Told when the queue is no longer empty, or closing, or something has to be on disk.
    told: Notify,
    ends: Ends,
    replica: String,
    max_waiting: usize,
    metrics: Metrics,
}

/// What is not yet on its way to the disk. Locked only to add a record, and to take what is there.
#[derive(Debug)]
struct Queue {
    batch: Batch,
    /// Records that could not be taken or kept, of which none yet says so.
    unwritten: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Writable,
    /// Nothing is taken until the file can be written again.
    Broken,
    Closing,
}

/// Becomes whether a batch was written.
type Written = watch::Sender<Option<bool>>;

/// Records that are written at once.
#[derive(Debug)]
struct Batch {
    records: Vec<Draft>,
    /// How many missing records one more tells of.
    unwritten: Option<u64>,
    written: Written,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            records: Vec::new(),
            unwritten: None,
            written: watch::Sender::new(None),
        }
    }
}

impl Queue {
    /// What there is, and how many are missing.
    fn take(&mut self) -> Batch {
        Batch {
            unwritten: Some(std::mem::take(&mut self.unwritten)).filter(|missing| *missing > 0),
            ..std::mem::take(&mut self.batch)
        }
    }
}

impl Audit {
    /// Records nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// Opens the file, goes on with the chain that is in it, and records that. Needs a tokio
    /// runtime, on which `wakers` are woken when what they wait for is written.
    pub(crate) fn open(
        options: &AuditOptions,
        metrics: Metrics,
        wakers: Wakers,
    ) -> Result<(Self, AuditWriter), AuditFileError> {
        let (log, writer) = Self::begin(options, metrics)?;
        let task = tokio::spawn(writer::run(Arc::clone(&log), writer, wakers));
        let audit = Self(Some(Arc::clone(&log)));
        Ok((audit, AuditWriter { log, task }))
    }

    /// What can be recorded to, and what is yet to be run.
    fn begin(
        options: &AuditOptions,
        metrics: Metrics,
    ) -> Result<(Arc<Log>, Writer), AuditFileError> {
        let writer = Writer::open(options, metrics.clone())?;
        let log = Log {
            queue: Mutex::new(Queue {
                batch: Batch::default(),
                unwritten: 0,
                state: State::Writable,
            }),
            told: Notify::new(),
            ends: Ends::default(),
            replica: options.replica.clone(),
            max_waiting: options.max_waiting,
            metrics,
        };
        Ok((Arc::new(log), writer))
    }

    /// Whether anything is recorded at all.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether decisions can be recorded now: the file can be written, and the queue isn't full.
    pub fn is_writable(&self) -> bool {
        let Some(log) = &self.0 else {
            return true;
        };
        log.takes(&log.queue())
    }

    /// Returns when the record is written: on disk, unless a delay is allowed. Nothing may be
    /// answered that is not.
    pub async fn record(&self, record: &Record<'_>) -> Result<(), Unwritable> {
        let Some(log) = &self.0 else {
            return Ok(());
        };
        let mut written = log.take(record)?;
        match written.wait_for(Option::is_some).await {
            Ok(written) if *written == Some(true) => Ok(()),
            _ => Err(Unwritable),
        }
    }
}

/// A tunnel that ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// What is known of it.
    pub(crate) tunnel: Tunnel,
    /// When it ended.
    pub(crate) at: Timestamp,
    /// How long it was open.
    pub(crate) open: Duration,
    /// Why this service cut it, if it did.
    pub(crate) cut: Option<&'static str>,
}

impl Audit {
    /// A place for Envoy's word on the end of a tunnel; none where nothing is recorded.
    pub(crate) fn await_end(&self, decision_id: &str) -> Option<AwaitedEnd> {
        let log = self.0.as_ref()?;
        Some(log.ends.expect(decision_id))
    }

    fn awaits_ends(&self) -> bool {
        self.0.as_ref().is_some_and(|log| !log.ends.is_empty())
    }

    fn ended(&self, decision_id: &str, end: End) {
        if let Some(log) = &self.0 {
            log.ends.tell(decision_id, end);
        }
    }

    /// Records a tunnel's end, when Envoy has told of it or did not in time, and as soon as it can be
    /// written: while it can't, no tunnel is opened either, so not many of these wait.
    pub(crate) async fn record_end(&self, ended: Ended, awaited: AwaitedEnd) {
        let end = awaited.told(PATIENCE).await;
        let told = end.map_or("end_not_reported", |end| end.reason);
        let mut reason = Vec::from_iter(ended.cut);
        if end.is_none() || ended.cut.is_none() {
            reason.push(told);
        }
        let Tunnel {
            id,
            request,
            permission_id,
            ..
        } = &ended.tunnel;
        let event = Event::TunnelEnd {
            duration_ms: u64::try_from(ended.open.as_millis()).unwrap_or(u64::MAX),
            traffic: end.map(|end| end.traffic),
        };
        let record = Record {
            target: Target::Tunnel(Some(&request.destination)),
            decision_id: Some(id.as_str()),
            identity: Some(&request.identity),
            spki: Some(&request.spki),
            permission_id: Some(permission_id.as_str()),
            reason: &reason,
            ..Record::new(ended.at, event)
        };
        while !self.is_writable() || self.record(&record).await.is_err() {
            tokio::time::sleep(RETRY).await;
        }
    }
}

impl Log {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn takes(&self, queue: &Queue) -> bool {
        queue.state == State::Writable && queue.batch.records.len() < self.max_waiting
    }

    /// Takes the record, and returns where it will be said whether it was written.
    fn take(&self, record: &Record<'_>) -> Result<watch::Receiver<Option<bool>>, Unwritable> {
        let draft = Draft::new(record, &self.replica);
        let mut queue = self.queue();
        if !self.takes(&queue) {
            queue.unwritten += 1;
            drop(queue);
            self.metrics.audit_unwritten(1);
            return Err(Unwritable);
        }
        queue.batch.records.push(draft);
        let written = queue.batch.written.subscribe();
        let is_first = queue.batch.records.len() == 1;
        drop(queue);
        if is_first {
            self.told.notify_one();
        }
        Ok(written)
    }
}

impl AuditWriter {
    /// Has what was recorded so far on disk, and ends. Nothing can be recorded afterwards.
    pub async fn close(self) {
        self.log.queue().state = State::Closing;
        self.log.told.notify_one();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the audit's writer had failed");
        }
    }
}

#[cfg(test)]
mod tests;
