//! What a user at the terminal is asked: to agree before something is done that can't be taken
//! back, and for PINs.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use tpm::Pin;
use zeroize::Zeroizing;

use crate::failure::{Failure, PinFailure};
use crate::interruption;
use crate::terminal::escape;

/// Room for any PIN, so that a longer line isn't copied about as it grows.
const LINE_BYTES: usize = 4096;

/// Makes sure that there is a user who can be asked.
pub(crate) fn must_be_askable() -> Result<(), Failure> {
    if is_askable() {
        Ok(())
    } else {
        Err(Failure::NobodyToAsk)
    }
}

pub(crate) fn is_askable() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Returns once the user has said yes.
pub(crate) fn ask(question: &str) -> Result<(), Failure> {
    must_be_askable()?;
    let _asking = interruption::asking();
    match answer(&format!("{question} [y/N] ")) {
        Ok(Some(answer)) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::Declined),
    }
}

/// A PIN that the user types, unseen; `None` if there is nobody to ask or no PIN came.
pub(crate) fn ask_pin(what: &str) -> Result<Option<Pin>, Failure> {
    if !is_askable() {
        return Ok(None);
    }
    let _asking = interruption::asking_unseen();
    let typed = answer(&format!("{what}: "));
    // The terminal didn't show the end of the line either.
    let _ = writeln!(io::stderr());
    match typed {
        Ok(Some(typed)) => typed
            .parse()
            .map(Some)
            .map_err(|error| PinFailure::Typed(error).into()),
        Ok(None) | Err(_) => Ok(None),
    }
}

/// The PIN that a key is to have that is made now, typed twice.
pub(crate) fn ask_new_pin(what: &str) -> Result<Pin, Failure> {
    let first = ask_pin(&format!("new PIN for {what}"))?.ok_or(PinFailure::Missing)?;
    let second = ask_pin("the same again")?.ok_or(PinFailure::Missing)?;
    if first == second && !first.is_empty() {
        Ok(first)
    } else {
        Err(PinFailure::Differ.into())
    }
}

/// One line without its end; `None` if the input ends before it begins.
fn answer(question: &str) -> io::Result<Option<Zeroizing<String>>> {
    // Not locked while it waits: an interruption is told there.
    io::stderr().write_all(escape(question).as_bytes())?;
    let mut line = Zeroizing::new(String::with_capacity(LINE_BYTES));
    if io::stdin().lock().read_line(&mut line)? == 0 {
        return Ok(None);
    }
    while line.ends_with(['\n', '\r']) {
        line.pop();
    }
    Ok(Some(line))
}
