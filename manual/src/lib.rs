//! Shell completions and manual pages, made from what a program says of its command line.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
pub enum ManualError {
    /// Nobody reads on.
    #[error("the result could not be written: {0}")]
    Stdout(io::Error),
    /// The folder can't be written to.
    #[error("can't write to {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Prints the script by which `shell` completes the command.
pub fn completions(mut command: Command, shell: Shell) -> Result<(), ManualError> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(&script).and_then(|()| stdout.flush());
    written.map_err(ManualError::Stdout)
}

/// Writes a page for the command and for each of its subcommands, which people can see.
pub fn pages(command: Command, folder: &Path) -> Result<(), ManualError> {
    let written = fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(command.disable_help_subcommand(true), folder));
    written.map_err(|source| ManualError::Folder {
        path: folder.to_owned(),
        source,
    })
}
