//! One HTTP/2 connection to the gateway, and the slots for tunnels on it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use http::Request;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;

use super::connector::{ConnectError, tls_error};

/// Most tunnels on one connection. Together with [`STREAM_WINDOW`] it bounds the memory that
/// unread tunnels take: 32 MiB a connection.
const MAX_TUNNELS: usize = 64;

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

/// After how long a ping is sent, and how long its answer may take: a gateway that is gone
/// without a word is noticed after 25 s.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

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
    pub(super) async fn start(tls: TlsStream<TcpStream>) -> Result<Self, ConnectError> {
        let (requests, mut connection) = client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADER_BYTES)
            .enable_push(false)
            .handshake(tls)
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
        let driver = tokio::spawn(drive(connection, pings));
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

/// Moves the bytes until the connection ends, or answers no more.
async fn drive(connection: client::Connection<TlsStream<TcpStream>>, pings: PingPong) {
    tokio::select! {
        ended = connection => match ended {
            Ok(()) => tracing::debug!("connection to the gateway closed"),
            Err(error) => tracing::info!(%error, "connection to the gateway lost"),
        },
        () = silence(pings) => tracing::warn!("the gateway answers no more: connection given up"),
    }
}

/// Ends when the gateway leaves a ping unanswered.
async fn silence(mut pings: PingPong) {
    loop {
        sleep(PING_INTERVAL).await;
        match timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
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
