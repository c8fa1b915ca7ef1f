//! The chain: each record names its number and the hash of the one before.

use std::fmt;
use std::str::FromStr;

use ring::digest::{Context, SHA256};

use crate::canonical;
use crate::record::{Gaps, Record};

/// SHA-256 of a record; `Display` is lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash([u8; 32]);

/// The last record of a chain, or of a part of it: `Display` is `seq:hash`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number; the first is 1.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

/// Not `seq:hash`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a record's number and hash, as 1234:64 hexadecimal digits")]
pub struct ParseHeadError;

/// A record that has no place in a chain yet: all of it but its number, the hash of the one before
/// it, and its own.
#[derive(Debug)]
pub struct Draft {
    /// Canonical, once the gaps are filled.
    json: String,
    gaps: Gaps,
}

/// A chain that grows.
#[derive(Debug)]
pub struct Chain {
    head: Head,
}

impl Head {
    /// Before the first record.
    pub const START: Self = Self {
        seq: 0,
        hash: Hash([0; 32]),
    };
}

impl Hash {
    /// Of what these are, put together.
    pub(crate) fn of<const N: usize>(parts: [impl AsRef<[u8]>; N]) -> Self {
        let mut context = Context::new(&SHA256);
        for part in parts {
            context.update(part.as_ref());
        }
        let mut hash = [0; 32];
        // A SHA-256 has 32 bytes.
        for (to, from) in hash.iter_mut().zip(context.finish().as_ref()) {
            *to = *from;
        }
        Self(hash)
    }

    /// From 64 hexadecimal digits, in the one way in which they are written.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let mut hash = [0; 32];
        if text.bytes().any(|digit| digit.is_ascii_uppercase()) {
            return None;
        }
        hex::decode_to_slice(text, &mut hash).ok()?;
        Some(Self(hash))
    }
}

impl Chain {
    /// Goes on after this record; [`Head::START`] begins one.
    pub fn after(head: Head) -> Self {
        Self { head }
    }

    /// The last record.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Makes it the next record, and appends its line.
    pub fn seal(&mut self, draft: &Draft, out: &mut Vec<u8>) {
        let seq = self.head.seq + 1;
        let (previous, number) = (self.head.hash.to_string(), seq.to_string());
        let Draft { json, gaps } = draft;
        let (before, rest) = json.split_at(gaps.prev_hash);
        let (reason, rest) = rest.split_at(gaps.record_hash - gaps.prev_hash);
        let (between, after) = rest.split_at(gaps.seq - gaps.record_hash);
        let hash = Hash::of([before, &previous, reason, between, &number, after]);
        canonical::line(before, out);
        out.extend_from_slice(previous.as_bytes());
        canonical::line(reason, out);
        out.extend_from_slice(b",\"record_hash\":\"");
        out.extend_from_slice(hash.to_string().as_bytes());
        out.push(b'"');
        canonical::line(between, out);
        out.extend_from_slice(number.as_bytes());
        canonical::line(after, out);
        out.push(b'\n');
        self.head = Head { seq, hash };
    }
}

impl Draft {
    /// Of what is recorded, by this replica.
    pub fn new(record: &Record<'_>, replica: &str) -> Self {
        // About what an allow takes.
        let mut json = String::with_capacity(768);
        let gaps = record.write(replica, &mut json);
        Self { json, gaps }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 64];
        // Both have the size that the other needs.
        hex::encode_to_slice(self.0, &mut digits).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl FromStr for Head {
    type Err = ParseHeadError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (seq, hash) = text.split_once(':').ok_or(ParseHeadError)?;
        if !seq.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(ParseHeadError);
        }
        let seq = seq.parse().map_err(|_| ParseHeadError)?;
        let hash = Hash::from_hex(hash).ok_or(ParseHeadError)?;
        Ok(Self { seq, hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_written() {
        let head = Head {
            seq: 42,
            hash: Hash::of(["a", "bc"]),
        };
        // SHA-256 of "abc" (FIPS 180-2, B.1).
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(head.to_string(), format!("42:{digest}"));
        assert_eq!(head.to_string().parse(), Ok(head));
        for text in [
            "",
            "42",
            "42:",
            ":ab",
            "+42:00",
            &format!("x:{digest}"),
            &format!("42:{digest}0"),
        ] {
            assert_eq!(text.parse::<Head>(), Err(ParseHeadError), "{text}");
        }
    }
}
