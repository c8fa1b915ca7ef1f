//! The ceiling: a tonic service that decodes the same request and answers as many bytes.

use anyhow::Result;
use envoy_types::pb::envoy::service::auth::v3::authorization_server::{
    Authorization, AuthorizationServer,
};
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use envoy_types::pb::google::rpc;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Bytes of one of our allows, with its metadata.
const ANSWER_BYTES: usize = 760;

struct Empty;

#[tonic::async_trait]
impl Authorization for Empty {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        std::hint::black_box(request.into_inner());
        let message = "x".repeat(ANSWER_BYTES);
        let status = rpc::Status {
            code: 0,
            message,
            ..Default::default()
        };
        Ok(Response::new(CheckResponse {
            status: Some(status),
            ..Default::default()
        }))
    }
}

/// Serves until killed.
pub(crate) async fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder()
        .add_service(AuthorizationServer::new(Empty))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}
