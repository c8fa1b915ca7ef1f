//! What people and scripts get to see: text made safe for a terminal, tables, and results on
//! stdout.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

use permission::Timestamp;
use serde_json::Value;

use crate::failure::Failure;
use crate::validity::relative;

/// What a command has to say, in both forms.
pub(crate) struct Report {
    /// For people; every line is ended.
    pub(crate) text: String,
    /// For scripts.
    pub(crate) json: Value,
}

/// Whether a character could move, hide or reorder what a terminal shows around it: controls,
/// line separators and bidirectional formatting (Unicode Standard Annex 9).
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Text from elsewhere, made safe for a terminal: `\u{202e}` for the character U+202E.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unsafe(character) {
            safe.extend(character.escape_unicode());
        } else {
            safe.push(character);
        }
    }
    safe
}

/// One line of JSON that is as safe on a terminal: in its strings, the only place where they can
/// be, unsafe characters are escaped as RFC 8259, section 7 has it.
pub(crate) fn json_line(json: &Value) -> String {
    let mut line = String::new();
    for character in json.to_string().chars() {
        if is_unsafe(character) {
            // All of them are in the Basic Multilingual Plane. Writing to a String can't fail.
            let _ = write!(line, "\\u{:04x}", u32::from(character));
        } else {
            line.push(character);
        }
    }
    line + "\n"
}

/// Aligns the cells of each column, and escapes them; headings are a row like any other. What is
/// wider than the terminal is laid out as one block for each row.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let width = io::stdout()
        .is_terminal()
        .then(|| rustix::termios::tcgetwinsize(io::stdout()).ok())
        .flatten()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns > 0);
    laid_out(rows, width)
}

fn laid_out(rows: &[Vec<String>], width: Option<usize>) -> String {
    let table = aligned(rows);
    let widest = table.lines().map(|line| line.chars().count()).max();
    match (width, rows.split_first()) {
        (Some(width), Some((headings, rows))) if widest > Some(width) && !rows.is_empty() => {
            let blocks: Vec<String> = rows.iter().map(|row| block(headings, row)).collect();
            blocks.join("\n")
        }
        _ => table,
    }
}

/// A row as lines of heading and cell.
fn block(headings: &[String], row: &[String]) -> String {
    let lines: Vec<_> = headings
        .iter()
        .zip(row)
        .map(|(heading, cell)| vec![heading.clone(), cell.clone()])
        .collect();
    aligned(&lines)
}

fn aligned(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| escape(cell)).collect())
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut widths = vec![0; columns];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A time for people: RFC 3339 to the second, and how far away it is.
pub(crate) fn when(time: Timestamp, now: Timestamp) -> String {
    format!("{} ({})", to_the_second(time), relative(time, now))
}

/// RFC 3339 without the fraction.
pub(crate) fn to_the_second(time: Timestamp) -> String {
    let text = time.to_string();
    match text.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => text,
    }
}

/// Prints a result. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(report: &Report, as_json: bool) -> Result<(), Failure> {
    let json;
    let text = if as_json {
        json = json_line(&report.json);
        &json
    } else {
        &report.text
    };
    write(text).map(drop)
}

/// Whether anybody still reads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    All,
    /// No failure: it has seen enough.
    ReaderGone,
}

/// Writes data to stdout.
pub(crate) fn write(text: &str) -> Result<Written, Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Ok(()) => Ok(Written::All),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Written::ReaderGone),
        Err(error) => Err(Failure::Output(error)),
    }
}

/// Shows something that is safe already on stderr; a closed one can't be helped.
pub(crate) fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// The end of a key in hex: the beginning is the same for all P-256 keys.
pub(crate) fn tail(hex: &str) -> String {
    format!(
        "…{}",
        hex.get(hex.len().saturating_sub(16)..).unwrap_or(hex)
    )
}

/// Says something on stderr, made safe; a closed stderr can't be helped.
pub(crate) fn say(kind: &str, message: &str) {
    let _ = writeln!(io::stderr(), "{kind}: {}", escape(message));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Everything that must not reach a terminal, by code point.
    fn unsafe_characters() -> impl Iterator<Item = char> {
        (0..0x20)
            .chain(0x7f..0xa0)
            .chain([0x61c, 0x200e, 0x200f, 0x2028, 0x2029])
            .chain(0x202a..=0x202e)
            .chain(0x2066..=0x2069)
            .filter_map(char::from_u32)
    }

    #[test]
    fn unsafe_characters_are_escaped_and_others_kept() {
        assert_eq!(
            escape("Ω agent-\u{202e}ahpla\n"),
            "Ω agent-\\u{202e}ahpla\\u{a}"
        );
        for character in unsafe_characters() {
            let expected = format!("a\\u{{{:x}}}b", u32::from(character));
            assert_eq!(escape(&format!("a{character}b")), expected);
        }
    }

    #[test]
    fn json_is_safe_and_means_the_same() {
        let text: String = unsafe_characters().chain("Ω\\\"".chars()).collect();
        let line = json_line(&json!({ "id": text }));
        assert_eq!(escape(line.trim_end()), line.trim_end());
        let read: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read, json!({ "id": text }));
    }

    #[test]
    fn columns_are_aligned_and_cells_escaped() {
        let rows = [["ID", "STATE"], ["a\u{202e}", "x"], ["Ωmega", ""]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "ID         STATE\na\\u{202e}  x\nΩmega\n");
    }

    #[test]
    fn what_is_wider_than_the_terminal_becomes_blocks() {
        let rows = [["ID", "STATE"], ["a", "active"], ["b", "revoked"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        let wide = "ID  STATE\na   active\nb   revoked\n";
        assert_eq!(laid_out(&rows, None), wide);
        assert_eq!(laid_out(&rows, Some(11)), wide);
        assert_eq!(
            laid_out(&rows, Some(10)),
            "ID     a\nSTATE  active\n\nID     b\nSTATE  revoked\n"
        );
        assert_eq!(laid_out(&rows[..1], Some(3)), "ID  STATE\n");
    }
}
