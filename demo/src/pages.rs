//! What each service says.

use bytes::Bytes;
use clap::ValueEnum;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};

/// Which service it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Service {
    /// Serves `/documents`.
    Docstore,
    /// Serves `/messages`.
    Messaging,
}

impl Service {
    /// As on the command line, and as the host name that the demo gives it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Docstore => "docstore",
            Self::Messaging => "messaging",
        }
    }

    /// The answer to a request; what its body says plays no part.
    pub(crate) fn answer(self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let Some(page) = self.page(path) else {
            return json_response(StatusCode::NOT_FOUND, &json!({"error": "no such page"}));
        };
        if method != Method::GET && method != Method::HEAD {
            let body = json!({"error": "this page can only be read"});
            let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, &body);
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        json_response(StatusCode::OK, &page)
    }

    fn page(self, path: &str) -> Option<Value> {
        match (self, path) {
            (_, "/health") => Some(json!({"service": self.as_str(), "status": "ok"})),
            (Self::Docstore, "/documents") => Some(json!({"documents": [
                {"id": 1, "title": "Quarterly report"},
                {"id": 2, "title": "On-call handbook"},
                {"id": 3, "title": "Lunch menu"},
            ]})),
            (Self::Messaging, "/messages") => Some(json!({"messages": [
                {"id": 1, "from": "org-alice", "text": "Please summarise the quarterly report."},
                {"id": 2, "from": "org-bob", "text": "Is the lunch menu out yet?"},
            ]})),
            _ => None,
        }
    }
}

fn json_response(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{body}\n")));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
