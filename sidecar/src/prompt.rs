//! Asks a user at the terminal for what must not be seen.
//!
//! The terminal hands over each key as it is typed, Ctrl-C too, so that an interruption finds it as
//! it was before.

use std::io::{self, IsTerminal as _, Write as _};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// Longest answer, in bytes; room for it is there from the start, so that growing leaves no copies.
const MAX_BYTES: usize = 1024;

const CTRL_C: u8 = 0x03;
const CTRL_D: u8 = 0x04;
const CTRL_U: u8 = 0x15;
const BACKSPACE: [u8; 2] = [0x08, 0x7f];

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// By Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// Ctrl-D, or the terminal is gone.
    #[error("nothing was typed")]
    Nothing,
    /// More than fits, or no text.
    #[error("that can't be an answer")]
    Unusable,
    /// The terminal fails.
    #[error("can't ask: {0}")]
    Terminal(#[from] io::Error),
}

/// Whether there is a user who can be asked.
pub(crate) fn is_askable() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// What the user types after `question`, unseen.
pub(crate) fn secret(question: &str) -> Result<Zeroizing<String>, PromptError> {
    let unseen = Unseen::begin()?;
    let asked = write!(io::stderr(), "{question}: ");
    let typed = asked.map_err(PromptError::from).and_then(|()| read_line());
    drop(unseen);
    // The terminal didn't show the end of the line either.
    let _ = writeln!(io::stderr());
    typed
}

/// While it lives, the terminal shows nothing and holds nothing back.
struct Unseen(Termios);

impl Unseen {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut unseen = before.clone();
        unseen.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        // `Flush`: what was typed before the question is no answer to it.
        tcsetattr(io::stdin(), OptionalActions::Flush, &unseen)?;
        Ok(Self(before))
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

fn read_line() -> Result<Zeroizing<String>, PromptError> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_BYTES));
    loop {
        // Not by `Stdin`, whose buffer would keep a copy.
        let mut byte = [0];
        let read = rustix::io::read(io::stdin(), &mut byte).map_err(io::Error::from)?;
        match byte {
            _ if read == 0 => return Err(PromptError::Nothing),
            [CTRL_C] => return Err(PromptError::Interrupted),
            [CTRL_D] if line.is_empty() => return Err(PromptError::Nothing),
            [b'\n' | b'\r'] => break,
            [CTRL_U] => line.clear(),
            [key] if BACKSPACE.contains(&key) => erase_character(&mut line),
            _ if line.len() == MAX_BYTES => return Err(PromptError::Unusable),
            [key] => line.push(key),
        }
    }
    let text = std::str::from_utf8(&line).map_err(|_| PromptError::Unusable)?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// The last one, which in UTF-8 may be several bytes.
fn erase_character(line: &mut Vec<u8>) {
    while let Some(byte) = line.pop() {
        if byte & 0xc0 != 0x80 {
            break;
        }
    }
}
