//! What a service manager is told, if there is one that listens (`NOTIFY_SOCKET`; `Type=notify`).
//!
//! A manager that can't be told is no reason to stop: it has time limits of its own.

use std::io;

use sd_notify::NotifyState;

/// Requests are served from now on.
pub fn ready() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Ready])
}

/// The end has begun.
pub fn stopping() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Stopping])
}
