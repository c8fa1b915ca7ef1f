//! PINs: what a TPM wants to be told before it lets a key be used, or made.

use std::fmt;
use std::str::FromStr;

use p256::elliptic_curve::zeroize::Zeroizing;

/// A TPM's password. It is wiped when dropped, and nothing shows it.
///
/// On its way to the TPM it is as readable as all that is sent there: it protects a key from other
/// programs and people of the machine, not from a probe on the TPM's bus.
#[derive(Clone, PartialEq, Eq)]
pub struct Pin(Zeroizing<String>);

/// Why a text is no PIN; the text is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// A TPM takes no more for a key with SHA-256 names (part 1, "Authorization Values").
    #[error("a PIN has at most {} bytes", Pin::MAX_BYTES)]
    TooLong,
    /// Hard to type again; and a TPM drops zero bytes at the end.
    #[error("a PIN has no control characters")]
    Control,
}

impl Pin {
    const MAX_BYTES: usize = 32;

    /// Whether it is the one that keys without a PIN have.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Pin, PinError> {
        if text.len() > Pin::MAX_BYTES {
            return Err(PinError::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(PinError::Control);
        }
        Ok(Pin(Zeroizing::new(text.to_owned())))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin(_)")
    }
}

/// What it takes to make a key.
#[derive(Debug, Clone, Default)]
pub struct Pins {
    /// The PIN that the key shall have; without one, whoever reaches the TPM can use it.
    pub user: Option<Pin>,
    /// The PIN of the TPM's owner hierarchy, if that has one: it makes keys, and gives them their
    /// handles.
    pub owner: Option<Pin>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_is_short_text_and_never_shown() {
        let pin: Pin = "hunter2".parse().unwrap();
        assert_eq!(pin.bytes(), b"hunter2");
        let pins = Pins {
            user: Some(pin),
            owner: None,
        };
        assert_eq!(
            format!("{pins:?}"),
            "Pins { user: Some(Pin(_)), owner: None }"
        );
        assert!("".parse::<Pin>().unwrap().is_empty());
        assert!("x".repeat(32).parse::<Pin>().is_ok());
        assert_eq!("x".repeat(33).parse::<Pin>(), Err(PinError::TooLong));
        for text in ["a\0", "a\n", "\u{7f}"] {
            assert_eq!(text.parse::<Pin>(), Err(PinError::Control));
        }
    }
}
