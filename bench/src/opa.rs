//! In the place of an OPA server: real HTTP/1.1, and an answer at once. What OPA itself would take
//! for the policy comes on top of what is measured with it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use testbed::{Process, binary, port};
use tokio::net::TcpListener;

const ANSWER: &str = r#"{"result":{"allow":true,"reason":[]}}"#;

/// The server, as its own process; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Opa {
    _process: Process,
    address: SocketAddr,
}

impl Opa {
    pub(crate) fn start() -> Result<Self> {
        let port = port::free_port()?;
        let mut command = Command::new(binary::path("agent-gateway-bench")?);
        command.args(["opa", &port.to_string()]);
        let mut process = Process::start("opa", &command)?;
        let address = ([127, 0, 0, 1], port).into();
        process.wait_for_port(address)?;
        Ok(Self {
            _process: process,
            address,
        })
    }

    /// Of the policy.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1/data/mcp/authz", self.address)
    }
}

/// Serves until killed.
pub(crate) async fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let connection =
            http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
        tokio::spawn(connection);
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    // Read as a whole, or the connection could not be used again.
    let _ = request.into_body().collect().await;
    let mut response = Response::new(Full::from(ANSWER));
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", json);
    Ok(response)
}
