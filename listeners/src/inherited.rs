//! Sockets that were open when the process began (`LISTEN_FDS`, `sd_listen_fds(3)`).

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

/// The sockets that were handed over, until each has been taken.
#[derive(Debug, Default)]
pub struct Inherited {
    tcp: Vec<TcpListener>,
    unix: Vec<UnixListener>,
}

/// Why what was handed over can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// Not a socket that takes connections.
    #[error("file descriptor {0}, which was passed in LISTEN_FDS, is no listening stream socket")]
    NotListening(usize),
    /// The configuration names another address.
    #[error("a socket that listens at {0} was passed in LISTEN_FDS, but is not configured")]
    Unclaimed(String),
    /// The operating system refuses.
    #[error("a socket that was passed in LISTEN_FDS can't be used: {0}")]
    Io(#[from] io::Error),
}

/// The first file descriptor that is passed.
const FIRST: usize = 3;

impl Inherited {
    /// Takes what was passed to this process. Changes the environment, so that no child takes it for
    /// its own: to be called while the process has a single thread.
    pub fn from_env() -> Result<Self, InheritedError> {
        let mut passed = ListenFd::from_env();
        let mut inherited = Self::default();
        for index in 0..passed.len() {
            let none = InheritedError::NotListening(FIRST + index);
            // Each fails on a socket of the other kind, and leaves it there.
            let listens = if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
                listener.set_nonblocking(true)?;
                let listens = socket_acceptconn(&listener).unwrap_or(false);
                inherited.tcp.push(listener);
                listens
            } else if let Ok(Some(listener)) = passed.take_unix_listener(index) {
                listener.set_nonblocking(true)?;
                let listens = socket_acceptconn(&listener).unwrap_or(false);
                inherited.unix.push(listener);
                listens
            } else {
                false
            };
            if !listens {
                return Err(none);
            }
        }
        Ok(inherited)
    }

    /// The one that listens at `address`; it doesn't block.
    pub fn tcp(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let there = |listener: &TcpListener| listener.local_addr().is_ok_and(|at| at == address);
        let index = self.tcp.iter().position(there)?;
        Some(self.tcp.swap_remove(index))
    }

    /// The one that listens at `path`; it doesn't block.
    pub fn unix(&mut self, path: &Path) -> Option<UnixListener> {
        let there = |listener: &UnixListener| {
            listener
                .local_addr()
                .is_ok_and(|at| at.as_pathname() == Some(path))
        };
        let index = self.unix.iter().position(there)?;
        Some(self.unix.swap_remove(index))
    }

    /// That nothing is left: a socket that nobody serves would keep its clients waiting.
    pub fn all_taken(&self) -> Result<(), InheritedError> {
        if let Some(listener) = self.tcp.first() {
            return Err(InheritedError::Unclaimed(
                listener.local_addr()?.to_string(),
            ));
        }
        if let Some(listener) = self.unix.first() {
            let address = listener.local_addr()?;
            let path = address.as_pathname().unwrap_or(Path::new("(no path)"));
            return Err(InheritedError::Unclaimed(path.display().to_string()));
        }
        Ok(())
    }
}
