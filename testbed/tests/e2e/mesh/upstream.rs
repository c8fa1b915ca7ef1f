//! What is behind a mesh's Envoy: HTTP/1.1, which keeps the headers that reach it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;

type Seen = Arc<Mutex<Vec<HeaderMap>>>;

/// A running server; it takes no more connections when dropped.
pub(super) struct Upstream {
    addr: SocketAddr,
    seen: Seen,
    task: JoinHandle<()>,
}

impl Upstream {
    /// Answers "pages", and at `/endless` something without end.
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Seen::default();
        let keep = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let keep = Arc::clone(&keep);
                let service = service_fn(move |request: Request<Incoming>| {
                    keep.lock().unwrap().push(request.headers().clone());
                    let body = body(request.uri().path());
                    async move { Ok::<_, Infallible>(Response::new(body)) }
                });
                let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(served);
            }
        });
        Self { addr, seen, task }
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many requests it has seen.
    pub(super) fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(super) fn last_headers(&self) -> HeaderMap {
        self.seen.lock().unwrap().last().unwrap().clone()
    }

    /// Waits for a request.
    pub(super) async fn asked(&self) {
        let asked = async {
            while self.requests() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let patience = testbed::process::PATIENCE;
        tokio::time::timeout(patience, asked).await.unwrap();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn body(path: &str) -> BoxBody<Bytes, Infallible> {
    if path != "/endless" {
        return Full::from("pages").boxed();
    }
    let begun = tokio_stream::once(Ok(Frame::data(Bytes::from("begun"))));
    StreamBody::new(begun.chain(tokio_stream::pending())).boxed()
}
