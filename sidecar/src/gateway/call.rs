//! One request with a body, beside the tunnels: it is sent once, whatever happens to it.

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{Request, Response};
use tokio::time::{Instant, timeout_at};

use super::connection::Slot;
use super::{ATTEMPTS, CONNECTION_WAIT, Gateway, OpenError};

/// An answer that is still coming; its connection stays as long as this does.
#[derive(Debug)]
pub(crate) struct Coming {
    pub(crate) response: Response<RecvStream>,
    _slot: Slot,
}

impl Gateway {
    /// Sends `request`, and waits for the head of its answer.
    ///
    /// It is sent again only where the gateway says that it has not looked at it: whatever it
    /// proves may hold once.
    pub(crate) async fn call(
        &self,
        request: &Request<Bytes>,
        deadline: Instant,
    ) -> Result<Coming, OpenError> {
        for _ in 0..ATTEMPTS {
            let wait_until = deadline.min(Instant::now() + CONNECTION_WAIT);
            let slot = timeout_at(wait_until, self.pool.slot()).await;
            let timed_out = |_| OpenError::TimedOut(self.open_timeout);
            let mut slot = slot.map_err(timed_out)??;
            let sent = timeout_at(deadline, send(&mut slot, request)).await;
            match sent.map_err(timed_out)? {
                Ok(response) => {
                    return Ok(Coming {
                        response,
                        _slot: slot,
                    });
                }
                // "Not processed", RFC 9113, section 8.7.
                Err(error) if error.reason() == Some(Reason::REFUSED_STREAM) => {}
                Err(error) => {
                    return Err(match error.reason().filter(|_| error.is_reset()) {
                        Some(reason) => OpenError::Reset(reason),
                        None => OpenError::Interrupted,
                    });
                }
            }
        }
        Err(OpenError::Interrupted)
    }
}

async fn send(
    slot: &mut Slot,
    request: &Request<Bytes>,
) -> Result<Response<RecvStream>, h2::Error> {
    let (head, body) = request.clone().into_parts();
    let (response, mut stream) = slot.send(Request::from_parts(head, ())).await?;
    // As far as the gateway's window doesn't take it, h2 keeps it: all of it is in memory anyway.
    // Where it is refused before it was read, the answer is what counts.
    let _ = stream.send_data(body, true);
    response.await
}
