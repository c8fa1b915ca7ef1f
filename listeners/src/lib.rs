//! How our servers come by their sockets: Unix sockets that are their owner's alone, and sockets
//! that a service manager (systemd) opened and hands over; and how the manager learns that they are
//! in use.
//!
//! The configuration says where to listen, whoever opens the socket: what is handed over must be
//! one of the addresses that it names.

#![forbid(unsafe_code)]

mod inherited;
pub mod notify;
mod private_socket;

pub use inherited::{Inherited, InheritedError};
pub use private_socket::{Access, PrivateSocket, SocketError};
