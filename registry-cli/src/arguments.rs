//! What the command line names, read into types that can't be wrong.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use permission::{Destination, Id};

use crate::failure::Failure;
use crate::terminal::say;

/// Reads an id; `what` says whose.
pub(crate) fn id(what: &'static str, text: &str) -> Result<Id, Failure> {
    Id::parse(text).map_err(|source| Failure::Id { what, source })
}

/// Reads a destination as typed. An international name is taken by its ASCII form, which is told.
pub(crate) fn destination(text: &str) -> Result<Destination, Failure> {
    let ascii = ascii_form(text);
    let typed = ascii.as_deref().unwrap_or(text);
    let read = Destination::from_user_input(typed).map_err(|source| Failure::Destination {
        text: text.to_owned(),
        source,
    })?;
    if ascii.is_some() {
        say("note", &format!("{} is {read}", text.trim()));
    }
    Ok(read)
}

/// `xn--bcher-kva:8443` of `bücher:8443` (UTS 46, non-transitional, STD 3 rules). Only where that
/// is needed: what merely looks like ASCII, such as full-width digits, stays refused.
fn ascii_form(text: &str) -> Option<String> {
    let text = text.trim();
    if text.is_ascii() {
        return None;
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    for label in host.split('.').filter(|label| !label.is_ascii()) {
        let ascii = idna::domain_to_ascii_strict(label).ok()?;
        if !ascii.starts_with("xn--") || ascii.contains('.') {
            return None;
        }
    }
    let host = idna::domain_to_ascii_strict(host).ok()?;
    Some(port.map_or(host.clone(), |port| format!("{host}:{port}")))
}

/// Reads destinations as typed; two spellings of one count once.
pub(crate) fn destinations(texts: &[String]) -> Result<Vec<Destination>, Failure> {
    let mut read = Vec::new();
    for text in texts {
        let destination = destination(text)?;
        if !read.contains(&destination) {
            read.push(destination);
        }
    }
    Ok(read)
}

/// Reads a file; `None` if it is longer than that.
pub(crate) fn file(path: &Path, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= max_bytes).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn international_names_are_taken_by_their_ascii_form() {
        for (typed, expected) in [
            ("bücher.example", "xn--bcher-kva.example:443"),
            (" BÜCHER.Example:8443 ", "xn--bcher-kva.example:8443"),
            ("straße.example", "xn--strae-oqa.example:443"),
            ("例え.テスト", "xn--r8jz45g.xn--zckzah:443"),
        ] {
            assert_eq!(destination(typed).unwrap().to_string(), expected, "{typed}");
        }
    }

    #[test]
    fn what_only_looks_like_ascii_is_refused() {
        for typed in [
            "ｄｏｃｓｔｏｒｅ",
            "１２７.0.0.1",
            "bücher。example",
            "docstore．example",
            "bücher@example",
            "bü cher",
            "bücher/x",
            "bücher.",
            "bücher:４４３",
            "bücher:0",
            "bücher.127",
            "ℂ.example",
            "a\u{200d}b",
            "\u{202e}b",
            "[bücher]",
        ] {
            let read = destination(typed);
            assert!(
                matches!(read, Err(Failure::Destination { .. })),
                "{typed}: {read:?}"
            );
        }
    }
}
