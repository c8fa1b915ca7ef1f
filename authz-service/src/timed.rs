//! A bound on how long a call takes to be answered, for some services of a server: the access log's
//! streams have no end, and tonic's own bound is one for all.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::Map;
use http::{Request, Response};
use tokio::time::error::Elapsed;
use tokio::time::{Timeout, timeout};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

/// A service whose calls are answered in time, if only by a refusal. A stream that was begun goes on.
#[derive(Debug, Clone)]
pub(crate) struct Timed<S> {
    service: S,
    longest: Duration,
}

type Answer = Result<Response<Body>, Infallible>;

impl<S> Timed<S> {
    /// Gives each call so long.
    pub(crate) fn new(service: S, longest: Duration) -> Self {
        Self { service, longest }
    }
}

impl<S: NamedService> NamedService for Timed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<Request<B>> for Timed<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Map<Timeout<S::Future>, fn(Result<Answer, Elapsed>) -> Answer>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let in_time: fn(Result<Answer, Elapsed>) -> Answer = |answer| {
            answer.unwrap_or_else(|_| Ok(Status::cancelled("timeout expired").into_http()))
        };
        timeout(self.longest, self.service.call(request)).map(in_time)
    }
}
