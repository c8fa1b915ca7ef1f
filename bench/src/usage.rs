//! What a process has used so far, as the kernel counts it.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// CPU time of all threads that live now, to the nanosecond (the first field of `schedstat`);
/// tokio's workers live as long as their process.
pub(crate) fn cpu(process: u32) -> Result<Duration> {
    let mut nanos: u64 = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        // One that has just ended took its count along.
        let stat = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        let ran = stat.split(' ').next().and_then(|field| field.parse().ok());
        nanos += ran.unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

/// CPU time of the calling thread.
pub(crate) fn own_thread() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/thread-self/schedstat")?;
    let ran = stat.split(' ').next().context("schedstat")?;
    Ok(Duration::from_nanos(ran.parse()?))
}

/// Resident memory, in bytes.
pub(crate) fn memory(process: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let kibibytes: u32 = kibibytes.context("VmRSS")?.parse()?;
    Ok(f64::from(kibibytes) * 1024.0)
}
