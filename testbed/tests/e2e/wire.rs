//! A TCP connection between sidecar and Envoy that can be held up, and whose TLS records are
//! counted.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

pub(crate) struct Wire {
    pub(crate) addr: SocketAddr,
    /// From the sidecar to Envoy.
    pub(crate) up: Arc<Way>,
    /// From Envoy to the sidecar.
    pub(crate) down: Arc<Way>,
    _carrying: JoinSet<()>,
}

/// One direction.
#[derive(Default)]
pub(crate) struct Way {
    held: watch::Sender<bool>,
    slow: AtomicBool,
    /// What came, whether or not it was let through.
    came: watch::Sender<Vec<u8>>,
}

impl Way {
    /// Lets nothing more through.
    pub(crate) fn hold(&self) {
        self.held.send_replace(true);
    }

    pub(crate) fn let_go(&self) {
        self.held.send_replace(false);
    }

    /// Lets 32 KiB through a second.
    pub(crate) fn slow_down(&self) {
        self.slow.store(true, Ordering::Relaxed);
    }

    /// How many TLS records came so far, but for HTTP/2 pings.
    pub(crate) fn records(&self) -> usize {
        // PING is 17 bytes, TLS 1.3 adds a content type and a tag of 16.
        const PING: usize = 17 + 1 + 16;
        let came = self.came.borrow();
        let (mut rest, mut records) = (&came[..], 0);
        while let [_, _, _, high, low, after @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            records += usize::from(length != PING);
            rest = after.get(length..).unwrap_or_default();
        }
        records
    }

    async fn carry(&self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let (mut buffer, mut held) = (vec![0; 64 * 1024], self.held.subscribe());
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let bytes = &buffer[..length];
            self.came.send_modify(|came| came.extend(bytes));
            held.wait_for(|held| !held).await.unwrap();
            for bytes in bytes.chunks(32 * 1024) {
                if self.slow.load(Ordering::Relaxed) {
                    sleep(Duration::from_secs(1)).await;
                }
                if to.write_all(bytes).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Wire {
    pub(crate) async fn to(envoy: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (up, down) = (Arc::<Way>::default(), Arc::<Way>::default());
        let mut carrying = JoinSet::new();
        let (upwards, downwards) = (Arc::clone(&up), Arc::clone(&down));
        carrying.spawn(async move {
            let (sidecar, _) = listener.accept().await.unwrap();
            let envoy = TcpStream::connect(envoy).await.unwrap();
            for stream in [&sidecar, &envoy] {
                stream.set_nodelay(true).unwrap();
            }
            let (from_sidecar, to_sidecar) = sidecar.into_split();
            let (from_envoy, to_envoy) = envoy.into_split();
            tokio::join!(
                upwards.carry(from_sidecar, to_envoy),
                downwards.carry(from_envoy, to_sidecar)
            );
        });
        Self {
            addr,
            up,
            down,
            _carrying: carrying,
        }
    }
}
