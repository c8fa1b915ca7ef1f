//! A well-behaved client of the gateway: mTLS, HTTP/2, CONNECT.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::version::TLS13;
use serde_json::Value;
use tokio::time::timeout;

use crate::process::PATIENCE;
use crate::tls::client_config;
use crate::{ClientCertificate, GatewayPki};

/// One connection to the gateway, for any number of tunnels at once.
#[derive(Debug, Clone)]
pub struct TunnelClient {
    requests: SendRequest<Full<Bytes>>,
}

/// The bytes of an open tunnel. Shutting it down closes the sending half alone.
pub type Tunnel = TokioIo<Upgraded>;

/// What the gateway answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Body(Bytes),
    Tunnel(Tunnel),
}

impl TunnelClient {
    /// Connects to the gateway showing `certificate`.
    pub async fn connect(
        gateway: SocketAddr,
        pki: &GatewayPki,
        certificate: &ClientCertificate,
    ) -> Result<TunnelClient> {
        let stream =
            crate::tls::connect(gateway, client_config(pki, Some(certificate), &[&TLS13])?).await?;
        // Windows as the product's own client has them: a tunnel that nobody reads must not
        // freeze the others.
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(512 * 1024)
            .initial_connection_window_size((1 << 31) - 1)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(connection);
        Ok(TunnelClient { requests })
    }

    /// Asks for a tunnel to `authority`.
    pub async fn open(&self, authority: &str) -> Result<Answer> {
        self.open_with(authority, &[]).await
    }

    /// As [`TunnelClient::open`], with further headers.
    pub async fn open_with(&self, authority: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let mut request = Request::builder().method(Method::CONNECT).uri(authority);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Full::default())?).await
    }

    /// Sends any request.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let connects = request.method() == Method::CONNECT;
        let mut requests = self.requests.clone();
        let answer = async {
            requests.ready().await?;
            let response = requests.send_request(request).await?;
            Answer::read(response, connects).await
        };
        timeout(PATIENCE, answer)
            .await
            .context("the gateway does not answer")?
    }
}

impl Answer {
    /// The open tunnel; an error that holds status and body if there is none.
    pub fn into_tunnel(self) -> Result<Tunnel> {
        match self.content {
            Content::Tunnel(tunnel) => Ok(tunnel),
            Content::Body(body) => {
                bail!(
                    "no tunnel: {} {}",
                    self.status,
                    String::from_utf8_lossy(&body)
                )
            }
        }
    }

    /// The body as text; empty for an open tunnel.
    pub fn text(&self) -> String {
        match &self.content {
            Content::Body(body) => String::from_utf8_lossy(body).into_owned(),
            Content::Tunnel(_) => String::new(),
        }
    }

    /// The body; nothing for an open tunnel.
    pub fn body(&self) -> &[u8] {
        match &self.content {
            Content::Body(body) => body,
            Content::Tunnel(_) => &[],
        }
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.text()).with_context(|| format!("not JSON: {}", self.text()))
    }

    /// A header's value as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(crate) async fn read(mut response: Response<Incoming>, connects: bool) -> Result<Answer> {
        let content = if connects && response.status().is_success() {
            Content::Tunnel(TokioIo::new(hyper::upgrade::on(&mut response).await?))
        } else {
            Content::Body(response.body_mut().collect().await?.to_bytes())
        };
        let (parts, _) = response.into_parts();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            content,
        })
    }
}
