//! The way to the gateway: HTTP/2 CONNECT streams over few mTLS connections.

mod address;
mod avoided;
mod call;
mod connection;
mod connector;
mod heard;
mod pool;
mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use http::uri::Authority;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use tokio::time::{Instant, timeout, timeout_at};

pub use self::address::{GatewayAddress, ParseGatewayAddressError};
use self::connection::Slot;
pub use self::connector::{ConnectError, Connector};
use self::pool::Pool;
pub(crate) use self::pool::Way;
pub use self::tunnel::Tunnel;
pub(crate) use self::tunnel::{Cut, Downstream, Upstream};

/// Most bytes of a refusal's body that are handed on.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;

/// How long a refusal's body may take, once its head is there.
const REFUSAL_BODY_WAIT: Duration = Duration::from_secs(1);

/// How long a tunnel waits for a connection. Longer than one attempt to connect takes, so that
/// the cause of a failure is known.
const CONNECTION_WAIT: Duration = Duration::from_secs(12);

/// How often a tunnel is asked for, if new connections keep breaking under the question.
const ATTEMPTS: usize = 3;

/// The gateway, as tunnels see it.
#[derive(Debug)]
pub struct Gateway {
    pool: Arc<Pool>,
    open_timeout: Duration,
}

/// The gateway's answer to a CONNECT.
#[derive(Debug)]
pub enum Answer {
    /// 2xx: bytes flow. The headers as received.
    Open(Tunnel, HeaderMap),
    /// Any other status.
    Refuse(Refusal),
}

/// A final answer other than 2xx.
#[derive(Debug)]
pub struct Refusal {
    /// Never 2xx or 1xx.
    pub status: StatusCode,
    /// As received.
    pub headers: HeaderMap,
    /// The first 64 KiB of what came within a second.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no connection to the gateway.
    #[error(transparent)]
    NotConnected(#[from] Arc<ConnectError>),
    /// Connections broke before the answer, each time anew.
    #[error("the connection to the gateway broke before it answered")]
    Interrupted,
    /// The gateway reset the stream.
    #[error("the gateway reset the request: {0}")]
    Reset(Reason),
    /// No answer in time.
    #[error("the gateway did not answer within {0:?}")]
    TimedOut(Duration),
}

impl Gateway {
    /// Connects when first asked; tunnels that aren't open after `open_timeout` are given up.
    pub fn new(connector: Connector, open_timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            pool: Arc::new(Pool::new(connector)),
            open_timeout,
        })
    }

    /// Begins to connect, so that the first tunnel is quick and a fault is in the log early.
    pub fn connect_early(&self) {
        self.pool.connect_early();
    }

    /// Further tunnels go over new connections; those that are open go on.
    pub(crate) fn renew(&self) {
        self.pool.renew();
    }

    /// Makes sure that there is a connection with room on it.
    pub(crate) async fn reach(&self) -> Result<(), Arc<ConnectError>> {
        self.pool.slot().await.map(drop)
    }

    /// How the way to the gateway is.
    pub(crate) fn way(&self) -> Way {
        self.pool.way()
    }

    /// Asks for a tunnel to `authority`, which is sent as it is: the service judges it.
    ///
    /// No byte of the client is sent before the answer, so asking again after a broken connection
    /// does no harm.
    pub async fn open(
        &self,
        authority: &Authority,
        headers: &HeaderMap,
    ) -> Result<Answer, OpenError> {
        let deadline = Instant::now() + self.open_timeout;
        let known = self.pool.newest();
        let mut failures = 0;
        while failures < ATTEMPTS {
            let wait_until = deadline.min(Instant::now() + CONNECTION_WAIT);
            let mut slot = timeout_at(wait_until, self.pool.slot())
                .await
                .unwrap_or_else(|_| Err(Arc::new(ConnectError::TimedOut)))?;
            let connection = slot.connection();
            match timeout_at(deadline, ask(&mut slot, authority, headers)).await {
                Err(_) => return Err(OpenError::TimedOut(self.open_timeout)),
                Ok(Ok((response, send))) => return Ok(answer(response, send, slot).await),
                Ok(Err(error)) => match error.reason().filter(|_| error.is_reset()) {
                    // "Not processed", RFC 9113, section 8.7.
                    Some(Reason::REFUSED_STREAM) => failures += 1,
                    Some(reason) => return Err(OpenError::Reset(reason)),
                    None => {
                        tracing::debug!(%error, "connection to the gateway lost");
                        self.pool.discard(connection);
                        // A gateway that stops takes all its connections along at once: each is
                        // met once, and gone.
                        failures += usize::from(connection > known);
                    }
                },
            }
        }
        Err(OpenError::Interrupted)
    }
}

/// Sends the request, and waits for the head of the answer.
async fn ask(
    slot: &mut Slot,
    authority: &Authority,
    headers: &HeaderMap,
) -> Result<(Response<RecvStream>, SendStream<Bytes>), h2::Error> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = Uri::from(authority.clone());
    *request.headers_mut() = headers.clone();
    let (response, send) = slot.send(request).await?;
    Ok((response.await?, send))
}

async fn answer(response: Response<RecvStream>, send: SendStream<Bytes>, slot: Slot) -> Answer {
    let (head, mut receive) = response.into_parts();
    if head.status.is_success() {
        return Answer::Open(Tunnel::new(send, receive, slot), head.headers);
    }
    let mut body = BytesMut::new();
    // A body that stalls or breaks off is still worth showing, and the status all the more.
    let _ = timeout(
        REFUSAL_BODY_WAIT,
        read_refusal_body(&mut receive, &mut body),
    )
    .await;
    Answer::Refuse(Refusal {
        status: head.status,
        headers: head.headers,
        body: body.freeze(),
    })
}

/// Reads up to the body's end or the limit.
async fn read_refusal_body(receive: &mut RecvStream, body: &mut BytesMut) {
    while let Some(Ok(data)) = receive.data().await {
        let room = MAX_REFUSAL_BYTES - body.len();
        body.extend_from_slice(data.get(..room).unwrap_or(&data));
        if body.len() == MAX_REFUSAL_BYTES {
            break;
        }
        // Fails only if more is released than was received.
        let _ = receive.flow_control().release_capacity(data.len());
    }
}
