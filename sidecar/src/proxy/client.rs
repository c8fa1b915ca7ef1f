//! Where local clients come from: the loopback port, or a Unix socket on which the kernel says who
//! they are.

use std::io;

use listeners::PrivateSocket;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream, UnixStream, unix};
use tokio_util::either::Either;

/// A local client's connection.
pub(super) type Client = Either<TcpStream, UnixStream>;

/// Where the proxy listens.
#[derive(Debug)]
pub enum Listener {
    /// Anybody on the machine may connect.
    Port(TcpListener),
    /// Only these users' processes are served.
    Socket(PrivateSocket, Vec<u32>),
}

/// What is known of a client before it says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// Any process.
    Unknown,
    /// A process of a user who may act as the agent.
    Trusted,
    /// A process of this user, who may not.
    Stranger(u32),
}

impl Listener {
    pub(super) async fn accept(&self) -> io::Result<(Client, Peer)> {
        match self {
            Self::Port(listener) => {
                let (client, _) = listener.accept().await?;
                client.set_nodelay(true)?;
                Ok((Either::Left(client), Peer::Unknown))
            }
            Self::Socket(socket, users) => {
                let client = socket.accept().await?;
                // As it was when the client connected; what becomes of the process doesn't matter.
                let user = client.peer_cred()?.uid();
                let peer = if users.contains(&user) {
                    Peer::Trusted
                } else {
                    Peer::Stranger(user)
                };
                Ok((Either::Right(client), peer))
            }
        }
    }
}

/// Both directions, to be used at the same time.
pub(super) fn split(
    client: &mut Client,
) -> (
    Either<ReadHalf<'_>, unix::ReadHalf<'_>>,
    Either<WriteHalf<'_>, unix::WriteHalf<'_>>,
) {
    match client {
        Either::Left(client) => {
            let (read, write) = client.split();
            (Either::Left(read), Either::Left(write))
        }
        Either::Right(client) => {
            let (read, write) = client.split();
            (Either::Right(read), Either::Right(write))
        }
    }
}

/// Lets the connection end with a reset: the client must not take it for the end of the data. A
/// Unix socket has no such thing: its client sees an end, which inside TLS is no orderly one.
pub(super) fn reset_when_dropped(client: &Client) {
    if let Either::Left(client) = client {
        // Fails only on a socket that is gone already.
        let _ = client.set_zero_linger();
    }
}

/// Says no to one who may not be here, as far as it can be said without waiting.
pub(super) fn turn_away(client: &Client) {
    const ANSWER: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\n\
        Connection: close\r\n\r\n{\"error\":\"this user may not act as the agent\",\
        \"reason\":\"socket_user_not_allowed\",\
        \"hint\":\"whoever runs the sidecar can name this user with --socket-uid\"}\n";
    let _ = match client {
        Either::Left(client) => client.try_write(ANSWER),
        Either::Right(client) => client.try_write(ANSWER),
    };
}
