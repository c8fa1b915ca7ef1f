//! Accepts connections, a bounded number at a time; further ones wait in the kernel's backlog.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::stream::unfold;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::UCred;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use crate::admin::AdminSocket;

/// Where accepting fails (no file descriptor is left), how long until it is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(AdminSocket),
}

/// Who is at the other end, as the kernel says. With every call on the connection.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    /// Anybody on this machine.
    Tcp,
    /// One who may open the admin socket.
    Unix(UCred),
}

/// An accepted connection, which counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Either<TcpStream, UnixStream>,
    peer: Peer,
    _counted: OwnedSemaphorePermit,
}

impl Listener {
    async fn accept(&self) -> io::Result<(Either<TcpStream, UnixStream>, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection's small answers may be held back");
                }
                Ok((Either::Left(stream), Peer::Tcp))
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
        let connection = Connection {
            stream,
            peer,
            _counted: counted,
        };
        Some((Ok(connection), (listener, free)))
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
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
