//! A command's result on stdout, and talk on stderr; whoever reads them may have gone.

use std::fmt;
use std::io::{self, Write as _};

use serde_json::Value;

/// The result was not read to its end.
#[derive(Debug, thiserror::Error)]
#[error("the result could not be written: {0}")]
pub struct OutputError(#[from] io::Error);

/// Writes the text to stdout.
pub(crate) fn print(text: &str) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Writes one line of JSON to stdout.
pub(crate) fn print_json(json: &Value) -> Result<(), OutputError> {
    print(&format!("{json}\n"))
}

/// Says a line on stderr, where nobody may listen.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}
