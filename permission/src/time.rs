//! Points in time as signed, and the half-open windows between two of them.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat, Utc};

/// Microseconds since the Unix epoch, from year 1 to 9999 (what RFC 3339 can write).
///
/// `Display` is the signed form: UTC, six fractional digits, `Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// Why something is no timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimestampError {
    /// Before year 1 or after year 9999; Postgres's `infinity` is there too.
    #[error("time is outside the years 1 to 9999")]
    OutOfRange,
    /// Not RFC 3339.
    #[error("time is not written as RFC 3339")]
    NotRfc3339,
}

impl Timestamp {
    /// From microseconds since the Unix epoch.
    pub fn from_unix_micros(micros: i64) -> Result<Self, TimestampError> {
        let time = Self(micros);
        if (Self::MIN..=Self::MAX).contains(&time) {
            Ok(time)
        } else {
            Err(TimestampError::OutOfRange)
        }
    }

    /// Microseconds since the Unix epoch.
    pub fn as_unix_micros(self) -> i64 {
        self.0
    }

    /// This time moved by a number of microseconds, held inside the range of the type.
    #[must_use]
    pub fn saturating_add_micros(self, micros: i64) -> Self {
        let moved = self.0.saturating_add(micros);
        Self::from_unix_micros(moved).unwrap_or(if micros < 0 { Self::MIN } else { Self::MAX })
    }

    /// 0001-01-01T00:00:00.000000Z.
    pub const MIN: Self = Self(-62_135_596_800_000_000);
    /// 9999-12-31T23:59:59.999999Z.
    pub const MAX: Self = Self(253_402_300_799_999_999);
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // In range by construction; the epoch stands for what cannot happen.
        let date: DateTime<Utc> = DateTime::from_timestamp_micros(self.0).unwrap_or_default();
        f.pad(&date.to_rfc3339_opts(SecondsFormat::Micros, true))
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let date = DateTime::parse_from_rfc3339(text).map_err(|_| TimestampError::NotRfc3339)?;
        Self::from_unix_micros(date.timestamp_micros())
    }
}

/// A half-open span: `not_before <= t < not_after`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    not_before: Timestamp,
    not_after: Timestamp,
}

/// A window that holds no point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not_before must be earlier than not_after")]
pub struct WindowError;

/// Where a point in time lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Earlier than `not_before`.
    Before,
    /// Inside.
    Within,
    /// At `not_after` or later.
    After,
}

impl Window {
    /// A window of at least one microsecond.
    pub fn new(not_before: Timestamp, not_after: Timestamp) -> Result<Self, WindowError> {
        if not_before < not_after {
            Ok(Self {
                not_before,
                not_after,
            })
        } else {
            Err(WindowError)
        }
    }

    /// The first point inside.
    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// The first point no longer inside.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Where `time` lies.
    pub fn position(&self, time: Timestamp) -> Position {
        if time < self.not_before {
            Position::Before
        } else if time < self.not_after {
            Position::Within
        } else {
            Position::After
        }
    }

    /// Whether every point of `other` lies in this window.
    pub fn covers(&self, other: &Self) -> bool {
        self.not_before <= other.not_before && self.not_after >= other.not_after
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn signed_form_is_utc_with_six_fractional_digits() {
        assert_eq!(
            at("2026-05-01T02:00:00+02:00").to_string(),
            "2026-05-01T00:00:00.000000Z"
        );
        assert_eq!(
            at("2026-05-01T00:00:00.1234567Z").to_string(),
            "2026-05-01T00:00:00.123456Z"
        );
        assert_eq!(at("1969-12-31T23:59:59.999999Z").as_unix_micros(), -1);
    }

    #[test]
    fn range_ends_where_rfc_3339_ends() {
        assert_eq!(Timestamp::MIN.to_string(), "0001-01-01T00:00:00.000000Z");
        assert_eq!(Timestamp::MAX.to_string(), "9999-12-31T23:59:59.999999Z");
        for outside in [
            Timestamp::MIN.0 - 1,
            Timestamp::MAX.0 + 1,
            i64::MAX,
            i64::MIN,
        ] {
            assert_eq!(
                Timestamp::from_unix_micros(outside),
                Err(TimestampError::OutOfRange)
            );
        }
        assert_eq!(Timestamp::MAX.saturating_add_micros(1), Timestamp::MAX);
        assert_eq!(
            Timestamp::MIN.saturating_add_micros(i64::MIN),
            Timestamp::MIN
        );
    }

    #[test]
    fn window_holds_its_start_and_not_its_end() {
        let (start, end) = (at("2026-05-01T00:00:00Z"), at("2026-06-01T00:00:00Z"));
        let window = Window::new(start, end).unwrap();
        assert_eq!(
            window.position(start.saturating_add_micros(-1)),
            Position::Before
        );
        assert_eq!(window.position(start), Position::Within);
        assert_eq!(
            window.position(end.saturating_add_micros(-1)),
            Position::Within
        );
        assert_eq!(window.position(end), Position::After);
        assert_eq!(Window::new(start, start), Err(WindowError));
        assert_eq!(Window::new(end, start), Err(WindowError));
    }

    #[test]
    fn covering_includes_equal_ends() {
        let time = |micros| Timestamp::from_unix_micros(micros).unwrap();
        let window = |from, to| Window::new(time(from), time(to)).unwrap();
        assert!(window(1, 5).covers(&window(1, 5)));
        assert!(window(1, 5).covers(&window(2, 4)));
        assert!(!window(1, 5).covers(&window(0, 5)));
        assert!(!window(1, 5).covers(&window(1, 6)));
    }

    proptest! {
        #[test]
        fn signed_form_round_trips(micros in Timestamp::MIN.0..=Timestamp::MAX.0) {
            let time = Timestamp::from_unix_micros(micros).unwrap();
            prop_assert_eq!(at(&time.to_string()), time);
        }
    }
}
