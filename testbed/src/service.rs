//! Small TCP services for tunnels to lead to.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// What a service does with each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// Sends back what it reads, as it reads it.
    Echo,
    /// Reads to the end, and only then sends all of it back.
    EchoAtEnd,
    /// Sends these bytes and closes its sending half at once, then reads to the end.
    SayThenListen(Vec<u8>),
    /// Keeps the connection open, reading nothing.
    Silent,
    /// Sends as fast as it is read, without end, and reads nothing.
    Flood,
}

/// A running TCP service; it ends, with its connections, when dropped.
#[derive(Debug)]
pub struct TcpService {
    addr: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// What came in so far. Locked only to add or to look.
#[derive(Debug, Default)]
struct Seen {
    connections: usize,
    flooded: usize,
    received: Vec<u8>,
}

impl TcpService {
    /// Listens on a free port of `ip`, such as any 127.x.y.z.
    pub async fn start(ip: impl Into<IpAddr>, behaviour: Behaviour) -> Result<TcpService> {
        Self::start_at((ip.into(), 0).into(), behaviour).await
    }

    /// Listens on exactly this address.
    pub async fn start_at(addr: SocketAddr, behaviour: Behaviour) -> Result<TcpService> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn(serve(listener, behaviour, seen.clone()));
        Ok(TcpService { addr, seen, task })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections it has accepted.
    pub fn connections(&self) -> usize {
        lock(&self.seen).connections
    }

    /// Waits until it has accepted exactly so many: the kernel lets a client go on before that.
    pub async fn wait_for_connections(&self, expected: usize) -> Result<()> {
        let deadline = Instant::now() + crate::process::PATIENCE;
        while self.connections() != expected {
            if Instant::now() >= deadline {
                bail!("{} connections", self.connections());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Waits until a flood has begun and none of it goes anywhere any more.
    pub async fn wait_until_flood_stands(&self) -> Result<()> {
        let stands = async {
            let mut before = 0;
            loop {
                tokio::time::sleep(Duration::from_millis(300)).await;
                match lock(&self.seen).flooded {
                    now if now > 0 && now == before => return,
                    now => before = now,
                }
            }
        };
        Ok(timeout(crate::process::PATIENCE, stands).await?)
    }

    /// All bytes it has read, over all connections.
    pub fn received(&self) -> Vec<u8> {
        lock(&self.seen).received.clone()
    }

    /// Waits until it has read exactly `expected`.
    pub async fn wait_for(&self, expected: &[u8]) -> Result<()> {
        let deadline = Instant::now() + crate::process::PATIENCE;
        while self.received() != expected {
            if Instant::now() >= deadline {
                bail!(
                    "received {} bytes: {:?}",
                    self.received().len(),
                    self.received()
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

impl Drop for TcpService {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, behaviour: Behaviour, seen: Arc<Mutex<Seen>>) {
    // Dropped with this task, which ends the connections.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        lock(&seen).connections += 1;
        let (behaviour, seen) = (behaviour.clone(), seen.clone());
        connections.spawn(async move {
            // A connection that breaks shows in what the test reads.
            let _ = behave(stream, behaviour, &seen).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn behave(
    mut stream: TcpStream,
    behaviour: Behaviour,
    seen: &Mutex<Seen>,
) -> std::io::Result<()> {
    match &behaviour {
        Behaviour::Silent => std::future::pending().await,
        Behaviour::Flood => loop {
            let sent = stream.write(&[b'x'; 16 * 1024]).await?;
            lock(seen).flooded += sent;
        },
        Behaviour::SayThenListen(words) => {
            stream.write_all(words).await?;
            stream.shutdown().await?;
        }
        Behaviour::Echo | Behaviour::EchoAtEnd => {}
    }
    let mut all = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        let bytes = buffer.get(..length).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        lock(seen).received.extend(bytes);
        match &behaviour {
            Behaviour::Echo => stream.write_all(bytes).await?,
            Behaviour::EchoAtEnd => all.extend(bytes),
            Behaviour::SayThenListen(_) | Behaviour::Silent | Behaviour::Flood => {}
        }
    }
    stream.write_all(&all).await?;
    stream.shutdown().await
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
