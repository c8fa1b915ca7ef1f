//! Canonical JSON (RFC 8785) of what records hold, and the form of their lines.
//!
//! Records hold no fractions, so the hard part of the RFC doesn't occur: other numbers than
//! integers that every JSON library reads alike are refused.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// 2^53 - 1: the largest integer that a double holds as exactly itself.
pub(crate) const MAX_INTEGER: u64 = (1 << 53) - 1;

/// Holds what has no canonical form here: a fraction, or an integer that some would round.
#[derive(Debug)]
pub(crate) struct NotCanonical;

/// Appends a string (RFC 8785, section 3.2.2.2).
pub(crate) fn text(text: &str, out: &mut String) {
    out.push('"');
    if all(text, |byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        out.push_str(text);
        out.push('"');
        return;
    }
    for part in text.split_inclusive(|c: char| c < ' ' || c == '"' || c == '\\') {
        let mut plain = part.chars();
        let escaped = match plain.next_back() {
            Some('"') => "\\\"",
            Some('\\') => "\\\\",
            Some('\u{8}') => "\\b",
            Some('\t') => "\\t",
            Some('\n') => "\\n",
            Some('\u{c}') => "\\f",
            Some('\r') => "\\r",
            Some(c) if c < ' ' => {
                out.push_str(plain.as_str());
                escape(c, out);
                continue;
            }
            _ => {
                out.push_str(part);
                continue;
            }
        };
        out.push_str(plain.as_str());
        out.push_str(escaped);
    }
    out.push('"');
}

/// Appends members in order; returns where the one named `apart` is, with the comma before it.
pub(crate) fn members(
    object: &Map<String, Value>,
    apart: &str,
    out: &mut String,
) -> Result<Option<(usize, usize)>, NotCanonical> {
    // By UTF-16 code units (section 3.2.3), whatever order the map keeps.
    let mut sorted: Vec<_> = object.iter().collect();
    sorted.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    let mut found = None;
    out.push('{');
    for (number, (key, held)) in sorted.into_iter().enumerate() {
        let start = out.len();
        if number > 0 {
            out.push(',');
        }
        text(key, out);
        out.push(':');
        value(held, out)?;
        if key == apart {
            found = Some((start, out.len()));
        }
    }
    out.push('}');
    Ok(found)
}

fn value(value: &Value, out: &mut String) -> Result<(), NotCanonical> {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => {
            let integer = number.as_i64().ok_or(NotCanonical)?;
            if integer.unsigned_abs() > MAX_INTEGER {
                return Err(NotCanonical);
            }
            // Writing to a String can't fail.
            let _ = write!(out, "{integer}");
        }
        Value::String(held) => text(held, out),
        Value::Array(held) => {
            out.push('[');
            for (number, element) in held.iter().enumerate() {
                if number > 0 {
                    out.push(',');
                }
                self::value(element, out)?;
            }
            out.push(']');
        }
        Value::Object(held) => {
            members(held, "", out)?;
        }
    }
    Ok(())
}

/// Appends JSON in the form of lines: the same, with all but printable ASCII escaped. No name that
/// somebody chose can disguise a line, in a terminal or to a program with other line ends.
pub(crate) fn line(json: &str, out: &mut Vec<u8>) {
    if all(json, |byte| (b' '..=b'~').contains(&byte)) {
        out.extend_from_slice(json.as_bytes());
        return;
    }
    let mut escaped = String::new();
    for c in json.chars() {
        match c {
            ' '..='~' => escaped.push(c),
            _ => escape(c, &mut escaped),
        }
    }
    out.extend_from_slice(escaped.as_bytes());
}

/// Looks at every byte, whatever the first of them are: that is done many at a time.
fn all(text: &str, is: impl Fn(u8) -> bool) -> bool {
    text.bytes().fold(true, |all, byte| all & is(byte))
}

fn escape(c: char, out: &mut String) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        let _ = write!(out, "\\u{unit:04x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(json: &Value) -> String {
        let mut out = String::new();
        value(json, &mut out).unwrap();
        out
    }

    #[test]
    fn it_is_what_another_implementation_of_the_rfc_writes() {
        let strings = [
            "",
            "plain",
            "\"\\/\u{8}\u{9}\u{a}\u{c}\u{d}\u{0}\u{1f}\u{7f}\u{80}",
            "é\u{202e}\u{2028}😀\u{fb33}",
            "\n\n",
            "end\\",
        ];
        let mut random = fastrand::Rng::with_seed(1);
        let random = (0..1000).map(|_| {
            let length = random.usize(0..20);
            (0..length).map(|_| random.char(..)).collect::<String>()
        });
        for text in strings.map(str::to_owned).into_iter().chain(random) {
            // U+FB33 sorts after an emoji's surrogates, and before it as a code point.
            let json = serde_json::json!({
                "\u{fb33}": [text, null, true, false], "😀": {"b": -1, "a": MAX_INTEGER}, &text: 0,
            });
            let theirs = serde_json_canonicalizer::to_string(&json).unwrap();
            assert_eq!(ours(&json), theirs);
        }
    }

    #[test]
    fn numbers_that_are_read_in_two_ways_are_refused() {
        for text in [
            "0.5",
            "1e3",
            "9007199254740992",
            "-9007199254740992",
            "18446744073709551615",
        ] {
            let json: Value = serde_json::from_str(text).unwrap();
            assert!(value(&json, &mut String::new()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_line_is_printable_ascii_and_says_the_same() {
        let json = ours(&"a\u{202e}\u{7f}\u{2028}😀\u{0}é".into());
        let mut bytes = Vec::new();
        line(&json, &mut bytes);
        assert!(bytes.iter().all(|byte| (b' '..=b'~').contains(byte)));
        let back: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(ours(&back), json);
    }
}
