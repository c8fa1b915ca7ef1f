//! Moves bytes between a local client and its tunnel, and makes sure that each side sees the
//! other's end for what it was: orderly, or cut.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::client::{self, Client};
use crate::gateway::{Cut, Downstream, Tunnel, Upstream};

/// Most bytes read from a client at once.
const READ_BYTES: usize = 32 * 1024;

/// How long a client may take to read what is left for it when the gateway has ended its tunnel,
/// or has cut it.
const REST_WAIT: Duration = Duration::from_hours(1);
const REST_WAIT_WHEN_CUT: Duration = Duration::from_secs(30);

/// How a tunnel ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Both sides said that they were done.
    Orderly,
    /// The client's connection broke.
    Client(io::Error),
    /// The gateway cut it.
    Gateway(Cut),
    /// We were told to stop.
    Stopped,
}

/// A tunnel that was.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) ended: Ended,
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
}

/// Moves bytes until both directions have ended, one breaks, or `stop`.
pub(super) async fn run(
    mut client: Client,
    early: Bytes,
    mut tunnel: Tunnel,
    stop: impl Future<Output = ()>,
) -> Carried {
    let (up, down) = (AtomicU64::new(0), AtomicU64::new(0));
    let ended = {
        let (read, write) = client::split(&mut client);
        let (upstream, downstream) = tunnel.split();
        let both = async {
            tokio::try_join!(
                upload(read, early, upstream, &up),
                download(downstream, write, &down)
            )
        };
        tokio::select! {
            result = both => result.map_or_else(|ended| ended, |_| Ended::Orderly),
            () = stop => Ended::Stopped,
        }
    };
    if !matches!(ended, Ended::Orderly) {
        tunnel.reset();
        client::reset_when_dropped(&client);
    }
    Carried {
        ended,
        bytes_up: up.load(Ordering::Relaxed),
        bytes_down: down.load(Ordering::Relaxed),
    }
}

/// Ends without an error when the gateway wants no more; whether that was a cut, the other
/// direction knows.
async fn upload(
    mut client: impl AsyncRead + Unpin,
    early: Bytes,
    mut upstream: Upstream<'_>,
    sent: &AtomicU64,
) -> Result<(), Ended> {
    let mut data = early;
    let mut buffer = BytesMut::new();
    loop {
        let bytes = data.len() as u64;
        if upstream.send(data).await.is_err() {
            return Ok(());
        }
        sent.fetch_add(bytes, Ordering::Relaxed);
        buffer.reserve(READ_BYTES);
        let read = tokio::select! {
            read = client.read_buf(&mut buffer) => read.map_err(Ended::Client)?,
            _ = upstream.cut() => return Ok(()),
        };
        if read == 0 {
            let _ = upstream.finish();
            return Ok(());
        }
        data = buffer.split().freeze();
    }
}

/// Takes what the gateway sends at once, however slowly the client reads; the gateway may send
/// more when the client has read. Left in h2, bytes that came one by one would take hundreds of
/// times their size in memory, and in the end cost the connection with everybody's tunnels.
async fn download(
    mut downstream: Downstream<'_>,
    mut client: impl AsyncWrite + Unpin,
    received: &AtomicU64,
) -> Result<(), Ended> {
    // At most the stream's window.
    let mut unread = BytesMut::new();
    let ended = loop {
        tokio::select! {
            // All that is there, which the window bounds, before the next write.
            biased;
            data = downstream.receive() => match data {
                Ok(Some(data)) => unread.extend_from_slice(&data),
                Ok(None) => break Ok(()),
                Err(cut) => break Err(Ended::Gateway(cut)),
            },
            written = write_some(&mut client, &mut unread, received), if !unread.is_empty() => {
                downstream.consumed(written.map_err(Ended::Client)?);
            }
        }
    };
    let patience = if ended.is_ok() {
        REST_WAIT
    } else {
        REST_WAIT_WHEN_CUT
    };
    let rest = async {
        while !unread.is_empty() {
            write_some(&mut client, &mut unread, received).await?;
        }
        Ok(())
    };
    let rest = timeout(patience, rest).await;
    ended?;
    rest.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(Ended::Client)?;
    client.shutdown().await.map_err(Ended::Client)
}

/// Writes as much as the client takes now.
async fn write_some(
    client: &mut (impl AsyncWrite + Unpin),
    unread: &mut BytesMut,
    received: &AtomicU64,
) -> io::Result<usize> {
    let written = client.write_buf(unread).await?;
    received.fetch_add(written as u64, Ordering::Relaxed);
    if unread.is_empty() {
        // An idle tunnel keeps no memory.
        *unread = BytesMut::new();
    }
    Ok(written)
}
