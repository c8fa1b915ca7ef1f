//! `status`: whose sidecar this is, and how the one that runs is doing.

use std::io;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use permission::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cli::StatusArgs;
use crate::entrance::Entrance;
use crate::failure::Failure;
use crate::inquiry;
use crate::state::{State, StateDir, StateError};

/// Where a running sidecar answers, to those who know its token.
pub(crate) const PATH: &str = "/status";

/// What a running sidecar says of itself. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Live {
    pub(crate) gateways: Vec<String>,
    /// Connections to a gateway that are up.
    pub(crate) connections: usize,
    /// Tunnels that are open, or being opened.
    pub(crate) tunnels: usize,
    pub(crate) max_tunnels: usize,
    /// When a connection was last made, and the key proved.
    pub(crate) last_handshake: Option<u64>,
    pub(crate) last_failure: Option<FailedAttempt>,
}

/// Why there was no connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FailedAttempt {
    pub(crate) at: u64,
    pub(crate) error: String,
}

/// Why there is nothing to show, or not all.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// `init` never ran.
    #[error("{0} holds no sidecar's state")]
    NoState(PathBuf),
    /// The state can't be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// What there is was shown.
    #[error("no sidecar runs for {0}")]
    NotRunning(PathBuf),
    /// It runs, and says nothing.
    #[error("the running sidecar does not answer: {0}")]
    NoAnswer(io::Error),
}

/// Runs the command.
pub fn run(args: &StatusArgs) -> Result<(), Failure> {
    Ok(show(args)?)
}

fn show(args: &StatusArgs) -> Result<(), StatusError> {
    let dir = StateDir::new(&args.state.dir);
    let state = dir
        .load()?
        .ok_or_else(|| StatusError::NoState(dir.path().to_owned()))?;
    let running = dir.running()?;
    let live = running.as_ref().map(ask).transpose();
    let (shown, outcome) = match live {
        Ok(Some(live)) => (Some(live), Ok(())),
        Ok(None) => (None, Err(StatusError::NotRunning(dir.path().to_owned()))),
        Err(error) => (None, Err(StatusError::NoAnswer(error))),
    };
    print(&dir, &state, running.as_ref(), shown.as_ref(), args.json);
    outcome
}

/// What the sidecar there says of itself.
pub(crate) fn ask(entrance: &Entrance) -> io::Result<Live> {
    let answer = inquiry::ask(entrance, "GET", PATH)?;
    if answer.status != 200 {
        return Err(io::Error::other(format!("status {}", answer.status)));
    }
    Ok(serde_json::from_str(&answer.body)?)
}

#[expect(clippy::print_stdout, reason = "the command's output")]
fn print(
    dir: &StateDir,
    state: &State,
    running: Option<&Entrance>,
    live: Option<&Live>,
    as_json: bool,
) {
    // Without the token.
    let address = running.map(|entrance| entrance.reachable().to_string());
    let identity = state.leaf.identity.as_str();
    if as_json {
        let result = json!({
            "identity": identity,
            "spki": state.leaf.spki.to_hex(),
            "tcti": state.location.tcti.to_string(),
            "handle": state.location.handle.to_string(),
            "certificate_file": dir.certificate_path(),
            "running": running.is_some(),
            "proxy": address,
            "url_file": running.map(|_| dir.url_path()),
            "live": live,
        });
        println!("{result}");
        return;
    }
    println!("identity        {}", identity.escape_debug());
    println!("key             {}", state.location);
    println!("spki            {}", state.leaf.spki.to_hex());
    println!("certificate     {}", dir.certificate_path().display());
    let Some(address) = address else {
        println!("proxy           not running");
        return;
    };
    println!("proxy           {address}");
    println!("proxy url       {}", dir.url_path().display());
    let Some(live) = live else { return };
    let now = unix_seconds(SystemTime::now());
    println!("gateway         {}", live.gateways.join(", "));
    println!("connections     {}", live.connections);
    println!("tunnels         {} of {}", live.tunnels, live.max_tunnels);
    let handshake = live.last_handshake.map(|at| time(at, now));
    println!(
        "last handshake  {}",
        handshake.as_deref().unwrap_or("never")
    );
    if let Some(failure) = &live.last_failure {
        println!(
            "last failure    {}: {}",
            time(failure.at, now),
            failure.error
        );
    }
}

pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Absolute and relative.
pub(crate) fn time(at: u64, now: u64) -> String {
    let micros = i64::try_from(at)
        .ok()
        .and_then(|at| at.checked_mul(1_000_000));
    let absolute = micros
        .and_then(|micros| Timestamp::from_unix_micros(micros).ok())
        .map_or_else(
            || format!("{at} s after 1970"),
            |time| time.to_string().replace(".000000", ""),
        );
    let ago = match now.saturating_sub(at) {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86400),
    };
    format!("{absolute} ({ago} ago)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_and_relative() {
        let at = 1_700_000_000;
        for (seconds, ago) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7200, "2 h"),
            (200_000, "2 d"),
        ] {
            let shown = time(at, at + seconds);
            assert!(shown.starts_with("2023-11-14T22:13:20"), "{shown}");
            assert!(shown.ends_with(&format!(" ({ago} ago)")), "{shown}");
        }
        // A clock that was set back.
        assert!(time(at, at - 5).ends_with(" (0 s ago)"));
    }
}
