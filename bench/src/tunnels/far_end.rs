//! What tunnels lead to: it sends or reads as fast as it goes, as a tunnel's first byte says.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The first byte of a tunnel that wants bytes without end.
pub(crate) const SEND: u8 = b's';
/// Anything else is read, and counted.
pub(crate) const READ: u8 = b'r';

/// How much is moved at a time.
pub(crate) const CHUNK: usize = 64 * 1024;

/// A listener on loopback; it ends, with its connections, when dropped.
#[derive(Debug)]
pub(crate) struct FarEnd {
    address: SocketAddr,
    received: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl FarEnd {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let received = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(serve(listener, received.clone()));
        Ok(Self {
            address,
            received,
            task,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes read so far, over all connections.
    pub(crate) fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, received: Arc<AtomicU64>) {
    // Dropped with this task, which ends the connections.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let received = received.clone();
        connections.spawn(async move {
            // A tunnel that ends or breaks shows at its other end.
            let _ = behave(stream, &received).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn behave(mut stream: TcpStream, received: &AtomicU64) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    if stream.read_u8().await? == SEND {
        loop {
            stream.write_all(&buffer).await?;
        }
    }
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        received.fetch_add(length as u64, Ordering::Relaxed);
    }
}
