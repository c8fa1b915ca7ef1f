//! HTTP servers for tool calls to lead to: honest tools, and others.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Interval, interval};
use tokio_rustls::TlsAcceptor;

use crate::process::PATIENCE;

/// What a tool does with each request, once it has read it.
#[derive(Debug, Clone)]
pub enum Conduct {
    /// Answers 200 with the request's body.
    Echo,
    /// Answers this: status, headers, body.
    Says(u16, Vec<(&'static str, &'static str)>, Vec<u8>),
    /// Never answers.
    Silent,
    /// Answers 200 at once, and then a byte every so often, without end.
    Dribble(Duration),
}

/// A running tool; it ends, with its connections, when dropped.
#[derive(Debug)]
pub struct ToolServer {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    conduct: Arc<Mutex<Conduct>>,
    task: JoinHandle<()>,
}

/// A request that a tool read to its end.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Seen {
    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl ToolServer {
    /// Listens on a free port of `ip`.
    pub async fn start(ip: impl Into<IpAddr>, conduct: Conduct) -> Result<ToolServer> {
        Self::start_at((ip.into(), 0).into(), conduct, None).await
    }

    /// As [`ToolServer::start`], behind TLS.
    pub async fn start_tls(
        ip: impl Into<IpAddr>,
        conduct: Conduct,
        tls: ServerConfig,
    ) -> Result<ToolServer> {
        let tls = TlsAcceptor::from(Arc::new(tls));
        Self::start_at((ip.into(), 0).into(), conduct, Some(tls)).await
    }

    async fn start_at(
        addr: SocketAddr,
        conduct: Conduct,
        tls: Option<TlsAcceptor>,
    ) -> Result<ToolServer> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let conduct = Arc::new(Mutex::new(conduct));
        let tool = Tool {
            seen: seen.clone(),
            conduct: conduct.clone(),
        };
        Ok(ToolServer {
            addr,
            seen,
            conduct,
            task: tokio::spawn(serve(listener, tls, tool)),
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on it does this.
    pub fn conduct(&self, conduct: Conduct) {
        *lock(&self.conduct) = conduct;
    }

    /// All requests that it has read.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.seen).clone()
    }

    /// The only request that it has read.
    pub fn only_seen(&self) -> Result<Seen> {
        match self.seen().as_slice() {
            [only] => Ok(only.clone()),
            seen => bail!("{} requests: {seen:?}", seen.len()),
        }
    }

    /// Waits until it has read so many requests.
    pub async fn wait_for(&self, requests: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.seen().len() < requests {
            if Instant::now() >= deadline {
                bail!("only {:?}", self.seen());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

impl Drop for ToolServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Tool {
    seen: Arc<Mutex<Vec<Seen>>>,
    conduct: Arc<Mutex<Conduct>>,
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, tool: Tool) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, tool) = (tls.clone(), tool.clone());
        connections.spawn(async move {
            // A connection that breaks shows in what the test reads.
            match tls {
                None => tool.converse(stream).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        tool.converse(stream).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

impl Tool {
    async fn converse(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(|request| self.answer(request));
        let _ = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Words>, Infallible> {
        let (parts, body) = request.into_parts();
        let Ok(body) = body.collect().await else {
            return std::future::pending().await;
        };
        let body = body.to_bytes();
        lock(&self.seen).push(Seen {
            method: parts.method.to_string(),
            path: parts.uri.to_string(),
            headers: parts.headers,
            body: body.clone(),
        });
        let conduct = lock(&self.conduct).clone();
        let (status, headers, words) = match conduct {
            Conduct::Echo => (200, Vec::new(), Words::All(Some(body))),
            Conduct::Says(status, headers, body) => {
                (status, headers, Words::All(Some(body.into())))
            }
            Conduct::Silent => return std::future::pending().await,
            Conduct::Dribble(pause) => (200, Vec::new(), Words::OneByOne(interval(pause))),
        };
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(name, value);
        }
        match response.body(words) {
            Ok(response) => Ok(response),
            Err(_) => std::future::pending().await,
        }
    }
}

/// A response's body.
#[derive(Debug)]
enum Words {
    All(Option<Bytes>),
    OneByOne(Interval),
}

impl Body for Words {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::All(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::OneByOne(interval) => interval
                .poll_tick(cx)
                .map(|_| Some(Ok(Frame::data(Bytes::from_static(b"x"))))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::All(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::OneByOne(_) => SizeHint::default(),
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
