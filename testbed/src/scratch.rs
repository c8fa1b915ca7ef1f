//! Temporary folders that vanish with the test process, however it ends.
//!
//! All of them lie in one folder per process. A small shell waits on a pipe from this process and
//! removes that folder at end of file, so neither a panic, a kill nor a static leaves it behind.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use tempfile::TempDir;

struct Root {
    path: PathBuf,
    /// Its closing, by the kernel if need be, is the sweeper's signal.
    _sweeper: ChildStdin,
}

static ROOT: Mutex<Option<Root>> = Mutex::new(None);

/// Retries, because a server may still be writing into the folder while it dies.
const SWEEP: &str = r#"trap '' INT TERM HUP
cat >/dev/null
for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$1" && exit; sleep 0.2; done"#;

/// Makes a folder (mode 0700) that is removed when dropped, or at the latest with this process.
pub fn folder(name: &str) -> Result<TempDir> {
    let mut root = ROOT.lock().unwrap_or_else(PoisonError::into_inner);
    let root = match &mut *root {
        Some(root) => root,
        empty => empty.insert(make_root()?),
    };
    tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .tempdir_in(&root.path)
        .context("make a temporary folder")
}

fn make_root() -> Result<Root> {
    // /tmp and not TMPDIR: the user postgres must get in, and socket paths must stay short.
    let path = tempfile::Builder::new()
        .prefix(&format!("agent-gateway-test-{}-", std::process::id()))
        .tempdir_in("/tmp")
        .context("make a folder in /tmp")?
        .keep();
    // Other users may pass through (postgres does), not look around.
    fs::set_permissions(&path, Permissions::from_mode(0o711))?;
    let sweeper = Command::new("sh")
        .args(["-c", SWEEP, "sweep"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C goes to the tests' group, and must not end the sweeper first.
        .process_group(0)
        .spawn()
        .context("start sh")?;
    let sweeper = sweeper.stdin.context("the sweeper has no stdin")?;
    Ok(Root {
        path,
        _sweeper: sweeper,
    })
}
