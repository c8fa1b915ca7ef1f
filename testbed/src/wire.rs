//! A TCP connection between two parts that a test can interrupt, as a broken network does: neither
//! end is told anything.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// Leads to one address; ends, with its connections, when dropped.
#[derive(Debug)]
pub struct Wire {
    addr: SocketAddr,
    flow: watch::Sender<Flow>,
    /// Of its own: a test may wait, on its only thread, for parts that need the wire.
    carrier: Option<Runtime>,
}

/// What becomes of bytes, and of new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// They arrive.
    Through,
    /// They arrive when this ends.
    Held,
    /// They never arrive, nor anything further on a connection that lost some.
    Lost,
}

impl Wire {
    /// Leads to `target`.
    pub async fn to(target: SocketAddr) -> Result<Wire> {
        // Not a port of the kernel's choice: whoever connects again and again, while nobody
        // listens, would in time get such a port as its own.
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, crate::free_port()?));
        Self::at(addr, target).await
    }

    /// Leads from exactly this address to `target`.
    pub async fn at(addr: SocketAddr, target: SocketAddr) -> Result<Wire> {
        let carrier = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let (flow, seen) = watch::channel(Flow::Through);
        let (bound, listens) = oneshot::channel();
        carrier.spawn(async move {
            let listener = TcpListener::bind(addr).await;
            let listener = match listener {
                Ok(listener) => listener,
                Err(error) => return drop(bound.send(Err(error))),
            };
            let _ = bound.send(Ok(()));
            carry(listener, target, seen).await;
        });
        listens.await??;
        Ok(Wire {
            addr,
            flow,
            carrier: Some(carrier),
        })
    }

    /// Where it begins.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Holds all bytes, and new connections, until [`Wire::restore`].
    pub fn hold(&self) {
        self.flow.send_replace(Flow::Held);
    }

    /// Loses all bytes until [`Wire::restore`]; connections that lost some stay silent for good.
    pub fn lose(&self) {
        self.flow.send_replace(Flow::Lost);
    }

    /// Carries again.
    pub fn restore(&self) {
        self.flow.send_replace(Flow::Through);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(carrier) = self.carrier.take() {
            carrier.shutdown_background();
        }
    }
}

async fn carry(listener: TcpListener, target: SocketAddr, flow: watch::Receiver<Flow>) {
    // Dropped with this task, which ends the connections.
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let mut flow = flow.clone();
        connections.spawn(async move {
            // The kernel accepted, as it does for a program that hangs.
            let through = flow.wait_for(|flow| *flow == Flow::Through).await.is_ok();
            let Ok(far) = TcpStream::connect(target).await else {
                return;
            };
            if through {
                join(near, far, &flow).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Carries both directions, until either breaks.
async fn join(near: TcpStream, far: TcpStream, flow: &watch::Receiver<Flow>) {
    for stream in [&near, &far] {
        // Delays of its own would be taken for those of the parts it joins.
        let _ = stream.set_nodelay(true);
    }
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let _ = tokio::try_join!(
        forward(near_in, far_out, flow.clone()),
        forward(far_in, near_out, flow.clone())
    );
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut flow: watch::Receiver<Flow>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        let carried = flow.wait_for(|flow| *flow != Flow::Held).await;
        if !carried.is_ok_and(|flow| *flow == Flow::Through) {
            // What comes after a gap would be taken for something else.
            std::future::pending::<()>().await;
        }
        let bytes = buffer.get(..length).unwrap_or_default();
        if bytes.is_empty() {
            return to.shutdown().await;
        }
        to.write_all(bytes).await?;
    }
}
