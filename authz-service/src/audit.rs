//! The audit: a record of each decision, on disk before the decision is answered.
//!
//! Whoever decides puts its record into a queue and waits; one thread seals all that came meanwhile
//! into the chain, writes it, makes it durable, and lets those who wait go on. What can't be written
//! is denied, and said: `/readyz`, a metric, and a record once writing is possible again.

mod access_log;
mod ends;
mod file;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ::audit::{Chain, Draft, Event, Record, Target};
use permission::Timestamp;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use crate::check::now;
use crate::connections::Wakers;
use crate::metrics::Metrics;
use crate::tunnels::Tunnel;

pub use access_log::AccessLog;
pub(crate) use ends::AwaitedEnd;
use ends::{End, Ends};
use file::AuditFile;
pub use file::AuditFileError;

/// How long until writing is tried again after it failed.
const RETRY: Duration = Duration::from_millis(250);

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
}

/// A record that could not be written: its decision must not be acted upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unwritable;

/// Where records go; clones write to the same chain.
#[derive(Debug, Clone)]
pub struct Audit(Option<Arc<Log>>);

/// The thread that writes. It ends when told to, after what it was given.
#[derive(Debug)]
#[must_use]
pub struct AuditWriter {
    log: Arc<Log>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Log {
    queue: Mutex<Queue>,
    /// Told when the queue is no longer empty, or closing.
    filled: Condvar,
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
    unwritten: u64,
    written: Written,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            records: Vec::new(),
            unwritten: 0,
            written: watch::Sender::new(None),
        }
    }
}

impl Queue {
    /// What there is, and how many are missing.
    fn take(&mut self) -> Batch {
        Batch {
            unwritten: std::mem::take(&mut self.unwritten),
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
        let (log, writer, written) = Self::begin(options, metrics)?;
        tokio::spawn(tell(written, wakers));
        let thread = thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| AuditFileError::io(&options.path, source))?;
        let audit = Self(Some(Arc::clone(&log)));
        Ok((audit, AuditWriter { log, thread }))
    }

    /// What can be recorded to, and what is yet to be run: what writes it, and what tells of it.
    fn begin(
        options: &AuditOptions,
        metrics: Metrics,
    ) -> Result<(Arc<Log>, Writer, UnboundedReceiver<Written>), AuditFileError> {
        let (mut file, torn_bytes) = AuditFile::open(&options.path, options.max_file_bytes)?;
        let mut chain = Chain::after(file.head());
        let started = Record::new(now(), Event::Started { torn_bytes });
        let mut line = Vec::new();
        chain.seal(&Draft::new(&started, &options.replica), &mut line);
        file.append(&line, chain.head())
            .map_err(|source| AuditFileError::io(&options.path, source))?;
        let log = Arc::new(Log {
            queue: Mutex::new(Queue {
                batch: Batch::default(),
                unwritten: 0,
                state: State::Writable,
            }),
            filled: Condvar::new(),
            ends: Ends::default(),
            replica: options.replica.clone(),
            max_waiting: options.max_waiting,
            metrics,
        });
        let (wrote, written) = unbounded_channel();
        let writer = Writer {
            log: Arc::clone(&log),
            wrote,
            file,
            lines: line,
            stdout: options.stdout,
        };
        writer.copy(&writer.lines);
        Ok((log, writer, written))
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

    /// Returns when the record is on disk. Nothing may be answered that is not.
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
            self.filled.notify_one();
        }
        Ok(written)
    }
}

impl AuditWriter {
    /// Writes what was recorded so far, and ends. Nothing can be recorded afterwards.
    pub fn close(self) {
        self.log.queue().state = State::Closing;
        self.log.filled.notify_one();
        if self.thread.join().is_err() {
            tracing::error!("the audit's writer had failed");
        }
    }
}

/// Lets those go on whose records were written. Woken from the writer's thread, each of them would
/// cost a system call.
async fn tell(mut written: UnboundedReceiver<Written>, wakers: Wakers) {
    while let Some(written) = written.recv().await {
        written.send_replace(Some(true));
        wakers.wake();
    }
}

/// What the thread works with.
struct Writer {
    log: Arc<Log>,
    /// As long as what waits to be written is bounded, so is this.
    wrote: UnboundedSender<Written>,
    file: AuditFile,
    /// What was appended last; kept so that it is not allocated each time.
    lines: Vec<u8>,
    stdout: bool,
}

impl Writer {
    fn run(mut self) {
        while let Some(batch) = self.next() {
            match self.append(&batch) {
                Ok(()) => {
                    let records = batch.records.len() as u64;
                    self.log.metrics.audit_written(records);
                    let _ = self.wrote.send(batch.written);
                    self.copy(&self.lines);
                }
                Err(error) => {
                    tracing::error!(
                        path = %self.file.path().display(),
                        %error,
                        "the audit can't be written: every request is denied until it can"
                    );
                    self.fail(&batch);
                    if !self.recover() {
                        return;
                    }
                    tracing::info!("the audit can be written again");
                }
            }
        }
    }

    /// Waits for records; `None` at the end.
    fn next(&self) -> Option<Batch> {
        let mut queue = self.log.queue();
        loop {
            if !queue.batch.records.is_empty() {
                return Some(queue.take());
            }
            if queue.state == State::Closing {
                return None;
            }
            let filled = self.log.filled.wait(queue);
            queue = filled.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Seals the records on top of the last one that is on disk, and has them there.
    fn append(&mut self, batch: &Batch) -> io::Result<()> {
        let mut chain = Chain::after(self.file.head());
        self.lines.clear();
        for draft in &batch.records {
            chain.seal(draft, &mut self.lines);
        }
        if batch.unwritten > 0 {
            let unwritten = batch.unwritten;
            let resumed = Record::new(now(), Event::Resumed { unwritten });
            chain.seal(&Draft::new(&resumed, &self.log.replica), &mut self.lines);
        }
        self.file.append(&self.lines, chain.head())
    }

    /// Lets go of what could not be written, and of all that came meanwhile.
    fn fail(&self, batch: &Batch) {
        let mut queue = self.log.queue();
        if queue.state == State::Writable {
            queue.state = State::Broken;
        }
        let later = std::mem::take(&mut queue.batch);
        let lost = (batch.records.len() + later.records.len()) as u64;
        queue.unwritten += lost + batch.unwritten;
        drop(queue);
        self.log.metrics.audit_broken(true);
        self.log.metrics.audit_unwritten(lost);
        batch.written.send_replace(Some(false));
        later.written.send_replace(Some(false));
    }

    /// Waits until the file can be written again: a record that says so is the proof. Returns
    /// whether it can be, or the end came first.
    fn recover(&mut self) -> bool {
        loop {
            let queue = self.log.queue();
            if queue.state == State::Closing {
                return false;
            }
            let waited = self.log.filled.wait_timeout(queue, RETRY);
            let batch = waited.unwrap_or_else(PoisonError::into_inner).0.take();
            let appended = self.append(&batch);
            let mut queue = self.log.queue();
            if appended.is_ok() {
                if queue.state == State::Broken {
                    queue.state = State::Writable;
                }
                drop(queue);
                self.log.metrics.audit_broken(false);
                self.copy(&self.lines);
                return true;
            }
            queue.unwritten += batch.unwritten;
        }
    }

    /// The copy on stdout; the file is what counts.
    fn copy(&self, lines: &[u8]) {
        if !self.stdout {
            return;
        }
        let mut stdout = io::stdout().lock();
        let copied = stdout.write_all(lines).and_then(|()| stdout.flush());
        if copied.is_err() {
            self.log.metrics.audit_not_copied();
        }
    }
}

#[cfg(test)]
mod tests;
