//! The other half of the service that these tests stand in for: it holds every open tunnel and
//! cuts none.

use std::pin::Pin;

use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::ExternalProcessor;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as Stage;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response as Next;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    HeadersResponse, ProcessingRequest, ProcessingResponse, TrailersResponse,
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

pub(crate) struct Holder;

#[tonic::async_trait]
impl ExternalProcessor for Holder {
    type ProcessStream = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let answers = request.into_inner().map(|message| {
            let next = match message?.request {
                Some(Stage::ResponseTrailers(_)) => {
                    Next::ResponseTrailers(TrailersResponse::default())
                }
                _ => Next::RequestHeaders(HeadersResponse::default()),
            };
            Ok(ProcessingResponse {
                response: Some(next),
                ..ProcessingResponse::default()
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}
