//! What the local client is told when there is no tunnel.

use bytes::Bytes;
use h2::Reason;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, PROXY_AUTHENTICATE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::gateway::{ConnectError, OpenError, Refusal};

pub(super) type Body = Full<Bytes>;

/// Names the decision in the service's log.
const DECISION_ID: HeaderName = HeaderName::from_static("x-agent-gateway-decision-id");

/// What of the gateway's refusal a client has a use for; the rest concerns the connection
/// between gateway and sidecar.
const HANDED_ON: [HeaderName; 5] = [
    CONTENT_TYPE,
    ALLOW,
    RETRY_AFTER,
    HeaderName::from_static("proxy-status"),
    DECISION_ID,
];

/// A refusal by the sidecar itself.
#[derive(Debug)]
pub(super) enum Local {
    NoToken,
    NotConnect,
    NoAuthority,
    TooManyTunnels,
    NotOpened(OpenError),
}

/// The tunnel is open; `headers` came with the gateway's 2xx.
pub(super) fn open(headers: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::default());
    hand_on(&[DECISION_ID], headers, &mut response);
    response
}

/// The gateway's answer, as it is.
pub(super) fn refusal(refusal: Refusal) -> Response<Body> {
    let mut response = closing(refusal.status, refusal.body);
    hand_on(&HANDED_ON, &refusal.headers, &mut response);
    response
}

fn hand_on(names: &[HeaderName], from: &HeaderMap, to: &mut Response<Body>) {
    for name in names {
        for value in from.get_all(name) {
            to.headers_mut().append(name.clone(), value.clone());
        }
    }
}

/// What the sidecar says of itself.
pub(super) fn json(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = closing(status, Bytes::from(format!("{body}\n")));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// The sidecar's own answer: JSON of the same shape as the service's.
pub(super) fn local(refusal: &Local) -> Response<Body> {
    let error = match refusal {
        Local::NoToken => "proxy authentication required".to_owned(),
        Local::NotConnect => "method not allowed".to_owned(),
        Local::NoAuthority => "the target is not HOST:PORT".to_owned(),
        Local::TooManyTunnels => "too many tunnels are open".to_owned(),
        Local::NotOpened(error) => error.to_string(),
    };
    let (status, reason, hint) = explain(refusal);
    let body = json!({ "error": error, "reason": reason, "hint": hint });
    let mut response = closing(status, Bytes::from(format!("{body}\n")));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some((name, value)) = match refusal {
        Local::NoToken => Some((PROXY_AUTHENTICATE, CHALLENGE)),
        Local::NotConnect => Some((ALLOW, "CONNECT")),
        Local::NoAuthority | Local::TooManyTunnels | Local::NotOpened(_) => None,
    } {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// RFC 7617.
const CHALLENGE: &str = r#"Basic realm="agent-gateway-sidecar", charset="UTF-8""#;

const DOWN: &str = "the gateway is down or out of reach; try again later, another route won't work";

/// Status, stable reason code, and what to do.
fn explain(refusal: &Local) -> (StatusCode, &'static str, &'static str) {
    match refusal {
        Local::NoToken => (
            StatusCode::PROXY_AUTHENTICATION_REQUIRED,
            "proxy_authentication_required",
            "run the command by `agent-gateway-sidecar exec`, or give it the URL that is in \
             proxy.url in the sidecar's state folder",
        ),
        Local::NotConnect => (
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this proxy carries only CONNECT: ask for an https:// address, and your client opens \
             a tunnel",
        ),
        Local::NoAuthority => (
            StatusCode::BAD_REQUEST,
            "destination_invalid",
            "send CONNECT HOST:PORT, without a user name or password",
        ),
        Local::TooManyTunnels => (
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_tunnels",
            "close connections that are no longer needed, then try again",
        ),
        Local::NotOpened(OpenError::TimedOut(_)) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "gateway_timeout",
            "try again later; the gateway or the destination is slow",
        ),
        // RFC 9113, section 8.5.
        Local::NotOpened(OpenError::Reset(Reason::CONNECT_ERROR)) => (
            StatusCode::BAD_GATEWAY,
            "destination_unreachable",
            "the gateway could not connect to the destination",
        ),
        Local::NotOpened(OpenError::Reset(_)) => (
            StatusCode::BAD_GATEWAY,
            "gateway_reset",
            "the gateway refused the request before deciding on it; most often the destination \
             is malformed",
        ),
        Local::NotOpened(OpenError::Interrupted) => {
            (StatusCode::SERVICE_UNAVAILABLE, "gateway_unreachable", DOWN)
        }
        Local::NotOpened(OpenError::NotConnected(error)) => {
            let (reason, hint) = explain_no_connection(error);
            (StatusCode::SERVICE_UNAVAILABLE, reason, hint)
        }
    }
}

fn explain_no_connection(error: &ConnectError) -> (&'static str, &'static str) {
    match error {
        ConnectError::Signing(_) => (
            "tpm_unavailable",
            "the agent's key can't be used: whoever runs the sidecar should check the TPM",
        ),
        ConnectError::Untrusted(_) => (
            "gateway_untrusted",
            "the gateway's certificate does not fit --ca or --server-name: tell whoever runs the \
             sidecar",
        ),
        ConnectError::Tls(_) => (
            "gateway_tls_failed",
            "tell whoever runs the sidecar; its log says more",
        ),
        ConnectError::Tcp(_)
        | ConnectError::Broken(_)
        | ConnectError::Http2(_)
        | ConnectError::TimedOut
        | ConnectError::TooMany => ("gateway_unreachable", DOWN),
    }
}

/// An answer after which the connection is closed: a client that sent on in expectation of a
/// tunnel must not have that taken for a request.
fn closing(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
