//! The file that holds a chain: opened by one process alone, and whole after every crash.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ::audit::{Head, MAX_LINE, head_of};

/// Only the service's own user reads it, until its operator says otherwise.
const MODE: u32 = 0o600;

/// At most so many bytes of a file's end are not known to be on disk: what is written before the
/// disk is waited for, and a batch.
const MAX_LOST: u64 = 16 << 20;

/// Why there is no audit.
#[derive(Debug, thiserror::Error)]
pub enum AuditFileError {
    /// A live process has it.
    #[error("another process writes {}", .0.display())]
    InUse(PathBuf),
    /// What is there doesn't end with a record, or is no file.
    #[error("{} is there, and does not end with an audit record", .0.display())]
    NotAnAudit(PathBuf),
    /// The operating system refuses.
    #[error("{} can't be written: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

impl AuditFileError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self::Io { path, source }
    }
}

/// The file, and how much of it is known to be on disk.
#[derive(Debug)]
pub(super) struct AuditFile {
    path: PathBuf,
    file: File,
    max_bytes: u64,
    /// Up to here all is on disk, and whole.
    len: u64,
    /// Whole lines that follow and count, though they may not be on disk yet.
    tail: Vec<u8>,
    end: End,
    /// The last record of both.
    head: Head,
    /// The number of the first record in this file, once there is one.
    first: Option<u64>,
    /// How many times the disk is to fail.
    #[cfg(test)]
    pub(super) failing_syncs: u32,
    /// Locked for as long as this process writes; the file itself is replaced as it grows.
    _lock: File,
}

/// What the file's end is known to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// That of the tail.
    Whole,
    /// After the tail there may be the part of a record, which must go first.
    Torn,
    /// The tail may be lost, for the kernel tells only once of what it could not write.
    Lost,
}

impl AuditFile {
    /// Opens or creates it; also says how many bytes of a torn last line were removed.
    pub(super) fn open(path: &Path, max_bytes: u64) -> Result<(Self, u64), AuditFileError> {
        let failed = |source| AuditFileError::io(path, source);
        let lock = lock(path)?;
        let file = open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(AuditFileError::NotAnAudit(path.to_owned()));
        }
        let (head, len) = match found.len() {
            0 => (None, 0),
            len => before_zeros(&file, len)
                .and_then(|len| last_record(&file, len))
                .map_err(failed)?
                .ok_or_else(|| AuditFileError::NotAnAudit(path.to_owned()))?,
        };
        let first = match head {
            Some(_) => first_record(&file).map_err(failed)?,
            None => None,
        };
        let head = match head {
            Some(head) => head,
            // A crash between the two steps of a rotation.
            None => last_rotated(path)?.unwrap_or(Head::START),
        };
        let mut opened = Self {
            path: path.to_owned(),
            file,
            max_bytes,
            len,
            tail: Vec::new(),
            end: if len < found.len() {
                End::Torn
            } else {
                End::Whole
            },
            head,
            first,
            #[cfg(test)]
            failing_syncs: 0,
            _lock: lock,
        };
        opened.keep_lines_of_end(found.len()).map_err(failed)?;
        opened.mend().map_err(failed)?;
        sync_folder(path).map_err(failed)?;
        Ok((opened, found.len() - len))
    }

    /// Copies what is about to be removed, up to `end`, if there are whole lines in it: behind a hole
    /// that is no accident of ours, those were records.
    fn keep_lines_of_end(&self, end: u64) -> io::Result<()> {
        let mut removed = vec![0; usize::try_from(end - self.len).unwrap_or(0)];
        self.file.read_exact_at(&mut removed, self.len)?;
        if !removed.contains(&b'\n') {
            return Ok(());
        }
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let kept = format!("{name}.torn-{:016}", self.head.seq + 1);
        let kept = open(&self.path.with_file_name(kept))?;
        kept.set_len(0)?;
        kept.write_all_at(&removed, 0)?;
        kept.sync_all()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The last record.
    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// Bytes that may not be on disk yet.
    pub(super) fn unsynced(&self) -> usize {
        self.tail.len()
    }

    /// Whether so many bytes more can be appended without waiting for the disk.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let fits = self.len_with(bytes) <= self.max_bytes;
        self.end == End::Whole && fits && self.is_there().unwrap_or(false)
    }

    /// Whether the file is still the one that was written. If somebody removed it, or cut it off,
    /// what is written now would be nowhere, or behind a hole.
    fn is_there(&self) -> io::Result<bool> {
        let found = self.file.metadata()?;
        Ok(found.nlink() > 0 && found.len() == self.len_with(0))
    }

    fn len_with(&self, bytes: usize) -> u64 {
        self.len + (self.tail.len() + bytes) as u64
    }

    /// Appends lines, the last of which is `head`. They outlive this process, and are on disk after
    /// the next [`sync`](Self::sync). If this fails, nothing of them counts.
    pub(super) fn append(&mut self, lines: &[u8], head: Head) -> io::Result<()> {
        self.write(lines)?;
        self.tail.extend_from_slice(lines);
        self.count(head);
        Ok(())
    }

    /// As both at once; but if it fails, nothing of the lines counts.
    pub(super) fn append_synced(&mut self, lines: &[u8], head: Head) -> io::Result<()> {
        self.write(lines)?;
        self.end = End::Lost;
        self.sync_data()?;
        self.on_disk(lines.len());
        self.count(head);
        Ok(())
    }

    /// Returns when all that was appended is on disk. If that fails, it counts all the same, and is
    /// written once more before anything else is.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.mend()?;
        if !self.tail.is_empty() {
            self.end = End::Lost;
            self.sync_data()?;
            self.on_disk(0);
        }
        Ok(())
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.mend()?;
        if let (true, Some(first)) = (self.len_with(lines.len()) > self.max_bytes, self.first) {
            self.sync()?;
            self.rotate(first)?;
        }
        if !self.is_there()? {
            self.begin()?;
        }
        self.end = End::Torn;
        self.file.write_all_at(lines, self.len_with(0))?;
        self.end = End::Whole;
        Ok(())
    }

    /// The tail is on disk, and so many bytes after it.
    fn on_disk(&mut self, more: usize) {
        self.len = self.len_with(more);
        self.tail.clear();
        self.end = End::Whole;
    }

    fn count(&mut self, head: Head) {
        self.first.get_or_insert(self.head.seq + 1);
        self.head = head;
    }

    /// Has the file end with the tail.
    fn mend(&mut self) -> io::Result<()> {
        if self.end == End::Whole {
            return Ok(());
        }
        if self.end == End::Lost {
            // In place: what may still be there is never gone.
            self.file.write_all_at(&self.tail, self.len)?;
        }
        self.file.set_len(self.len_with(0))?;
        // If this fails, that may be the tail's.
        self.end = End::Lost;
        self.sync_data()?;
        self.on_disk(0);
        Ok(())
    }

    fn sync_data(&mut self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(left) = self.failing_syncs.checked_sub(1) {
            self.failing_syncs = left;
            return Err(io::Error::other("as if the disk failed"));
        }
        self.file.sync_data()
    }

    /// Puts the file aside, under a name that says with which record it begins.
    fn rotate(&mut self, first: u64) -> io::Result<()> {
        let aside = rotated(&self.path, first);
        if aside.try_exists()? {
            let what = format!("{} is there already", aside.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        fs::rename(&self.path, &aside)?;
        self.begin().or_else(|error| {
            fs::rename(&aside, &self.path)?;
            Err(error)
        })
    }

    /// Goes on in the file that is, or then is, at the path.
    fn begin(&mut self) -> io::Result<()> {
        let file = open(&self.path)?;
        let (len, first) = (file.metadata()?.len(), first_record(&file)?);
        (self.file, self.len, self.first) = (file, len, first);
        self.tail.clear();
        sync_folder(&self.path)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .mode(MODE)
        .open(path)
}

/// A new name in a folder is on disk when the folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// The lock has a file of its own, hidden, and out of the way of `audit*.jsonl`.
fn lock(path: &Path) -> Result<File, AuditFileError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let lock = folder(path).join(format!(".{name}.lock"));
    let failed = |source| AuditFileError::io(&lock, source);
    let file = open(&lock).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AuditFileError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// `audit-0000000000001234.jsonl` for `audit.jsonl`: such names sort in the order of the chain, and
/// before the file that is being written.
fn rotated(path: &Path, first: u64) -> PathBuf {
    let (stem, extension) = name(path);
    path.with_file_name(format!("{stem}-{first:016}{extension}"))
}

/// The name without its extension, and that with its dot.
fn name(path: &Path) -> (String, String) {
    let text =
        |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let extension = text(path.extension());
    let dot = if extension.is_empty() { "" } else { "." };
    (text(path.file_stem()), format!("{dot}{extension}"))
}

/// The last record of the last file that was put aside.
fn last_rotated(path: &Path) -> Result<Option<Head>, AuditFileError> {
    let failed = |source| AuditFileError::io(path, source);
    let (stem, extension) = name(path);
    let mut last = None;
    for entry in fs::read_dir(folder(path)).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|name| {
            let digits = name.strip_prefix(&stem)?.strip_prefix('-')?;
            digits.strip_suffix(&extension)?.parse::<u64>().ok()
        });
        last = last.max(number);
    }
    let Some(first) = last else {
        return Ok(None);
    };
    let path = rotated(path, first);
    let failed = |source| AuditFileError::io(&path, source);
    let file = File::open(&path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    match last_record(&file, len).map_err(failed)? {
        Some((Some(head), whole)) if whole == len => Ok(Some(head)),
        _ => Err(AuditFileError::NotAnAudit(path)),
    }
}

/// Up to where there are lines: less than all, if a crash of the machine left zeros where data should
/// be. From the line in which they begin nothing can go on, whatever comes after them.
fn before_zeros(file: &File, len: u64) -> io::Result<u64> {
    let start = len.saturating_sub(MAX_LOST);
    let mut end = vec![0; usize::try_from(len - start).unwrap_or(0)];
    file.read_exact_at(&mut end, start)?;
    let Some(zeros) = end.iter().position(|byte| *byte == 0) else {
        return Ok(len);
    };
    end.truncate(zeros);
    let line = end.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
    Ok(match line {
        Some(line) => start + line as u64,
        None => start + zeros as u64,
    })
}

/// The last whole record of a file that is not empty, and where it ends; `None` if what is there
/// can't be the end of a chain. What a crash leaves behind it is the beginning of a line, or zeros.
fn last_record(file: &File, len: u64) -> io::Result<Option<(Option<Head>, u64)>> {
    // A whole line, and less than another.
    let start = len.saturating_sub(2 * MAX_LINE as u64);
    let mut end = vec![0; usize::try_from(len - start).unwrap_or(0)];
    file.read_exact_at(&mut end, start)?;
    let whole = end.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
    let (lines, torn) = end.split_at(whole.unwrap_or(0));
    let is_beginning = torn.starts_with(b"{\"") || b"{\"".starts_with(torn);
    if !is_beginning && torn.iter().any(|byte| *byte != 0) {
        return Ok(None);
    }
    let Some(lines) = lines.strip_suffix(b"\n") else {
        // No line at all: the very first record was not completed.
        return Ok((start == 0).then_some((None, 0)));
    };
    let line = lines.rsplit(|byte| *byte == b'\n').next().unwrap_or(lines);
    let head = head_of(line).ok();
    Ok(head.map(|head| (Some(head), len - torn.len() as u64)))
}

/// The number of the first record of a file.
fn first_record(file: &File) -> io::Result<Option<u64>> {
    let mut start = vec![0; MAX_LINE + 1];
    let length = file.read_at(&mut start, 0)?;
    start.truncate(length);
    let line = start.split(|byte| *byte == b'\n').next();
    Ok(line
        .and_then(|line| head_of(line).ok())
        .map(|head| head.seq))
}

#[cfg(test)]
mod tests;
