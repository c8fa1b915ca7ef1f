//! Ctrl-C, at any moment: the user is told what it means for the registry, and the terminal shows
//! again what is typed.
//!
//! A thread of its own waits for it, because the one that works may be waiting for a TPM or for
//! an answer. The process then ends as if by the signal itself. That also ends the connection to
//! the database, which takes back what was not committed.

use std::io;
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::failure::Failure;
use crate::terminal::say;

/// The question that waits for an answer.
static ASKED: Mutex<Option<Question>> = Mutex::new(None);

struct Question {
    /// What the terminal was like before it hid what is typed.
    before: Option<Termios>,
}

fn asked() -> MutexGuard<'static, Option<Question>> {
    ASKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on an interruption is told.
pub(crate) fn heed() -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(Failure::Runtime)?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                end(signal);
            }
        })
        .map_err(Failure::Runtime)?;
    Ok(())
}

fn end(signal: i32) {
    // Kept: what was asked must not go on.
    let mut asked = asked();
    let hint = if asked.is_some() {
        "nothing was changed"
    } else {
        "a change is made as a whole or not at all: `agent-gateway-registry list` shows which"
    };
    restore(asked.take());
    // The terminal shows ^C where the cursor was.
    let _ = io::Write::write_all(&mut io::stderr(), b"\n");
    say("error", "interrupted");
    say("hint", hint);
    let _ = emulate_default_handler(signal);
    process::abort();
}

fn restore(asked: Option<Question>) {
    if let Some(terminal) = asked.and_then(|question| question.before) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &terminal);
    }
}

/// Lasts for as long as a question waits for its answer.
pub(crate) struct Asking(());

impl Drop for Asking {
    fn drop(&mut self) {
        restore(asked().take());
    }
}

/// A question begins; nothing was changed until it is answered.
pub(crate) fn asking() -> Asking {
    *asked() = Some(Question { before: None });
    Asking(())
}

/// As [`asking`], and the terminal doesn't show what is typed.
pub(crate) fn asking_unseen() -> Asking {
    let mut asked = asked();
    let before = tcgetattr(io::stdin()).ok();
    if let Some(terminal) = &before {
        let mut unseen = terminal.clone();
        unseen.local_modes -= LocalModes::ECHO;
        // `Flush`: what was typed before the question is no answer to it.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &unseen);
    }
    *asked = Some(Question { before });
    Asking(())
}
