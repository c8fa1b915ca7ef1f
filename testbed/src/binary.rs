//! Finds the project's own programs, as cargo built them beside the tests.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The path of one of the workspace's binaries, of the same build as the running program.
pub fn path(name: &str) -> Result<PathBuf> {
    let running = std::env::current_exe().context("the running program's own path")?;
    let folder = running.parent().context("target folder")?;
    // Tests are in target/<profile>/deps, binaries in target/<profile>.
    let profile = if folder.ends_with("deps") {
        folder.parent()
    } else {
        Some(folder)
    };
    let binary = profile.context("target folder")?.join(name);
    if !binary.is_file() {
        bail!(
            "{} is not there: run `cargo build --workspace --bins`",
            binary.display()
        );
    }
    Ok(binary)
}
