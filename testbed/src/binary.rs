//! Finds the project's own programs, as cargo built them beside the tests.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The path of one of the workspace's binaries, of the same build as the running test.
pub fn path(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().context("the running test's own path")?;
    // target/<profile>/deps/<test>, target/<profile>/<binary>
    let profile = test
        .parent()
        .and_then(|deps| deps.parent())
        .context("target folder")?;
    let binary = profile.join(name);
    if !binary.is_file() {
        bail!(
            "{} is not there: run `cargo build --workspace --bins`",
            binary.display()
        );
    }
    Ok(binary)
}
