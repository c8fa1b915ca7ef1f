//! `status`: whose sidecar this is, and how the one that runs is doing.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use permission::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cli::StatusArgs;
use crate::entrance::Entrance;
use crate::failure::Failure;
use crate::inquiry;
use crate::output::{OutputError, print, print_json};
use crate::state::{Next, State, StateDir, StateError};

/// Where a running sidecar answers, to those who know its token.
pub(crate) const PATH: &str = "/status";

/// What a running sidecar says of itself. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Live {
    /// The key in use, which `rotate` may be about to change: hex.
    pub(crate) spki: Option<String>,
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
    /// Nobody reads it.
    #[error(transparent)]
    Output(#[from] OutputError),
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
    let next = dir.next()?;
    let key = KeyShown {
        state: &state,
        next: next.as_ref(),
    };
    print_all(&dir, &key, running.as_ref(), shown.as_ref(), args.json)?;
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

/// The key, and what a rotation has made of it so far.
struct KeyShown<'a> {
    state: &'a State,
    next: Option<&'a Next>,
}

impl KeyShown<'_> {
    fn json(&self) -> (Value, Value) {
        let next = self.next.map(|next| {
            let spki = next
                .certificate
                .as_ref()
                .map(|(leaf, _)| leaf.spki.to_hex());
            json!({
                "tcti": next.location.tcti.to_string(),
                "handle": next.location.handle.to_string(),
                "spki": spki,
            })
        });
        let retired = self.state.retired.as_ref().map(|retired| {
            json!({
                "tcti": retired.location.tcti.to_string(),
                "handle": retired.location.handle.to_string(),
                "spki": retired.spki.to_hex(),
            })
        });
        (json!(next), json!(retired))
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let state = self.state;
        let mut lines = vec![
            (
                "identity",
                state.leaf.identity.as_str().escape_debug().to_string(),
            ),
            ("key", state.location.to_string()),
            ("spki", state.leaf.spki.to_hex()),
        ];
        if let Some(next) = self.next {
            lines.push((
                "next key",
                format!("{}, not in use yet: see `rotate`", next.location),
            ));
            if let Some((leaf, _)) = &next.certificate {
                lines.push(("next spki", leaf.spki.to_hex()));
            }
        }
        if let Some(retired) = &state.retired {
            let told = "not removed yet: give `rotate --finish` again";
            lines.push(("old key", format!("{}, {told}", retired.location)));
        }
        lines
    }
}

fn print_all(
    dir: &StateDir,
    key: &KeyShown<'_>,
    running: Option<&Entrance>,
    live: Option<&Live>,
    as_json: bool,
) -> Result<(), OutputError> {
    // Without the token.
    let address = running.map(|entrance| entrance.reachable().to_string());
    let state = key.state;
    if as_json {
        let (next, retired) = key.json();
        return print_json(&json!({
            "identity": state.leaf.identity.as_str(),
            "spki": state.leaf.spki.to_hex(),
            "tcti": state.location.tcti.to_string(),
            "handle": state.location.handle.to_string(),
            "next": next,
            "retired": retired,
            "certificate_file": dir.certificate_path(),
            "running": running.is_some(),
            "proxy": address,
            "url_file": running.map(|_| dir.url_path()),
            "live": live,
        }));
    }
    let mut lines = key.lines();
    lines.push(("certificate", dir.certificate_path().display().to_string()));
    match address {
        None => lines.push(("proxy", "not running".to_owned())),
        Some(address) => {
            lines.push(("proxy", address));
            lines.push(("proxy url", dir.url_path().display().to_string()));
        }
    }
    if let Some(live) = live {
        lines.extend(live_lines(live, unix_seconds(SystemTime::now())));
    }
    let text = lines.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{name:<15} {value}");
        text
    });
    print(&text)
}

fn live_lines(live: &Live, now: u64) -> Vec<(&'static str, String)> {
    let handshake = live.last_handshake.map(|at| time(at, now));
    let mut lines = vec![
        ("gateway", live.gateways.join(", ")),
        ("connections", live.connections.to_string()),
        (
            "tunnels",
            format!("{} of {}", live.tunnels, live.max_tunnels),
        ),
        (
            "last handshake",
            handshake.unwrap_or_else(|| "never".to_owned()),
        ),
    ];
    if let Some(failure) = &live.last_failure {
        let told = format!("{}: {}", time(failure.at, now), failure.error);
        lines.push(("last failure", told));
    }
    lines
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
