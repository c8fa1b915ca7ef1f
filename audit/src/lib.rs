//! Audit records: their form, the chain that links them, and its verification.
//!
//! A record is one line of JSON that holds the hash of the record before it and its own: SHA-256
//! over its canonical JSON (RFC 8785) without `record_hash`. Who has a record's number and hash, a
//! [`Head`], can tell whether anything up to it was changed. There is no I/O and no clock here.

#![forbid(unsafe_code)]

mod canonical;
mod chain;
mod record;
mod verify;

pub use chain::{Chain, Draft, Hash, Head, ParseHeadError};
pub use record::{Event, Outcome, Record, Target, Traffic};
pub use verify::{Fault, MAX_LINE, Verifier, head_of};
