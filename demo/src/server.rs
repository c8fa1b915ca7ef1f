//! HTTP/1.1 over TLS, with everything bounded: connections, header size, and each wait.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::pages::Service;

const MAX_CONNECTIONS: usize = 256;
const MAX_HEADER_BYTES: usize = 16 * 1024;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// From a connection's start, or the end of an answer, to the end of the next request's header.
const NEXT_REQUEST: Duration = Duration::from_secs(30);
/// A client that reads slower than this loses its connection.
const WHOLE_CONNECTION: Duration = Duration::from_mins(5);
const DRAIN: Duration = Duration::from_secs(5);
/// `accept()` fails like this when file descriptors run out; trying at once would only spin.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then lets requests in progress end.
pub(crate) async fn run(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    service: Service,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((stream, peer)) = accepted else {
            sleep(AFTER_FAILURE).await;
            continue;
        };
        // Refusing is kinder than letting a client wait for a place.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let (acceptor, stop) = (acceptor.clone(), stop.clone());
        connections.spawn(async move {
            let served = connection(stream, peer, acceptor, service, stop);
            if timeout(WHOLE_CONNECTION, served).await.is_err() {
                eprintln!("{peer}: closed after {WHOLE_CONNECTION:?}");
            }
            drop(place);
        });
    }
    connections.close();
    if timeout(DRAIN, connections.wait()).await.is_err() {
        eprintln!("connections were still open at the end");
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    service: Service,
    stop: CancellationToken,
) {
    let handshake = timeout(HANDSHAKE, acceptor.accept(stream));
    let stream = match stop.run_until_cancelled(handshake).await {
        None => return,
        Some(Ok(Ok(stream))) => stream,
        Some(Ok(Err(error))) => return eprintln!("{peer}: no TLS handshake: {error}"),
        Some(Err(_)) => return eprintln!("{peer}: no TLS handshake in time"),
    };
    let answer = service_fn(|request: Request<Incoming>| async move {
        let response = service.answer(request.method(), request.uri().path());
        let (method, path) = (request.method(), request.uri().path());
        eprintln!("{peer}: {method} {path} {}", response.status().as_u16());
        Ok::<_, Infallible>(response)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(NEXT_REQUEST)
        .max_buf_size(MAX_HEADER_BYTES);
    let served = http.serve_connection(TokioIo::new(stream), answer);
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        eprintln!("{peer}: {error}");
    }
}
