//! `import`: signed rows from a file; every one is held against the registry's keys and scopes,
//! and all of them are stored or none.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

use permission::{Id, Permission, PocaKey, Reason, Timestamp};
use registry::{Added, Import, SignedRow, Stated, StatementRow, Stored, StoredPocaKey, WriteError};
use serde_json::json;

use crate::audit::{Fault, fault};
use crate::cli::ImportArgs;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::poca_key;
use crate::signed_row::{self, AnyRow, LineError};
use crate::signing::Grant;
use crate::terminal::Report;
use crate::trust::Trust;

/// Longest line read; the longest that `export` writes of a usable row is far below.
const MAX_LINE_BYTES: u64 = 32 * 1024;
/// Rows held at a time.
const BATCH: usize = 500;

/// What is wrong with a file of signed rows.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It can't be read.
    #[error("can't be read")]
    Read(#[from] io::Error),
    /// It ends in the midst of a line.
    #[error("line {0} is cut off, or over {MAX_LINE_BYTES} bytes")]
    CutOff(usize),
    /// A line that is no signed row.
    #[error("line {0}: {1}")]
    Line(usize, #[source] LineError),
    /// A row that counts for nothing at the gateway.
    #[error("line {line}: {kind} {id}: {fault}")]
    Fault {
        /// Counted from 1.
        line: usize,
        /// Of what.
        kind: &'static str,
        /// Whose.
        id: Id,
        /// Why.
        fault: Fault,
    },
    /// A key or a scope that can't be taken.
    #[error("line {line}: key {key_id}: {fault}")]
    Statement {
        /// Counted from 1.
        line: usize,
        /// Whose.
        key_id: Id,
        /// Why.
        fault: StatementFault,
    },
    /// Another one has that id, in the registry or in the file.
    #[error("line {line}: {kind} {id} is there already, and another one")]
    Taken {
        /// Counted from 1.
        line: usize,
        /// Of what.
        kind: &'static str,
        /// Which.
        id: Id,
    },
}

/// Why a line about a key is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StatementFault {
    /// A root's signature, and nobody says whose count.
    #[error("bears a root's signature, and no trust root is given to check it by")]
    NoTrustRoot,
    /// A root's signature that is none.
    #[error("no trust root made its signature, or not for this registry")]
    NotSigned,
    /// The id or the key is there already, for something else.
    #[error("the key or its id is there already, and another one")]
    Taken,
    /// A scope whose key is not there.
    #[error("is not registered, or is another key")]
    KeyUnknown,
}

/// Runs the command.
pub(crate) async fn run(args: &ImportArgs, trust: &Trust) -> Result<Report, Failure> {
    let failed = |source| Failure::Import {
        path: args.file.clone(),
        source,
    };
    let mut lines = open(&args.file).map_err(|error| failed(error.into()))?;
    let mut registry = database::open(trust).await?;
    let now = within(registry.now()).await?;
    let mut import = within(registry.import()).await?;
    let (mut new, mut read) = (0, 0);
    loop {
        let batch = next_batch(&mut *lines, read).map_err(failed)?;
        if batch.is_empty() {
            break;
        }
        read += batch.len();
        // Keys and scopes first: the others rest on them.
        let (mut permissions, mut poca_keys) = (Vec::new(), Vec::new());
        for (line, row) in batch {
            match row {
                AnyRow::Permission(row) => permissions.push((line, row)),
                AnyRow::PocaKey(row) => poca_keys.push((line, row)),
                AnyRow::Statement(row) => {
                    let stated = state(&mut import, &row, trust).await?;
                    let key_id = row.statement.key_id;
                    new += stated.map_err(|fault| {
                        failed(ImportError::Statement {
                            line,
                            key_id,
                            fault,
                        })
                    })?;
                }
            }
        }
        new += add::<Stored>(&mut import, &permissions, now)
            .await?
            .map_err(failed)?;
        new += add::<StoredPocaKey>(&mut import, &poca_keys, now)
            .await?
            .map_err(failed)?;
    }
    within(import.commit()).await?;
    let known = read as u64 - new;
    Ok(Report {
        text: format!("imported    {new}\nunchanged   {known}\n"),
        json: json!({"imported": new, "unchanged": known}),
    })
}

fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    Ok(if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(path)?))
    })
}

/// Reads up to [`BATCH`] lines; `before` were read already.
fn next_batch(lines: &mut dyn BufRead, before: usize) -> Result<Vec<(usize, AnyRow)>, ImportError> {
    let mut batch = Vec::new();
    while batch.len() < BATCH {
        let number = before + batch.len() + 1;
        let mut line = String::new();
        if (&mut *lines).take(MAX_LINE_BYTES).read_line(&mut line)? == 0 {
            break;
        }
        if !line.ends_with('\n') {
            return Err(ImportError::CutOff(number));
        }
        let row = signed_row::read(&line).map_err(|error| ImportError::Line(number, error))?;
        batch.push((number, row));
    }
    Ok(batch)
}

/// Adds a key or a scope, or a root's signature on it; the outer failure is the database's.
async fn state(
    import: &mut Import<'_>,
    row: &StatementRow,
    trust: &Trust,
) -> Result<Result<u64, StatementFault>, Failure> {
    match (&row.root_signature, &trust.roots) {
        (None, _) => {}
        (Some(_), None) => return Ok(Err(StatementFault::NoTrustRoot)),
        (Some(signature), Some(roots)) if roots.vouch_for(&row.statement, signature) => {}
        (Some(_), Some(_)) => return Ok(Err(StatementFault::NotSigned)),
    }
    Ok(match within(import.state(row)).await? {
        Stated::New | Stated::Signed => Ok(1),
        Stated::Unchanged => Ok(0),
        Stated::Taken => Err(StatementFault::Taken),
        Stated::KeyUnknown => Err(StatementFault::KeyUnknown),
    })
}

/// A row as the registry holds it, of one kind or the other.
trait Standing: Sized {
    type Signed: Grant + Clone + PartialEq;

    async fn add(
        import: &mut Import<'_>,
        rows: &[SignedRow<Self::Signed>],
    ) -> Result<Added<Self>, WriteError>;

    fn id(&self) -> &str;

    /// What it says, if that can be read.
    fn says(&self) -> Option<Self::Signed>;

    fn fault(&self, now: Timestamp) -> Option<Fault>;

    /// Whether its key made this signature too, over what it says.
    fn is_signed_by(&self, signature_der: &[u8]) -> bool;
}

impl Standing for Stored {
    type Signed = Permission;

    async fn add(
        import: &mut Import<'_>,
        rows: &[SignedRow<Permission>],
    ) -> Result<Added<Self>, WriteError> {
        import.add(rows).await
    }

    fn id(&self) -> &str {
        self.permission_id()
    }

    fn says(&self) -> Option<Permission> {
        let candidate = self.candidate().ok()?;
        Some(candidate.permission().clone())
    }

    fn fault(&self, now: Timestamp) -> Option<Fault> {
        fault(self.candidate(), self.is_revoked(), now)
    }

    fn is_signed_by(&self, signature_der: &[u8]) -> bool {
        self.is_signed_by(signature_der)
    }
}

impl Standing for StoredPocaKey {
    type Signed = PocaKey;

    async fn add(
        import: &mut Import<'_>,
        rows: &[SignedRow<PocaKey>],
    ) -> Result<Added<Self>, WriteError> {
        import.add_poca_keys(rows).await
    }

    fn id(&self) -> &str {
        self.poca_key_id()
    }

    fn says(&self) -> Option<PocaKey> {
        let candidate = self.candidate().ok()?;
        Some(candidate.key().clone())
    }

    fn fault(&self, now: Timestamp) -> Option<Fault> {
        fault(poca_key::candidate(self), self.is_revoked(), now)
    }

    fn is_signed_by(&self, signature_der: &[u8]) -> bool {
        self.is_signed_by(signature_der)
    }
}

/// Adds rows and checks each as it then stands; the outer failure is the database's.
async fn add<S: Standing>(
    import: &mut Import<'_>,
    batch: &[(usize, SignedRow<S::Signed>)],
    now: Timestamp,
) -> Result<Result<u64, ImportError>, Failure> {
    let rows: Vec<_> = batch.iter().map(|(_, row)| row.clone()).collect();
    let added = within(S::add(import, &rows)).await?;
    let stored: HashMap<&str, &S> = (added.stored.iter().map(|row| (row.id(), row))).collect();
    let kind = S::Signed::KIND;
    for (line, row) in batch {
        let line = *line;
        let id = row.signed.id().clone();
        let Some(stored) = stored.get(id.as_str()) else {
            let fault = Fault::Denied(Reason::SigningKeyUnknown);
            return Ok(Err(ImportError::Fault {
                line,
                kind,
                id,
                fault,
            }));
        };
        if stored.says().as_ref() != Some(&row.signed) {
            return Ok(Err(ImportError::Taken { line, kind, id }));
        }
        // Of a row that was there already the registry has a signature of its own.
        let unsigned = || {
            (!stored.is_signed_by(&row.signature))
                .then_some(Fault::Denied(Reason::SignatureInvalid))
        };
        if let Some(fault) = stored.fault(now).or_else(unsigned) {
            return Ok(Err(ImportError::Fault {
                line,
                kind,
                id,
                fault,
            }));
        }
    }
    Ok(Ok(added.new))
}
