//! Reads signed texts back: lines of `name=value`, each ended by LF, and only as they are written.

use std::str::FromStr as _;

use crate::destination::Destination;
use crate::spki::Spki;
use crate::text::Id;
use crate::time::{Timestamp, Window};

/// A text is not what is signed; names the line (from 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not what an {version} text has there")]
pub struct CanonicalError {
    /// The first line of the text that was expected.
    pub version: &'static str,
    /// Which line, counted from 1.
    pub line: usize,
}

/// The lines of a text, each of which must end in LF.
pub(crate) struct Lines<'a> {
    rest: &'a str,
    line: usize,
    version: &'static str,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(bytes: &'a [u8], version: &'static str) -> Result<Self, CanonicalError> {
        let rest = std::str::from_utf8(bytes).map_err(|_| CanonicalError { version, line: 1 })?;
        Ok(Self {
            rest,
            line: 0,
            version,
        })
    }

    pub(crate) fn error(&self) -> CanonicalError {
        CanonicalError {
            version: self.version,
            line: self.line,
        }
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// Nothing may follow.
    pub(crate) fn end(mut self) -> Result<(), CanonicalError> {
        self.line += 1;
        if self.is_at_end() {
            Ok(())
        } else {
            Err(self.error())
        }
    }

    /// The first line, which says what the others are.
    pub(crate) fn version(
        &mut self,
        known: &[&'static str],
    ) -> Result<&'static str, CanonicalError> {
        let found = self.expect(|line| known.iter().find(|version| **version == line).copied())?;
        self.version = found;
        Ok(found)
    }

    fn expect<T>(&mut self, read: impl FnOnce(&'a str) -> Option<T>) -> Result<T, CanonicalError> {
        self.line += 1;
        let (line, rest) = self.rest.split_once('\n').ok_or(self.error())?;
        self.rest = rest;
        read(line).ok_or(self.error())
    }

    pub(crate) fn field<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&'a str) -> Option<T>,
    ) -> Result<T, CanonicalError> {
        self.expect(|line| read(line.strip_prefix(name)?.strip_prefix('=')?))
    }

    pub(crate) fn id(&mut self, name: &str) -> Result<Id, CanonicalError> {
        self.field(name, |text| Id::parse(text).ok())
    }

    pub(crate) fn spki(&mut self, name: &str) -> Result<Spki, CanonicalError> {
        self.field(name, |text| {
            let spki = Spki::from_hex(text).ok()?;
            (spki.to_hex() == text).then_some(spki)
        })
    }

    pub(crate) fn destination(&mut self) -> Result<Destination, CanonicalError> {
        self.field("destination", Destination::from_normal_form)
    }

    pub(crate) fn window(&mut self) -> Result<Window, CanonicalError> {
        let not_before = self.field("not_before", time)?;
        let not_after = self.field("not_after", time)?;
        Window::new(not_before, not_after).map_err(|_| self.error())
    }
}

fn time(text: &str) -> Option<Timestamp> {
    let time = Timestamp::from_str(text).ok()?;
    (time.to_string() == text).then_some(time)
}
