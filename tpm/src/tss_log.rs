//! Keeps the TPM's C library from writing to stderr.
//!
//! It logs every failed call in its own format there, among our own lines that say the same. It
//! reads `TSS2_LOG` from the environment of the process, which can't be changed safely while
//! running; so the program starts itself again, once, with the variable set.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

const VARIABLE: &str = "TSS2_LOG";

/// Starts the program again with a silent TSS, unless `TSS2_LOG` is set already.
///
/// If that fails, the only loss is a noisy stderr.
pub fn silence() {
    if env::var_os(VARIABLE).is_some() {
        return;
    }
    let Ok(program) = env::current_exe() else {
        return;
    };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // Returns only if it failed.
    let _ = command.args(arguments).env(VARIABLE, "all+none").exec();
}
