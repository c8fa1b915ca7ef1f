//! How long something is valid, as typed (`30d`), and how far away a time is, as shown.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use permission::{Timestamp, Window, WindowError};

/// Names and lengths in seconds, longest first.
const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];
/// Ten years: more is a typing error, and nobody looks at it again in time.
const MAX_SECONDS: u64 = 3650 * 86_400;
const MICROS_PER_SECOND: i64 = 1_000_000;

/// A length of time from one second to 3650 days, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    seconds: u64,
}

/// Why a text is no length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValidityError {
    /// Not digits and a unit.
    #[error("not a whole number and a unit, as in 30d, 12h, 90m or 45s")]
    Malformed,
    /// No time at all.
    #[error("must be longer than nothing")]
    Zero,
    /// Over ten years.
    #[error("longer than 3650d")]
    TooLong,
}

impl FromStr for Validity {
    type Err = ValidityError;

    fn from_str(text: &str) -> Result<Self, ValidityError> {
        let (number, unit_seconds) = UNITS
            .iter()
            .find_map(|(unit, seconds)| Some((text.strip_suffix(*unit)?, *seconds)))
            .ok_or(ValidityError::Malformed)?;
        // `parse` would take a sign, too.
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ValidityError::Malformed);
        }
        // All digits: it fails only if there are too many of them.
        let number: u64 = number.parse().map_err(|_| ValidityError::TooLong)?;
        match number.checked_mul(unit_seconds) {
            Some(0) => Err(ValidityError::Zero),
            Some(seconds @ ..=MAX_SECONDS) => Ok(Self { seconds }),
            _ => Err(ValidityError::TooLong),
        }
    }
}

/// In the largest unit that has no remainder; parses back to the same.
impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, seconds) = UNITS
            .iter()
            .find(|(_, seconds)| self.seconds.is_multiple_of(*seconds))
            .unwrap_or(&('s', 1));
        write!(f, "{}{unit}", self.seconds / seconds)
    }
}

impl Validity {
    /// The window that begins at `now`.
    pub fn window_from(self, now: Timestamp) -> Result<Window, WindowError> {
        // At most 3650 days: far from the limits of i64.
        let micros = i64::try_from(self.seconds).unwrap_or(i64::MAX) * MICROS_PER_SECOND;
        Window::new(now, now.saturating_add_micros(micros))
    }

    /// As the clock of this machine measures it.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// A round length that, begun at `now`, has ended by `end`.
    pub fn until(end: Timestamp, now: Timestamp) -> Option<Self> {
        let (unit, number) = largest_unit(seconds_between(now, end)?)?;
        format!("{number}{unit}").parse().ok()
    }
}

/// How far `time` is from `now`, in its largest unit, rounded towards now: `in 29 d`, `3 h ago`.
pub(crate) fn relative(time: Timestamp, now: Timestamp) -> String {
    let show = |seconds| {
        let (unit, number) = largest_unit(seconds)?;
        let unit = if unit == 'm' {
            "min"
        } else {
            &*unit.to_string()
        };
        Some(format!("{number} {unit}"))
    };
    if let Some(ahead) = seconds_between(now, time).and_then(show) {
        format!("in {ahead}")
    } else if let Some(past) = seconds_between(time, now).and_then(show) {
        format!("{past} ago")
    } else {
        "now".to_owned()
    }
}

/// Whole seconds from one time to a later one.
fn seconds_between(from: Timestamp, to: Timestamp) -> Option<u64> {
    let micros = to.as_unix_micros() - from.as_unix_micros();
    u64::try_from(micros / MICROS_PER_SECOND).ok()
}

fn largest_unit(seconds: u64) -> Option<(char, u64)> {
    let (unit, length) = UNITS.iter().find(|(_, length)| seconds >= *length)?;
    Some((*unit, seconds / length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_micros(seconds * MICROS_PER_SECOND).unwrap()
    }

    #[test]
    fn lengths_of_time_are_read_and_shown() {
        for (text, seconds, shown) in [
            ("30d", 2_592_000, "30d"),
            ("12h", 43_200, "12h"),
            ("90m", 5400, "90m"),
            ("45s", 45, "45s"),
            ("120m", 7200, "2h"),
            ("007d", 604_800, "7d"),
            ("3650d", MAX_SECONDS, "3650d"),
        ] {
            let validity: Validity = text.parse().unwrap();
            assert_eq!(validity.seconds, seconds, "{text}");
            assert_eq!(validity.to_string(), shown, "{text}");
            assert_eq!(shown.parse(), Ok(validity), "{text}");
        }
    }

    #[test]
    fn nothing_absurd_is_read() {
        use ValidityError::*;
        for (text, expected) in [
            ("", Malformed),
            ("30", Malformed),
            ("d", Malformed),
            ("30 d", Malformed),
            ("-1d", Malformed),
            ("+1d", Malformed),
            ("1.5d", Malformed),
            ("1d12h", Malformed),
            ("30D", Malformed),
            ("٣d", Malformed),
            ("1w", Malformed),
            ("0d", Zero),
            ("0s", Zero),
            ("3651d", TooLong),
            ("315360001s", TooLong),
            ("18446744073709551615d", TooLong),
            ("99999999999999999999s", TooLong),
        ] {
            assert_eq!(text.parse::<Validity>(), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn window_begins_now_and_has_the_length() {
        let validity: Validity = "90m".parse().unwrap();
        let window = validity.window_from(at(1000)).unwrap();
        assert_eq!(
            (window.not_before(), window.not_after()),
            (at(1000), at(6400))
        );
    }

    #[test]
    fn round_length_never_goes_beyond_the_end() {
        let until = |seconds| Validity::until(at(seconds), at(0)).map(|length| length.to_string());
        assert_eq!(until(86_400 * 30 - 1).as_deref(), Some("29d"));
        assert_eq!(until(86_399).as_deref(), Some("23h"));
        assert_eq!(until(59).as_deref(), Some("59s"));
        assert_eq!(until(0), None);
        assert_eq!(until(-5), None);
    }

    #[test]
    fn distance_is_told_in_its_largest_unit() {
        for (seconds, expected) in [
            (86_400 * 30 - 1, "in 29 d"),
            (86_400, "in 1 d"),
            (86_399, "in 23 h"),
            (61, "in 1 min"),
            (1, "in 1 s"),
            (0, "now"),
            (-59, "59 s ago"),
            (-3600 * 3 - 1, "3 h ago"),
            (-86_400 * 400, "400 d ago"),
        ] {
            assert_eq!(relative(at(seconds), at(0)), expected);
        }
        assert_eq!(relative(Timestamp::MAX, Timestamp::MIN), "in 3652058 d");
    }
}
