//! The name by which a permission knows an agent.

use std::fmt;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::text::{self, TextError};

/// Why a text is no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("identity {0}")]
pub struct IdentityError(#[from] pub TextError);

/// An agent's identity: 1 to 256 bytes of UTF-8 without control characters, case-sensitive.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Arc<str>);

/// What stays readable in a header: RFC 3986 unreserved characters, and those of SPIFFE ids.
const HEADER: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b':');

impl Identity {
    /// Takes a text that is an identity.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        text::check(text)?;
        Ok(Self(text.into()))
    }

    /// The identity exactly as in the certificate and in the signed row.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Percent-encoded, for a header value: ASCII alone, no white space, no separators.
    pub fn header_value(&self) -> String {
        utf8_percent_encode(&self.0, HEADER).to_string()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_characters_beyond_ascii_are_kept() {
        assert_eq!(Identity::parse("Agent-Ω").unwrap().as_str(), "Agent-Ω");
    }

    #[test]
    fn empty_overlong_and_control_characters_are_refused() {
        assert_eq!(Identity::parse(""), Err(IdentityError(TextError::Empty)));
        assert!(Identity::parse(&"a".repeat(256)).is_ok());
        assert_eq!(
            Identity::parse(&"a".repeat(257)),
            Err(IdentityError(TextError::TooLong))
        );
        for bad in ["a\nb", "a\rb", "a\0b", "\t", "a\u{7f}", "a\u{85}b"] {
            assert_eq!(
                Identity::parse(bad),
                Err(IdentityError(TextError::ControlCharacter)),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn header_value_is_plain_ascii() {
        let identity = Identity::parse("agent Ω,%\u{202e}").unwrap();
        assert_eq!(identity.header_value(), "agent%20%CE%A9%2C%25%E2%80%AE");
        let spiffe = Identity::parse("spiffe://example.org/agent-1").unwrap();
        assert_eq!(spiffe.header_value(), "spiffe://example.org/agent-1");
    }
}
