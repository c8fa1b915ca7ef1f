//! Transcripts: what commands print and how they end, kept in a file for people to read, and
//! compared with what they do now.
//!
//! In the file a line `$ COMMAND` is a command for a shell, the lines `# …` before it say what it
//! shows, and the indented lines after it are its output, both streams in their order. Its exit
//! status follows as `[STATUS]` unless it is 0. What differs from run to run (times, ids, keys,
//! ports) is replaced by something of the same length.
//!
//! `UPDATE_TRANSCRIPTS=1` rewrites the files instead: a new command is added by its line alone.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use regex::Regex;

/// What differs from run to run, and what stands for it.
const VARYING: [(&str, &str); 9] = [
    (
        r"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z",
        "YYYY-MM-DDThh:mm:ss.ffffffZ",
    ),
    (
        r"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ",
        "YYYY-MM-DDThh:mm:ssZ",
    ),
    (r"\((?:now|\d+ s ago)\)", "(N s ago)"),
    (r"\brevoked (?:now|\d+ s ago)\b", "revoked N s ago"),
    (
        r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b",
        "01234567-89ab-cdef-0123-456789abcdef",
    ),
    (r"\b[0-9a-f]{64,}\b", "HEX"),
    (r"…[0-9a-f]{16}\b", "…0123456789abcdef"),
    (r"\bport=\d+", "port=PORT"),
    (r"\b\d+ ms\b", "N ms"),
];

/// Runs the commands of `file`, each as `shell` makes it of its line; fails where the transcript
/// differs.
pub fn replay(file: &Path, shell: impl Fn(&str) -> Command) -> Result<()> {
    let kept = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let varying = VARYING.map(|(pattern, instead)| (Regex::new(pattern), instead));
    let mut seen: Vec<String> = Vec::new();
    for line in kept.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            seen.push(line.to_owned());
            let mut output = run(shell(command)).with_context(|| command.to_owned())?;
            for (pattern, instead) in &varying {
                let pattern = pattern.as_ref().map_err(Clone::clone)?;
                output = pattern.replace_all(&output, *instead).into_owned();
            }
            let lines = output.lines();
            seen.extend(lines.map(|line| format!("  {line}").trim_end().to_owned()));
            seen.push(String::new());
        } else if line.starts_with('#') {
            seen.push(line.to_owned());
        }
    }
    let seen = seen.join("\n") + "\n";
    if std::env::var_os("UPDATE_TRANSCRIPTS").is_some() {
        return fs::write(file, seen).context("write the transcript");
    }
    if let Some((number, kept, seen)) = difference(&kept, &seen) {
        bail!(
            "{}:{number}: the transcript says\n{kept}\nbut this is printed now:\n{seen}\n\
             if that is right: UPDATE_TRANSCRIPTS=1",
            file.display()
        );
    }
    Ok(())
}

fn run(mut command: Command) -> Result<String> {
    let output = command.output()?;
    let mut text = String::from_utf8(output.stdout)?;
    match output.status.code() {
        Some(0) => {}
        Some(status) => text = format!("{text}[{status}]\n"),
        None => bail!("ended by {}", output.status),
    }
    Ok(text)
}

/// The first line that differs.
fn difference<'a>(kept: &'a str, seen: &'a str) -> Option<(usize, &'a str, &'a str)> {
    let (mut kept, mut seen) = (kept.lines(), seen.lines());
    (1..).find_map(|number| match (kept.next(), seen.next()) {
        (None, None) => Some(None),
        (kept, seen) if kept == seen => None,
        (kept, seen) => Some(Some((number, kept.unwrap_or(""), seen.unwrap_or("")))),
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replayed(kept: &str, command: &str) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("transcript");
        fs::write(&file, kept)?;
        replay(&file, |_| {
            let mut shell = Command::new("sh");
            shell.args(["-c", command]);
            shell
        })
    }

    #[test]
    fn transcript_holds_output_and_status_and_not_what_varies() {
        let kept = "# Fails.\n$ x\n  at YYYY-MM-DDThh:mm:ssZ (N s ago)\n\n  two\n  [3]\n\n";
        for time in [
            "2026-11-25T04:20:00Z (now)",
            "2031-01-01T00:00:00Z (12 s ago)",
        ] {
            let command = format!("printf 'at {time}\\n\\ntwo\\n'; exit 3");
            replayed(kept, &command).unwrap();
        }
        let error = replayed(kept, "echo 'at 2026-11-25T04:20:00Z'").unwrap_err();
        assert!(
            error.to_string().contains(":3: the transcript says"),
            "{error}"
        );
        assert!(replayed(kept, "exit 3").is_err());
    }
}
