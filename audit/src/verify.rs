//! Verification of a chain, a line at a time.

use serde_json::Value;

use crate::canonical::{self, MAX_INTEGER};
use crate::chain::{Hash, Head};

/// Longest line of a record, in bytes; what it holds is bounded far below.
pub const MAX_LINE: usize = 64 * 1024;

/// Why a line is not the next record of its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// More than [`MAX_LINE`] bytes.
    #[error("longer than any record")]
    TooLong,
    /// No JSON object with a number and both hashes, or not in the form in which records are written.
    #[error("not a record as the gateway writes it")]
    NotARecord,
    /// What it says is not what its hash was made of.
    #[error("edited: its record_hash is not the hash of what it says")]
    Edited,
    /// Its number is too high.
    #[error("records are missing before it: {first} to {last}")]
    Missing {
        /// The first that is missing.
        first: u64,
        /// The last.
        last: u64,
    },
    /// Its number is too low.
    #[error("repeated or moved: record {expected} belongs here")]
    OutOfPlace {
        /// The number that belongs there.
        expected: u64,
    },
    /// It follows another record than the one before it.
    #[error("follows another record: its prev_hash is not the hash of the record before it")]
    Unlinked,
}

/// Holds lines against the chain that they must be.
#[derive(Debug, Clone)]
pub struct Verifier {
    head: Head,
}

impl Verifier {
    /// What comes is to follow this record; [`Head::START`] for a whole chain.
    pub fn after(head: Head) -> Self {
        Self { head }
    }

    /// The last good record.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Takes the next line, without its line end, and returns the record that it is.
    pub fn next(&mut self, line: &[u8]) -> Result<Head, Fault> {
        let (record, previous) = read(line)?;
        let expected = self.head.seq + 1;
        if record.seq > expected {
            return Err(Fault::Missing {
                first: expected,
                last: record.seq - 1,
            });
        }
        if record.seq < expected {
            return Err(Fault::OutOfPlace { expected });
        }
        if previous != self.head.hash {
            return Err(Fault::Unlinked);
        }
        self.head = record;
        Ok(record)
    }
}

/// The number and hash of the record that this line is; its contents are held against its hash.
pub fn head_of(line: &[u8]) -> Result<Head, Fault> {
    read(line).map(|(head, _)| head)
}

/// The record, and the hash of the one before it.
fn read(line: &[u8]) -> Result<(Head, Hash), Fault> {
    if line.len() > MAX_LINE {
        return Err(Fault::TooLong);
    }
    let Ok(Value::Object(record)) = serde_json::from_slice(line) else {
        return Err(Fault::NotARecord);
    };
    let mut json = String::with_capacity(line.len());
    let found = canonical::members(&record, "record_hash", &mut json);
    let Ok(Some((start, end))) = found else {
        return Err(Fault::NotARecord);
    };
    // One form, byte for byte: nothing can be said twice, or in a way that others read otherwise.
    let mut written = Vec::with_capacity(line.len());
    canonical::line(&json, &mut written);
    let seq = record.get("seq").and_then(Value::as_u64);
    let hash = |key| Hash::from_hex(record.get(key)?.as_str()?);
    let (true, Some(seq @ 1..=MAX_INTEGER), Some(previous), Some(hash)) =
        (written == line, seq, hash("prev_hash"), hash("record_hash"))
    else {
        return Err(Fault::NotARecord);
    };
    // `prev_hash` stands before it, so it is never the first member.
    let (before, _) = json.split_at(start);
    let (_, after) = json.split_at(end);
    if Hash::of([before, after]) != hash {
        return Err(Fault::Edited);
    }
    Ok((Head { seq, hash }, previous))
}
