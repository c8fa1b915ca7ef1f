//! The ceiling: a tonic service that decodes the same request and answers as many bytes.

use anyhow::{Context as _, Result};
use envoy_types::pb::envoy::service::auth::v3::authorization_server::{
    Authorization, AuthorizationServer,
};
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use envoy_types::pb::google::rpc;
use std::net::SocketAddr;
use std::process::Command;
use testbed::{Process, binary, port};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// The empty service, as its own process.
#[derive(Debug)]
pub(crate) struct Empty {
    process: Process,
    address: SocketAddr,
}

impl Empty {
    /// Starts one whose answers have `bytes` bytes.
    pub(crate) fn start(bytes: usize) -> Result<Self> {
        let port = port::free_port()?;
        let mut command = Command::new(binary::path("agent-gateway-bench")?);
        command.args(["empty", &port.to_string(), &bytes.to_string()]);
        let mut process = Process::start("empty", &command)?;
        let address = ([127, 0, 0, 1], port).into();
        process.wait_for_port(address)?;
        Ok(Self { process, address })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}

struct Service {
    text: usize,
}

#[tonic::async_trait]
impl Authorization for Service {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        std::hint::black_box(request.into_inner());
        let status = rpc::Status {
            message: "x".repeat(self.text),
            ..Default::default()
        };
        Ok(Response::new(CheckResponse {
            status: Some(status),
            ..Default::default()
        }))
    }
}

/// Serves until killed, with answers of `bytes` bytes (134 to 16 Ki).
pub(crate) async fn serve(port: u16, bytes: usize) -> Result<()> {
    // Two fields, one in the other, each with a tag and a length of two bytes.
    let text = bytes.checked_sub(6).context("too few bytes")?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder()
        .add_service(AuthorizationServer::new(Service { text }))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}
