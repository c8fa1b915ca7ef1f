//! Policy evaluated by an OPA server, over its data API.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::{Answer, Document, Input};
use crate::relay::tools::{Scheme, ToolUrl};

/// Longest the server may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Longest it may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest answer, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// Idle connections that are kept, and for how long.
const MAX_IDLE: usize = 32;
const IDLE: Duration = Duration::from_mins(1);

/// An OPA server.
#[derive(Debug, Clone)]
pub struct Opa {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
}

/// A URL that is none of an OPA server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it must be http://host[:port]/v1/data/…")]
pub struct OpaUrlError;

/// Why the server gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum OpaError {
    /// Not reached, or not in time.
    #[error("OPA did not answer: {0}")]
    Unreachable(String),
    /// Reached, and what it said is no answer.
    #[error("OPA gave no answer that can be read: {0}")]
    BadResponse(String),
}

/// What OPA answers; `result` is absent where nothing is defined.
#[derive(Deserialize)]
struct Response {
    result: Option<Document>,
}

#[derive(serde::Serialize)]
struct Question<'a> {
    input: &'a Input<'a>,
}

impl Opa {
    /// `url` is that of the package, such as `http://127.0.0.1:8181/v1/data/mcp/authz`.
    pub fn new(url: &str) -> Result<Self, OpaUrlError> {
        let url: ToolUrl = url.parse().map_err(|_| OpaUrlError)?;
        if url.scheme != Scheme::Http {
            return Err(OpaUrlError);
        }
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE)
            .build(connector);
        Ok(Self {
            client,
            url: url.to_string(),
        })
    }

    /// Has one call judged, by `deadline` and within 3 s.
    pub async fn evaluate(&self, input: &Input<'_>, deadline: Instant) -> Result<Answer, OpaError> {
        let deadline = deadline.min(Instant::now() + TIMEOUT);
        match timeout_at(deadline, self.ask(input)).await {
            Ok(answer) => answer,
            Err(_) => Err(OpaError::Unreachable("not in time".to_owned())),
        }
    }

    async fn ask(&self, input: &Input<'_>) -> Result<Answer, OpaError> {
        let unreachable = |error: &dyn std::error::Error| {
            let cause = error.source().map(|cause| format!(": {cause}"));
            OpaError::Unreachable(format!("{error}{}", cause.unwrap_or_default()))
        };
        let question = serde_json::to_vec(&Question { input });
        let question = question.map_err(|error| unreachable(&error))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.url)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(question)))
            .map_err(|error| unreachable(&error))?;
        let response = self.client.request(request).await;
        let response = response.map_err(|error| unreachable(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        let body = body.map_err(|error| OpaError::BadResponse(error.to_string()))?;
        if status != StatusCode::OK {
            return Err(OpaError::BadResponse(format!("status {status}")));
        }
        let response: Response = serde_json::from_slice(&body.to_bytes())
            .map_err(|error| OpaError::BadResponse(error.to_string()))?;
        response
            .result
            .map(Answer::from)
            .ok_or_else(|| OpaError::BadResponse("nothing is defined at that path".to_owned()))
    }
}
