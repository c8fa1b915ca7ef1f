//! Accepts connections, a bounded number at a time; further ones wait in the kernel's backlog.

pub(crate) mod tls;
mod wakers;

use std::fmt;
use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::unfold;
use futures::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::UCred;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;

pub(crate) use listeners::PrivateSocket as Socket;
pub use listeners::{Access as SocketMode, SocketError};
pub use tls::TlsError;
pub(crate) use tls::{Reloader, Tls, TlsFiles};
pub(crate) use wakers::Wakers;
use wakers::Waking;

/// Where accepting fails (no file descriptor is left), how long until it is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// Most handshakes at a time; further connections wait for one of them to end.
const MAX_HANDSHAKES: usize = 64;

/// Where connections come from.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(Socket),
}

/// Who is at the other end. With every call on the connection.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    /// Anybody on this machine, or one who has a certificate by the configured CA.
    Tcp(SocketAddr),
    /// One who may open the socket, as the kernel says.
    Unix(UCred),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(user) => write!(f, "uid {}", user.uid()),
        }
    }
}

type Plain = Either<TcpStream, UnixStream>;

/// An accepted connection, which counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Either<Plain, Box<TlsStream<Plain>>>,
    peer: Peer,
    waking: Option<Waking>,
    _counted: OwnedSemaphorePermit,
}

impl Connection {
    /// Lets `wakers` wake it too.
    pub(crate) fn woken_by(self, wakers: &Wakers) -> Self {
        Self {
            waking: Some(wakers.slot()),
            ..self
        }
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<(Plain, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection's small answers may be held back");
                }
                Ok((Either::Left(stream), Peer::Tcp(peer)))
            }
            Self::Unix(socket) => {
                let stream = socket.accept().await?;
                let peer = Peer::Unix(stream.peer_cred()?);
                Ok((Either::Right(stream), peer))
            }
        }
    }
}

/// The connections to `listener`, at most `most` of them at a time. It never ends, nor fails.
pub(crate) fn accept(
    listener: Listener,
    most: usize,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    accepted(listener, most).map(|(stream, peer, counted)| {
        Ok(Connection {
            stream: Either::Left(stream),
            peer,
            waking: None,
            _counted: counted,
        })
    })
}

/// As [`accept`], of those whose handshake succeeds. One under way counts as a connection.
pub(crate) fn accept_tls(
    listener: Listener,
    tls: Tls,
    most: usize,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    accepted(listener, most)
        .map(move |(stream, peer, counted)| {
            let tls = tls.clone();
            async move {
                let stream = tls.handshake(stream, peer).await?;
                Some(Ok(Connection {
                    stream: Either::Right(Box::new(stream)),
                    peer,
                    waking: None,
                    _counted: counted,
                }))
            }
        })
        .buffer_unordered(MAX_HANDSHAKES)
        .filter_map(ready)
}

fn accepted(
    listener: Listener,
    most: usize,
) -> impl Stream<Item = (Plain, Peer, OwnedSemaphorePermit)> + Send {
    let free = Arc::new(Semaphore::new(most));
    unfold((listener, free), async |(listener, free)| {
        let counted = Arc::clone(&free).acquire_owned().await.ok()?;
        let (stream, peer) = loop {
            match listener.accept().await {
                Ok(accepted) => break accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        Some(((stream, peer, counted), (listener, free)))
    })
}
impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Some(waking) = &self.waking {
            waking.reading(cx);
            if buffer.filled().len() > filled {
                waking.has_read();
            }
        }
        read
    }
}

/// Not vectored: of frames up to 1 KiB, as answers are, h2 then gathers as many as are ready and
/// writes them at once, where it would write each by itself.
impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
