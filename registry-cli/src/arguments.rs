//! What the command line names, read into types that can't be wrong.

use permission::{Destination, Id};

use crate::failure::Failure;

/// Reads an id; `what` says whose.
pub(crate) fn id(what: &'static str, text: &str) -> Result<Id, Failure> {
    Id::parse(text).map_err(|source| Failure::Id { what, source })
}

/// Reads a destination as typed.
pub(crate) fn destination(text: &str) -> Result<Destination, Failure> {
    Destination::from_user_input(text).map_err(|source| Failure::Destination {
        text: text.to_owned(),
        source,
    })
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
