//! A client that calls tools: mTLS, HTTP/2 or HTTP/1.1, bodies of known and of unknown length.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::Request;
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::version::TLS13;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::process::PATIENCE;
use crate::tls::client_config;
use crate::tunnel::Answer;
use crate::{ClientCertificate, GatewayPki};

/// Which HTTP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One request at a time on a connection.
    Http1,
    /// Any number.
    Http2,
}

/// One connection to the gateway.
#[derive(Debug)]
pub struct Caller(Connection);

#[derive(Debug)]
enum Connection {
    Http1(http1::SendRequest<Sent>),
    Http2(http2::SendRequest<Sent>),
}

/// A request's body, in the pieces in which it is sent.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    pieces: VecDeque<Bytes>,
    /// Whether its length is said beforehand.
    announced: bool,
}

impl Sent {
    /// All at once, with its length.
    pub fn whole(body: impl Into<Bytes>) -> Sent {
        Sent {
            pieces: [body.into()].into(),
            announced: true,
        }
    }

    /// In pieces of so many bytes, without its length: `chunked` in HTTP/1.1.
    pub fn in_pieces(body: &[u8], size: usize) -> Sent {
        Sent {
            pieces: body.chunks(size).map(Bytes::copy_from_slice).collect(),
            announced: false,
        }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.pieces.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        if self.announced {
            SizeHint::with_exact(self.pieces.iter().map(|piece| piece.len() as u64).sum())
        } else {
            SizeHint::default()
        }
    }
}

impl Caller {
    /// Connects to the gateway showing `certificate`.
    pub async fn connect(
        gateway: SocketAddr,
        pki: &GatewayPki,
        certificate: &ClientCertificate,
        version: Version,
    ) -> Result<Caller> {
        let stream = connect(gateway, pki, certificate, version).await?;
        let stream = TokioIo::new(stream);
        Ok(Caller(match version {
            Version::Http1 => {
                let (requests, connection) = http1::handshake(stream).await?;
                tokio::spawn(connection);
                Connection::Http1(requests)
            }
            Version::Http2 => {
                let executor = TokioExecutor::new();
                let (requests, connection) = http2::handshake(executor, stream).await?;
                tokio::spawn(connection);
                Connection::Http2(requests)
            }
        }))
    }

    /// Posts `body` to `/relay`.
    pub async fn call(&mut self, headers: &[(&str, &str)], body: Sent) -> Result<Answer> {
        let mut request = match self.0 {
            Connection::Http1(_) => Request::post("/relay").header("host", "gateway"),
            Connection::Http2(_) => Request::post("https://gateway/relay"),
        };
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(body)?).await
    }

    /// Sends any request.
    pub async fn send(&mut self, request: Request<Sent>) -> Result<Answer> {
        let answer = async {
            let response = match &mut self.0 {
                Connection::Http1(requests) => {
                    requests.ready().await?;
                    requests.send_request(request).await?
                }
                Connection::Http2(requests) => {
                    requests.ready().await?;
                    requests.send_request(request).await?
                }
            };
            Answer::read(response, false).await
        };
        timeout(PATIENCE, answer)
            .await
            .context("the gateway does not answer")?
    }
}

/// Writes these bytes, whatever they are, on an HTTP/1.1 connection; returns all that comes back
/// until the gateway closes it.
pub async fn say(
    gateway: SocketAddr,
    pki: &GatewayPki,
    certificate: &ClientCertificate,
    words: &[u8],
) -> Result<String> {
    let mut stream = http1(gateway, pki, certificate).await?;
    stream.write_all(words).await?;
    stream.flush().await?;
    let mut heard = Vec::new();
    // A connection that is reset said all the same what it said before.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut heard))
        .await
        .context("the gateway does not close the connection")?;
    Ok(String::from_utf8_lossy(&heard).into_owned())
}

/// A connection for HTTP/1.1, as bytes.
pub async fn http1(
    gateway: SocketAddr,
    pki: &GatewayPki,
    certificate: &ClientCertificate,
) -> Result<TlsStream<TcpStream>> {
    connect(gateway, pki, certificate, Version::Http1).await
}

async fn connect(
    gateway: SocketAddr,
    pki: &GatewayPki,
    certificate: &ClientCertificate,
    version: Version,
) -> Result<TlsStream<TcpStream>> {
    let mut config = client_config(pki, Some(certificate), &[&TLS13])?;
    if version == Version::Http1 {
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
    }
    crate::tls::connect(gateway, config).await
}
