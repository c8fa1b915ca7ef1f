//! This machine's clock: for what has no database to ask.

use std::time::{SystemTime, UNIX_EPOCH};

use permission::Timestamp;

use crate::failure::Failure;

/// The present.
pub(crate) fn now() -> Result<Timestamp, Failure> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let micros = since
        .ok()
        .and_then(|time| i64::try_from(time.as_micros()).ok());
    micros
        .and_then(|micros| Timestamp::from_unix_micros(micros).ok())
        .ok_or(Failure::NoTime)
}
