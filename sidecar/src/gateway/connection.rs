//! One HTTP/2 connection to the gateway, and the slots for tunnels on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use http::Request;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::client::TlsStream;

use super::avoided::Avoided;
use super::connector::{ConnectError, tls_error};
use super::heard::{Heard, Listening};

/// Most tunnels on one connection, if the gateway allows as many. Together with [`STREAM_WINDOW`]
/// it bounds the memory that unread tunnels take, to 64 MiB a connection, and stays far below
/// [`CONNECTION_WINDOW`].
const MAX_TUNNELS: usize = 128;

/// How much the gateway may send on a tunnel whose client doesn't read.
///
/// Envoy (1.40) ends a CONNECT stream with a reset when the destination closes first, and drops
/// what it holds beyond this window by then (up to about 100 KiB). The client sees that as a cut,
/// never as an end. A larger window makes it rarer, and costs memory.
const STREAM_WINDOW: u32 = 512 * 1024;

/// The largest there is: a shared window that unread tunnels can use up would freeze the others.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// Header bytes that an answer may have.
const MAX_HEADER_BYTES: u32 = 32 * 1024;

/// How many tunnels that we reset are remembered, and how long. What the gateway had sent on them
/// by then is still to come, and for a stream that h2 has forgotten it counts as an error.
const MAX_RESETS_REMEMBERED: usize = 1024;
const RESET_MEMORY: Duration = Duration::from_secs(30);

/// After how long a ping is sent, and how long the gateway may then say nothing at all: one that
/// is gone without a word is noticed after 10 s, before the tunnels that ask are given up.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that is up, as far as is known.
#[derive(Debug)]
pub(super) struct Connection {
    requests: SendRequest<Bytes>,
    tunnels: Arc<Semaphore>,
    driver: JoinHandle<()>,
}

impl Connection {
    /// Speaks HTTP/2 on a fresh TLS connection. It is up when the gateway has answered a ping:
    /// only then is it known whether it took our certificate (TLS 1.3 tells a client late), and
    /// how many tunnels it allows.
    ///
    /// If `address` falls silent later, others are tried before it.
    pub(super) async fn start(
        tls: TlsStream<TcpStream>,
        address: SocketAddr,
        avoided: Avoided,
    ) -> Result<Self, ConnectError> {
        let (io, heard) = Listening::new(tls);
        let (requests, mut connection) = client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADER_BYTES)
            .max_concurrent_reset_streams(MAX_RESETS_REMEMBERED)
            .reset_stream_duration(RESET_MEMORY)
            // Counted over the connection's life, and its end for all tunnels.
            .max_local_error_reset_streams(None)
            .enable_push(false)
            .handshake(io)
            .await
            .map_err(http2_error)?;
        let mut pings = connection
            .ping_pong()
            .ok_or_else(|| ConnectError::Http2("no pings".to_owned()))?;
        tokio::select! {
            ended = &mut connection => return Err(match ended {
                Err(error) => http2_error(error),
                Ok(()) => ConnectError::Http2("it closed the connection at once".to_owned()),
            }),
            answered = pings.ping(Ping::opaque()) => { answered.map_err(http2_error)?; }
        }
        if requests.current_max_send_streams() == 0 {
            return Err(ConnectError::Http2("it allows no streams".to_owned()));
        }
        let driver = tokio::spawn(async move {
            tokio::select! {
                ended = &mut connection => match ended {
                    Ok(()) => tracing::debug!("connection to the gateway closed"),
                    Err(error) => tracing::info!(%error, "connection to the gateway lost"),
                },
                () = silence(pings, heard) => {
                    tracing::warn!(%address, "the gateway answers no more: connection given up");
                    // Before the tunnels notice, and ask for another connection.
                    avoided.add(address, Instant::now());
                }
            }
        });
        Ok(Self {
            requests,
            tunnels: Arc::new(Semaphore::new(MAX_TUNNELS)),
            driver,
        })
    }

    /// Whether tunnels may still be opened, as far as is known.
    pub(super) fn is_alive(&self) -> bool {
        !self.driver.is_finished()
    }

    /// Room for one more tunnel, if there is any.
    pub(super) fn slot(&self, connection: u64) -> Option<Slot> {
        // More than the gateway allows would wait silently, or, to Envoy, be an attack.
        let limit = self.requests.current_max_send_streams().min(MAX_TUNNELS);
        if MAX_TUNNELS - self.tunnels.available_permits() >= limit {
            return None;
        }
        let permit = Arc::clone(&self.tunnels).try_acquire_owned().ok()?;
        Some(Slot {
            connection,
            requests: self.requests.clone(),
            _permit: permit,
        })
    }
}

/// The right to one tunnel on a connection, until dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    connection: u64,
    requests: SendRequest<Bytes>,
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    /// The connection's number in the pool.
    pub(super) fn connection(&self) -> u64 {
        self.connection
    }

    /// Sends a request whose body stays open.
    pub(super) async fn send(
        &mut self,
        request: Request<()>,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        std::future::poll_fn(|context| self.requests.poll_ready(context)).await?;
        self.requests.send_request(request, false)
    }
}

/// Ends when the gateway leaves a ping unanswered and says nothing else either. While data comes,
/// the answer may just be behind it.
async fn silence(mut pings: PingPong, heard: Heard) {
    loop {
        sleep(PING_INTERVAL).await;
        let pong = pings.ping(Ping::opaque());
        tokio::pin!(pong);
        loop {
            let before = heard.bytes();
            match timeout(PING_TIMEOUT, &mut pong).await {
                Ok(Ok(_)) => break,
                Ok(Err(_)) => return,
                Err(_) if heard.bytes() == before => return,
                Err(_) => {}
            }
        }
    }
}

fn http2_error(error: h2::Error) -> ConnectError {
    if let Some(tls) = error.get_io().and_then(tls_error) {
        return ConnectError::Tls(tls.clone());
    }
    if error.is_io() {
        return match error.into_io() {
            Some(error) => ConnectError::Broken(error),
            None => ConnectError::Http2("unknown failure".to_owned()),
        };
    }
    ConnectError::Http2(error.to_string())
}
