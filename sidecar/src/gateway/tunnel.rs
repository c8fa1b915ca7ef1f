//! One open tunnel: an HTTP/2 stream on which bytes flow both ways.
//!
//! h2 itself and not hyper's upgraded connections, because of how a stream may end. hyper takes
//! `RST_STREAM` with `NO_ERROR` or `CANCEL` for an orderly end, and that is how a gateway cuts a
//! tunnel; and it can't reset a stream, only end it. Either would make data that was cut off look
//! complete.

use std::future::poll_fn;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::connection::Slot;

/// A stream that the gateway answered with 2xx.
#[derive(Debug)]
pub struct Tunnel {
    send: SendStream<Bytes>,
    receive: RecvStream,
    _slot: Slot,
}

/// The gateway reset the stream, or the connection broke.
#[derive(Debug, thiserror::Error)]
#[error("cut by the gateway: {0}")]
pub(crate) struct Cut(#[from] h2::Error);

impl Tunnel {
    pub(super) fn new(send: SendStream<Bytes>, receive: RecvStream, slot: Slot) -> Self {
        Self {
            send,
            receive,
            _slot: slot,
        }
    }

    /// Both directions.
    pub(crate) fn split(&mut self) -> (Upstream<'_>, Downstream<'_>) {
        (Upstream(&mut self.send), Downstream(&mut self.receive))
    }

    /// Ends the tunnel in a way that can't be taken for an orderly end.
    pub(crate) fn reset(mut self) {
        self.send.send_reset(Reason::CANCEL);
    }
}

/// Towards the gateway.
pub(crate) struct Upstream<'a>(&'a mut SendStream<Bytes>);

impl Upstream<'_> {
    /// Sends all of `data`, as fast as the gateway takes it.
    pub(crate) async fn send(&mut self, mut data: Bytes) -> Result<(), Cut> {
        while !data.is_empty() {
            // Reserved for data at hand alone: capacity that idle tunnels hold is taken out of
            // the window that all tunnels of the connection share.
            self.0.reserve_capacity(data.len());
            let room = match poll_fn(|context| self.0.poll_capacity(context)).await {
                Some(room) => room?,
                None => return Err(Cut(Reason::CANCEL.into())),
            };
            if room > 0 {
                self.0
                    .send_data(data.split_to(room.min(data.len())), false)?;
            }
        }
        Ok(())
    }

    /// No more will be sent (`END_STREAM`).
    pub(crate) fn finish(&mut self) -> Result<(), Cut> {
        Ok(self.0.send_data(Bytes::new(), true)?)
    }

    /// Ends when the gateway wants no more.
    pub(crate) async fn cut(&mut self) -> Cut {
        match poll_fn(|context| self.0.poll_reset(context)).await {
            Ok(reason) => Cut(reason.into()),
            Err(error) => Cut(error),
        }
    }
}

/// From the gateway.
pub(crate) struct Downstream<'a>(&'a mut RecvStream);

impl Downstream<'_> {
    /// The next bytes; `None` at the orderly end (`END_STREAM`).
    pub(crate) async fn receive(&mut self) -> Result<Option<Bytes>, Cut> {
        Ok(self.0.data().await.transpose()?)
    }

    /// Lets the gateway send that much more.
    pub(crate) fn consumed(&mut self, bytes: usize) {
        // Fails only if more is released than was received.
        let _ = self.0.flow_control().release_capacity(bytes);
    }
}
