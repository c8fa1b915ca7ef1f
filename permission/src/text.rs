//! Text that goes into signed bytes: bounded, and without control characters.
//!
//! The signed form is line-based, so a field that held a line feed could forge another field.

use std::fmt;
use std::sync::Arc;

/// Longest identity or id, in bytes of UTF-8.
pub const MAX_TEXT_BYTES: usize = 256;

/// Why a text can't be signed or accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// More than [`MAX_TEXT_BYTES`].
    #[error("is longer than {MAX_TEXT_BYTES} bytes")]
    TooLong,
    /// A character of Unicode category Cc (line feed, NUL, …).
    #[error("holds a control character")]
    ControlCharacter,
}

/// Checks the rule that identities and ids share.
pub(crate) fn check(text: &str) -> Result<(), TextError> {
    if text.is_empty() {
        return Err(TextError::Empty);
    }
    if text.len() > MAX_TEXT_BYTES {
        return Err(TextError::TooLong);
    }
    if text.chars().any(char::is_control) {
        return Err(TextError::ControlCharacter);
    }
    Ok(())
}

/// The id of a permission or of a signing key: 1 to 256 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(Arc<str>);

impl Id {
    /// Takes a text that is an id.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        check(text)?;
        Ok(Self(text.into()))
    }

    /// The id as stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
