//! Envoy's `ext_proc` messages, read and written.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as Stage;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response as Answer;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    HeaderMutation, HeadersResponse, ImmediateResponse, ProcessingRequest, ProcessingResponse,
    TrailersResponse,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::Struct;
use envoy_types::pb::google::protobuf::value::Kind;
use permission::{Destination, Id, Identity, Request, Spki, Timestamp};
use serde_json::json;

use super::Cut;
use super::table::Tunnel;
use crate::check::{Telling, proxy_status};

/// The filter whose metadata our Check fills.
const NAMESPACE: &str = "envoy.filters.http.ext_authz";

/// Under which Envoy sends its own attributes: who is connected, and how.
const ATTRIBUTES: &str = "envoy.filters.http.ext_proc";

/// Reads the first message of a stream: a tunnel that our Check allowed.
pub(super) fn read(message: &ProcessingRequest, now: Timestamp) -> Option<Tunnel> {
    let Some(Stage::RequestHeaders(_)) = &message.request else {
        return None;
    };
    let metadata = &message.metadata_context.as_ref()?.filter_metadata;
    let decided = metadata.get(NAMESPACE)?;
    let text = |key| text(decided, key);
    if text("reason")? != "allowed" {
        return None;
    }
    Some(Tunnel {
        id: Id::parse(text("decision_id")?).ok()?,
        request: Request {
            identity: Identity::parse(text("identity")?).ok()?,
            spki: Spki::from_hex(text("spki")?).ok()?,
            destination: Destination::from_normal_form(text("destination")?)?,
        },
        permission_id: Id::parse(text("permission_id")?).ok()?,
        connection: connection(message),
        opened_at: now,
    })
}

/// The agent's end of its connection: Envoy's attribute, not a header. Nothing is decided by it.
fn connection(message: &ProcessingRequest) -> Option<SocketAddr> {
    let attributes = message.attributes.get(ATTRIBUTES)?;
    text(attributes, "source.address")?.parse().ok()
}

fn text<'a>(fields: &'a Struct, key: &str) -> Option<&'a str> {
    match fields.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// Lets what was asked about go on unchanged.
pub(super) fn go_on_with(stage: Option<&Stage>) -> ProcessingResponse {
    let headers = HeadersResponse::default();
    let answer = match stage {
        Some(Stage::ResponseHeaders(_)) => Answer::ResponseHeaders(headers),
        Some(Stage::RequestTrailers(_)) => Answer::RequestTrailers(TrailersResponse::default()),
        Some(Stage::ResponseTrailers(_)) => Answer::ResponseTrailers(TrailersResponse::default()),
        _ => Answer::RequestHeaders(headers),
    };
    ProcessingResponse {
        response: Some(answer),
        ..Default::default()
    }
}

/// Ends the tunnel: before it is open the client sees status and body, afterwards a reset.
pub(super) fn cut(cut: Cut, decision_id: &Id) -> ProcessingResponse {
    let (status, error, hint, proxy_error) = match cut {
        Cut::Denied(reason) => {
            let telling = Telling::of(reason);
            (
                telling.status,
                telling.error,
                telling.hint,
                telling.proxy_error,
            )
        }
        Cut::TooMany => (
            429,
            "too many tunnels",
            "close some, or retry later",
            "http_request_denied",
        ),
        Cut::ByOperator => (
            503,
            "the tunnel was cut",
            "an operator cut it; nothing was taken back, so a new one may be opened",
            "http_request_denied",
        ),
        Cut::Stopping => (
            503,
            "the gateway is stopping",
            "retry: another replica may answer",
            "proxy_internal_error",
        ),
    };
    let body = json!({
        "error": error, "reason": cut.code(), "decision_id": decision_id.as_str(), "hint": hint,
    });
    let mut headers = vec![
        header("content-type", "application/json"),
        header("x-agent-gateway-decision-id", decision_id.as_str()),
        header("proxy-status", &proxy_status(proxy_error, cut.code())),
    ];
    if matches!(cut, Cut::TooMany) {
        headers.push(header("retry-after", "5"));
    }
    let response = ImmediateResponse {
        status: Some(HttpStatus { code: status }),
        headers: Some(HeaderMutation {
            set_headers: headers,
            ..Default::default()
        }),
        body: format!("{body}\n").into_bytes(),
        details: cut.code().to_owned(),
        ..Default::default()
    };
    ProcessingResponse {
        response: Some(Answer::ImmediateResponse(response)),
        ..Default::default()
    }
}

fn header(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.to_owned(),
            raw_value: value.as_bytes().to_vec(),
            ..Default::default()
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..Default::default()
    }
}
