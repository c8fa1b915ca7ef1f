//! Envoy's `ext_proc` messages, read and written.

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as Stage;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response as Answer;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    HeaderMutation, HeadersResponse, ImmediateResponse, ProcessingRequest, ProcessingResponse,
    TrailersResponse,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::value::Kind;
use permission::{Destination, Identity, Request, Spki};
use serde_json::json;

use super::Cut;
use crate::check::{Telling, proxy_status};

/// The filter whose metadata our Check fills.
const NAMESPACE: &str = "envoy.filters.http.ext_authz";

/// A tunnel that our Check allowed.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) request: Request,
    pub(super) decision_id: String,
}

/// Reads the first message of a stream.
pub(super) fn read(message: &ProcessingRequest) -> Option<Opened> {
    let Some(Stage::RequestHeaders(_)) = &message.request else {
        return None;
    };
    let fields = &message
        .metadata_context
        .as_ref()?
        .filter_metadata
        .get(NAMESPACE)?
        .fields;
    let text = |key: &str| match fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.as_str()),
        _ => None,
    };
    if text("reason")? != "allowed" {
        return None;
    }
    Some(Opened {
        request: Request {
            identity: Identity::parse(text("identity")?).ok()?,
            spki: Spki::from_hex(text("spki")?).ok()?,
            destination: Destination::from_normal_form(text("destination")?)?,
        },
        decision_id: text("decision_id")?.to_owned(),
    })
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
pub(super) fn cut(cut: Cut, decision_id: &str) -> ProcessingResponse {
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
        Cut::Stopping => (
            503,
            "the gateway is stopping",
            "retry: another replica may answer",
            "proxy_internal_error",
        ),
    };
    let body = json!({
        "error": error, "reason": cut.code(), "decision_id": decision_id, "hint": hint,
    });
    let mut headers = vec![
        header("content-type", "application/json"),
        header("x-agent-gateway-decision-id", decision_id),
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
