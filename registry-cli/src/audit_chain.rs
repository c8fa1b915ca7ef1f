//! `audit`: holds files of the gateway's audit against their chain, and says where it stands.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use ::audit::{Fault, Head, MAX_LINE, Verifier, head_of};
use serde_json::{Value, json};

use crate::Outcome;
use crate::cli::{AuditCommand, AuditHeadArgs, AuditVerifyArgs};
use crate::failure::Failure;
use crate::terminal::{Report, escape, tell};

/// How many records between two looks at the progress.
const STEP: u64 = 10_000;

/// Runs the command.
pub(crate) fn run(command: &AuditCommand) -> Result<(Report, Outcome), Failure> {
    match command {
        AuditCommand::Verify(args) => verify(args),
        AuditCommand::Head(args) => head(args),
    }
}

/// The first record that is not what it should be, or the end if that is not where it should be.
struct Bad {
    file: PathBuf,
    line: u64,
    /// The last good record.
    after: u64,
    why: String,
}

/// A walk through the files.
struct Walk {
    verifier: Verifier,
    expected: Option<Head>,
    progress: Progress,
    records: u64,
    /// A last line without its end: it is being written, or was when the service was killed.
    unfinished: bool,
}

fn verify(args: &AuditVerifyArgs) -> Result<(Report, Outcome), Failure> {
    let start = args.after.unwrap_or(Head::START);
    let mut walk = Walk {
        verifier: Verifier::after(start),
        expected: args.head,
        progress: Progress::over(&args.files)?,
        records: 0,
        unfinished: false,
    };
    let mut bad = None;
    for file in &args.files {
        bad = walk.through(file)?;
        if bad.is_some() {
            break;
        }
    }
    walk.progress.clear();
    let bad = bad.or_else(|| walk.end(args.files.last()?));
    let outcome = if bad.is_none() {
        Outcome::Yes
    } else {
        Outcome::No
    };
    Ok((walk.report(start, bad), outcome))
}

impl Walk {
    fn through(&mut self, path: &Path) -> Result<Option<Bad>, Failure> {
        let failed = |source| Failure::AuditFile {
            path: path.to_owned(),
            source,
        };
        let mut file = BufReader::with_capacity(256 * 1024, File::open(path).map_err(failed)?);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let most = MAX_LINE as u64 + 1;
            let length = (&mut file).take(most).read_until(b'\n', &mut line);
            let length = length.map_err(failed)? as u64;
            if length == 0 {
                break;
            }
            let after = self.verifier.head().seq;
            let bad = |why: String| Bad {
                file: path.to_owned(),
                line: number,
                after,
                why,
            };
            if self.unfinished {
                return Ok(Some(
                    bad("follows a line that was not completed".to_owned()),
                ));
            }
            let Some(record) = line.strip_suffix(b"\n") else {
                if length == most {
                    return Ok(Some(bad(Fault::TooLong.to_string())));
                }
                self.unfinished = true;
                continue;
            };
            let head = match self.verifier.next(record) {
                Ok(head) => head,
                Err(fault) => return Ok(Some(bad(fault.to_string()))),
            };
            if self
                .expected
                .is_some_and(|it| it.seq == head.seq && it != head)
            {
                return Ok(Some(bad(
                    "another record than the one expected there".to_owned()
                )));
            }
            self.records += 1;
            self.progress.passed(length, self.records);
        }
        Ok(None)
    }

    /// What is missing at the end.
    fn end(&self, last: &Path) -> Option<Bad> {
        let head = self.verifier.head();
        let expected = self.expected.filter(|expected| expected.seq > head.seq)?;
        Some(Bad {
            file: last.to_owned(),
            line: 0,
            after: head.seq,
            why: format!(
                "records are missing at the end: {} to {}",
                head.seq + 1,
                expected.seq
            ),
        })
    }

    fn report(&self, start: Head, bad: Option<Bad>) -> Report {
        let (head, records) = (self.verifier.head(), self.records);
        let mut json = json!({
            "verified": records, "after": start.seq, "head": head.to_string(),
            "unfinished_line": self.unfinished, "bad": Value::Null,
        });
        let mut text = String::new();
        if let Some(bad) = bad {
            let place = match bad.line {
                0 => escape(&bad.file.display().to_string()),
                line => format!("{}:{line}", escape(&bad.file.display().to_string())),
            };
            text = format!("bad {place}: after record {}: {}\n", bad.after, bad.why);
            let bad = json!({
                "file": bad.file.display().to_string(), "line": bad.line,
                "after": bad.after, "fault": bad.why,
            });
            if let Some(place) = json.get_mut("bad") {
                *place = bad;
            }
        }
        if self.unfinished {
            text += "the last line is not complete: it is being written, or was never answered\n";
        }
        text = format!("{text}{records} records verified, the last one {head}\n");
        Report { text, json }
    }
}

fn head(args: &AuditHeadArgs) -> Result<(Report, Outcome), Failure> {
    let failed = |source| Failure::AuditFile {
        path: args.file.clone(),
        source,
    };
    let mut file = BufReader::new(File::open(&args.file).map_err(failed)?);
    let size = file.get_ref().metadata().map_err(failed)?.len();
    // The last line is in there whole, even if the one after it was begun.
    let back = size.min(2 * MAX_LINE as u64);
    file.seek_relative(i64::try_from(size - back).unwrap_or(0))
        .map_err(failed)?;
    let mut end = Vec::new();
    file.take(back).read_to_end(&mut end).map_err(failed)?;
    let whole = end.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let (lines, _) = end.split_at(whole);
    let line = lines.rsplit(|byte| *byte == b'\n').next().unwrap_or(lines);
    let head = head_of(line).map_err(|fault| {
        failed(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("its last line is {fault}"),
        ))
    })?;
    let report = Report {
        text: format!("{head}\n"),
        json: json!({"seq": head.seq, "hash": head.hash.to_string()}),
    };
    Ok((report, Outcome::Yes))
}

/// How far the files are read; told on a terminal.
struct Progress {
    bytes: u64,
    all: u64,
    is_shown: bool,
}

impl Progress {
    fn over(files: &[PathBuf]) -> Result<Self, Failure> {
        let mut all = 0;
        for path in files {
            let size = std::fs::metadata(path).map_err(|source| Failure::AuditFile {
                path: path.clone(),
                source,
            });
            all += size?.len();
        }
        Ok(Self {
            bytes: 0,
            all,
            is_shown: io::stderr().is_terminal(),
        })
    }

    fn passed(&mut self, bytes: u64, records: u64) {
        self.bytes += bytes;
        if self.is_shown && records.is_multiple_of(STEP) {
            let percent = (100 * self.bytes)
                .checked_div(self.all)
                .unwrap_or(100)
                .min(100);
            tell(&format!("\r{records} records verified, {percent} %"));
        }
    }

    fn clear(&self) {
        if self.is_shown {
            tell("\r\u{1b}[K");
        }
    }
}
