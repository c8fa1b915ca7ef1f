//! Asks before something is done that can't be taken back.

use std::io::{self, IsTerminal as _, Write as _};

use crate::failure::Failure;
use crate::terminal::escape;

/// Makes sure that there is a user who can be asked.
pub(crate) fn must_be_askable() -> Result<(), Failure> {
    if io::stdin().is_terminal() && io::stderr().is_terminal() {
        Ok(())
    } else {
        Err(Failure::NobodyToAsk)
    }
}

/// Returns once the user has said yes.
pub(crate) fn ask(question: &str) -> Result<(), Failure> {
    must_be_askable()?;
    let mut stderr = io::stderr().lock();
    let asked = write!(stderr, "{} [y/N] ", escape(question)).and_then(|()| stderr.flush());
    let mut answer = String::new();
    match asked.and_then(|()| io::stdin().read_line(&mut answer)) {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::Declined),
    }
}
