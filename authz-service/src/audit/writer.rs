//! What takes records out of the queue, and has them in the file.
//!
//! Disks are waited for on a thread apart. To write what the disk gets later is done at once where
//! it is: that is a copy in memory, and to have another thread do it would cost ten times as much.

use std::future::pending;
use std::io::{self, Write as _};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use ::audit::{Chain, Draft, Event, Head, Record};
use tokio::task::{JoinHandle, spawn_blocking, yield_now};
use tokio::time::{Instant, sleep_until, timeout};

use super::file::AuditFile;
use super::{AuditFileError, AuditOptions, Batch, Log, State};
use crate::check::now;
use crate::connections::Wakers;
use crate::metrics::Metrics;

/// How long until writing is tried again after it failed.
pub(super) const RETRY: Duration = Duration::from_millis(250);

/// Bytes of records that are not on disk yet, of which as many are held in memory: soon after, the
/// disk gets them, however long they might still wait.
const MAX_UNSYNCED: usize = 1 << 20;

/// The file, and what is to be in it next.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) file: AuditFile,
    /// Kept so that it is not allocated each time.
    lines: Vec<u8>,
    /// The last of them.
    head: Head,
    stdout: bool,
    /// What stdout has not taken yet.
    copying: Option<JoinHandle<io::Result<()>>>,
    sync_delay: Option<Duration>,
    /// When all that was written has to be on disk.
    due: Option<Instant>,
    metrics: Metrics,
}

/// What is to be done next.
enum Next {
    Write(Batch),
    Sync,
    End,
}

/// Says that nothing is taken any more, however the writer ended.
struct CloseAtEnd(Arc<Log>);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.state = State::Closing;
        let nobody_writes = queue.take();
        nobody_writes.written.send_replace(Some(false));
    }
}

/// Writes what is recorded, until the end.
pub(super) async fn run(log: Arc<Log>, mut writer: Writer, wakers: Wakers) {
    let close_at_end = CloseAtEnd(Arc::clone(&log));
    loop {
        let (batch, written);
        match writer.next(&log).await {
            Next::Write(taken) => {
                writer.seal(&taken.records, taken.unwritten, &log.replica);
                (writer, written) = writer.write().await;
                if written.is_ok() {
                    writer.metrics.audit_written(taken.records.len() as u64);
                    taken.written.send_replace(Some(true));
                    wakers.wake();
                    writer.wake_when_due(&log);
                    writer.copy();
                }
                batch = taken;
            }
            Next::Sync => {
                (writer, written) = writer.sync().await;
                batch = Batch::default();
            }
            Next::End => break,
        }
        if let Err(error) = written {
            tracing::error!(
                path = %writer.file.path().display(),
                %error,
                "the audit can't be written: every request is denied until it can"
            );
            log.fail(&batch);
            let recovered;
            (writer, recovered) = recover(&log, writer).await;
            if !recovered {
                break;
            }
            tracing::info!("the audit can be written again");
        }
    }
    let (mut writer, synced) = writer.sync().await;
    if let Err(error) = synced {
        let path = writer.file.path().display();
        tracing::error!(%path, %error, "the audit's last records may not be on disk");
    }
    writer.copied().await;
    drop(close_at_end);
}

/// Waits until the file can be written again: a record that says so is the proof. Returns whether
/// it can be, or the end came first.
async fn recover(log: &Log, mut writer: Writer) -> (Writer, bool) {
    loop {
        // The end does not wait.
        let _ = timeout(RETRY, log.told.notified()).await;
        let unwritten = {
            let mut queue = log.queue();
            if queue.state == State::Closing {
                return (writer, false);
            }
            std::mem::take(&mut queue.unwritten)
        };
        writer.seal(&[], Some(unwritten), &log.replica);
        let written;
        (writer, written) = writer.write_synced().await;
        if written.is_ok() {
            {
                let mut queue = log.queue();
                if queue.state == State::Broken {
                    queue.state = State::Writable;
                }
            }
            log.metrics.audit_broken(false);
            writer.copied().await;
            writer.copy();
            return (writer, true);
        }
        log.queue().unwritten += unwritten;
    }
}

impl Log {
    /// Lets go of what could not be written, and of all that came meanwhile.
    fn fail(&self, batch: &Batch) {
        let mut queue = self.queue();
        if queue.state == State::Writable {
            queue.state = State::Broken;
        }
        let later = queue.take();
        let lost = (batch.records.len() + later.records.len()) as u64;
        let told = batch.unwritten.unwrap_or(0) + later.unwritten.unwrap_or(0);
        queue.unwritten += lost + told;
        drop(queue);
        self.metrics.audit_broken(true);
        self.metrics.audit_unwritten(lost);
        batch.written.send_replace(Some(false));
        later.written.send_replace(Some(false));
    }
}

impl Writer {
    /// Opens the file, goes on with its chain, and records that.
    pub(super) fn open(options: &AuditOptions, metrics: Metrics) -> Result<Self, AuditFileError> {
        let (file, torn_bytes) = AuditFile::open(&options.path, options.max_file_bytes)?;
        let mut writer = Self {
            head: file.head(),
            file,
            lines: Vec::new(),
            stdout: options.stdout,
            sync_delay: options.sync_delay,
            due: None,
            copying: None,
            metrics,
        };
        let started = Record::new(now(), Event::Started { torn_bytes });
        writer.seal(
            &[Draft::new(&started, &options.replica)],
            None,
            &options.replica,
        );
        let appended = writer.file.append_synced(&writer.lines, writer.head);
        appended.map_err(|source| AuditFileError::io(&options.path, source))?;
        writer.metrics.audit_synced();
        writer.copy();
        Ok(writer)
    }

    /// Waits for records, or until what was written has to be on disk.
    async fn next(&mut self, log: &Log) -> Next {
        loop {
            // Those who are about to record something do so first.
            yield_now().await;
            if self.due.is_some_and(|due| due <= Instant::now()) {
                return Next::Sync;
            }
            if self.copying.is_some() {
                // The disk does not wait for stdout, which may hold up the end as well.
                if self.due.is_some() && log.queue().state == State::Closing {
                    return Next::Sync;
                }
                tokio::select! {
                    () = self.copied() => {}
                    () = log.told.notified() => {}
                }
                continue;
            }
            {
                let mut queue = log.queue();
                if !queue.batch.records.is_empty() {
                    return Next::Write(queue.take());
                }
                if queue.state == State::Closing {
                    return Next::End;
                }
            }
            log.told.notified().await;
        }
    }

    /// Makes these the next records; and one more if it is to be told how many are missing.
    fn seal(&mut self, records: &[Draft], unwritten: Option<u64>, replica: &str) {
        let mut chain = Chain::after(self.file.head());
        self.lines.clear();
        for draft in records {
            chain.seal(draft, &mut self.lines);
        }
        if let Some(unwritten) = unwritten {
            let resumed = Record::new(now(), Event::Resumed { unwritten });
            chain.seal(&Draft::new(&resumed, replica), &mut self.lines);
        }
        self.head = chain.head();
    }

    /// Has what was sealed in the file, as durably as is asked for.
    async fn write(mut self) -> (Self, io::Result<()>) {
        if self.sync_delay.is_none() {
            return self.write_synced().await;
        }
        let written;
        if self.file.has_room(self.lines.len()) {
            written = self.file.append(&self.lines, self.head);
        } else {
            (self, written) = self.apart(|it| it.file.append(&it.lines, it.head)).await;
        }
        (self, written)
    }

    /// After something was written: says when it has to be on disk, and has the writer woken then.
    /// That is one timer for all that comes meanwhile.
    fn wake_when_due(&mut self, log: &Arc<Log>) {
        let now = Instant::now();
        match (self.sync_delay, self.file.unsynced()) {
            (Some(_), MAX_UNSYNCED..) => self.due = Some(now),
            (Some(delay), 1..) if self.due.is_none() => {
                let due = now + delay;
                self.due = Some(due);
                let log = Arc::clone(log);
                tokio::spawn(async move {
                    sleep_until(due).await;
                    log.told.notify_one();
                });
            }
            _ => {}
        }
    }

    /// Has what was sealed on disk, with all before it.
    async fn write_synced(self) -> (Self, io::Result<()>) {
        self.synced(|it| it.file.append_synced(&it.lines, it.head))
            .await
    }

    /// Has all that was written on disk.
    async fn sync(self) -> (Self, io::Result<()>) {
        self.synced(|it| it.file.sync()).await
    }

    async fn synced(
        mut self,
        work: impl FnOnce(&mut Self) -> io::Result<()> + Send + 'static,
    ) -> (Self, io::Result<()>) {
        self.due = None;
        let (writer, synced) = self.apart(work).await;
        if synced.is_ok() {
            writer.metrics.audit_synced();
        }
        (writer, synced)
    }

    /// Begins the copy on stdout; the file is what counts.
    fn copy(&mut self) {
        if self.stdout {
            let lines = std::mem::take(&mut self.lines);
            self.copying = Some(spawn_blocking(move || {
                let mut stdout = io::stdout().lock();
                stdout.write_all(&lines)?;
                stdout.flush()
            }));
        }
    }

    /// Waits until stdout has it. May be dropped, and called again.
    async fn copied(&mut self) {
        if let Some(copying) = &mut self.copying {
            let copied = copying.await;
            self.copying = None;
            if !matches!(copied, Ok(Ok(()))) {
                self.metrics.audit_not_copied();
            }
        }
    }

    /// Does something that may take long on a thread for such things.
    async fn apart(
        mut self,
        work: impl FnOnce(&mut Self) -> io::Result<()> + Send + 'static,
    ) -> (Self, io::Result<()>) {
        let done = spawn_blocking(move || {
            let done = work(&mut self);
            (self, done)
        });
        match done.await {
            Ok(done) => done,
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime ends, and this with it.
                Err(_) => pending().await,
            },
        }
    }
}
