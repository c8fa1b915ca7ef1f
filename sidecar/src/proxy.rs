//! The local HTTP/1.1 proxy: accepts connections, and hands each CONNECT to a tunnel.

mod answer;
mod client;
mod connect;
mod relay;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use listeners::Inherited;
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::client::Listener;
use self::client::{Client, Peer};
use crate::entrance::Token;
use crate::gateway::Gateway;
use crate::rekey::Rekey;

/// Bounds on a request's header; over it the answer is 431.
const MAX_HEADER_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// How long a client may take to send its header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections beyond the tunnels: those that still ask, and those that are told no.
const SPARE_CONNECTIONS: usize = 128;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// What the kernel keeps of data that a client has yet to read; by itself it would take up to 4 MiB
/// for each.
const SEND_BUFFER: u32 = 256 * 1024;

/// How long open tunnels may go on when told to stop.
const DRAIN_TIME: Duration = Duration::from_secs(3);

/// How long the tunnels that are then cut may take to end.
const CUT_TIME: Duration = Duration::from_millis(500);

/// Pause after a failed accept, so that running out of file descriptors doesn't spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Most local connections at a time, beside so many tunnels.
pub(crate) fn max_connections(max_tunnels: usize) -> usize {
    max_tunnels + SPARE_CONNECTIONS
}

/// The socket that was handed over for `address`, or else a new one.
pub fn listen(address: SocketAddr, inherited: &mut Inherited) -> io::Result<TcpListener> {
    if let Some(listener) = inherited.tcp(address) {
        set_socket_send_buffer_size(&listener, SEND_BUFFER as usize)?;
        return TcpListener::from_std(listener);
    }
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    // Its connections inherit it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The local proxy.
#[derive(Debug, Clone)]
pub struct Proxy(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    gateway: Arc<Gateway>,
    /// What a client must know, unless it is known by itself; `None`: everybody is served.
    token: Option<Token>,
    connections: Arc<Semaphore>,
    tunnels: Arc<Semaphore>,
    max_tunnels: usize,
    rekey: Option<Rekey>,
    /// Everything that must end before the process does.
    tasks: TaskTracker,
    /// Cancelled when tunnels have had their time to end.
    cut: CancellationToken,
}

impl Proxy {
    /// Carries at most `max_tunnels` at once, for those who know the token.
    ///
    /// `rekey` is how those may have it use another key.
    pub fn new(
        gateway: Arc<Gateway>,
        token: Option<Token>,
        max_tunnels: usize,
        rekey: Option<Rekey>,
    ) -> Self {
        Self(Arc::new(Shared {
            gateway,
            token,
            connections: Arc::new(Semaphore::new(max_connections(max_tunnels))),
            tunnels: Arc::new(Semaphore::new(max_tunnels)),
            max_tunnels,
            rekey,
            tasks: TaskTracker::new(),
            cut: CancellationToken::new(),
        }))
    }

    /// Serves until `stop`, then closes the listener. Open tunnels go on: see [`Proxy::drain`].
    pub async fn serve(&self, listener: Listener, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.accept(&listener, &stop) => {}
        }
    }

    /// Lets tunnels end for a short time, and cuts what is left.
    pub async fn drain(&self) {
        let Shared { tasks, cut, .. } = &*self.0;
        tasks.close();
        tracing::info!(connections = tasks.len(), "draining");
        if timeout(DRAIN_TIME, tasks.wait()).await.is_err() {
            cut.cancel();
            let _ = timeout(CUT_TIME, tasks.wait()).await;
        }
    }

    async fn accept(&self, listener: &Listener, stop: &CancellationToken) {
        // The semaphore is never closed.
        while let Ok(permit) = Arc::clone(&self.0.connections).acquire_owned().await {
            match listener.accept().await {
                Ok((client, Peer::Stranger(user))) => {
                    tracing::warn!(user, "refused: the client's user is not let in");
                    client::turn_away(&client);
                }
                Ok((client, peer)) => {
                    let (proxy, stop) = (self.clone(), stop.clone());
                    self.0.tasks.spawn(async move {
                        let permit = Arc::new(permit);
                        if let Err(error) = proxy.serve_client(client, peer, &permit, &stop).await {
                            tracing::debug!(%error, "local connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "can't accept connections");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// One client's connection up to its end, or to its tunnel, which goes on by itself.
    async fn serve_client(
        &self,
        client: Client,
        peer: Peer,
        permit: &connect::ConnectionPermit,
        stop: &CancellationToken,
    ) -> hyper::Result<()> {
        let service = service_fn(|request| async {
            Ok::<_, Infallible>(self.answer(request, peer, Arc::clone(permit)).await)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEADER_BYTES)
            .serve_connection(TokioIo::new(client), service)
            .with_upgrades();
        tokio::pin!(connection);
        tokio::select! {
            ended = &mut connection => return ended,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            ended = connection => ended,
            () = self.0.cut.cancelled() => Ok(()),
        }
    }
}

/// Whether a local client went away, which is its right.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected
    )
}
