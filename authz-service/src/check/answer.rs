//! Writes Envoy's `CheckResponse`: what an allow tells Envoy, and what a deny tells the agent.

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{
    CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use envoy_types::pb::google::rpc;
use permission::{Reason, Timestamp};
use serde_json::json;

use super::asked::Asked;
use super::profiles::Requests;
use crate::decision_point::Leave;

/// Ends the tunnel: Envoy counts from when it sees this header, and overwrites a client's own.
const STREAM_DURATION: &str = "x-envoy-upstream-stream-duration-ms";
/// Tells the destination who called.
const AGENT_IDENTITY: &str = "x-agent-identity";
/// Names the decision, to the agent and in every log.
pub(crate) const DECISION_ID: &str = "x-agent-gateway-decision-id";

/// gRPC status codes.
const OK: i32 = 0;
const PERMISSION_DENIED: i32 = 7;

/// An allow: Envoy dials `dial`, until the permission ends. `now` is when this is written, for
/// deciding took time.
pub(super) fn allow(leave: &Leave, asked: &Asked, now: Timestamp, id: &str) -> CheckResponse {
    let left_micros = leave.ends_at.as_unix_micros() - now.as_unix_micros();
    // Rounded down, so that no tunnel outlives its permission; 0 would mean "no limit" to Envoy.
    let left_millis = (left_micros / 1000).max(1);
    let mut metadata = known(asked, "allowed", id);
    metadata.extend([
        ("permission_id", text(leave.permission_id.as_str())),
        ("signing_key_id", text(leave.signing_key_id.as_str())),
    ]);
    if let Some(target) = &leave.target {
        metadata.extend([
            ("dial", text(&target.address.to_string())),
            ("allow_private", Kind::BoolValue(target.private)),
        ]);
    }
    let mut headers = vec![header(STREAM_DURATION, &left_millis.to_string())];
    if let (Requests::Http, Some(identity)) = (asked.requests, &asked.identity) {
        // In place of whatever the client sent under this name.
        headers.push(header(AGENT_IDENTITY, &identity.header_value()));
    }
    let answer = OkHttpResponse {
        headers,
        response_headers_to_add: vec![header(DECISION_ID, id)],
        ..Default::default()
    };
    allowed(answer, metadata)
}

/// A deny: its status, a body that an agent understands, and the same for the access log.
pub(super) fn deny(reason: Reason, asked: &Asked, id: &str) -> CheckResponse {
    let telling = Telling::of(reason).where_answered(asked.requests);
    let body = body(&telling, reason.code(), id);
    let metadata = known(asked, reason.code(), id);
    let methods = match asked.requests {
        Requests::Connect => "CONNECT",
        Requests::Http => "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
    };
    denied(&telling, reason.code(), id, methods, &body, metadata)
}

/// What an agent is told of a deny.
pub(crate) fn body(telling: &Telling, code: &str, id: &str) -> serde_json::Value {
    json!({
        "error": telling.error,
        "reason": code,
        "decision_id": id,
        "hint": telling.hint,
    })
}

/// A deny of either lane; `methods` are those that would be allowed.
pub(crate) fn denied(
    telling: &Telling,
    code: &str,
    id: &str,
    methods: &str,
    body: &serde_json::Value,
    metadata: Vec<Field>,
) -> CheckResponse {
    let mut headers = vec![
        header("content-type", "application/json"),
        header(DECISION_ID, id),
        header("proxy-status", &proxy_status(telling.proxy_error, code)),
    ];
    if telling.status == 405 {
        headers.push(header("allow", methods));
    }
    CheckResponse {
        status: Some(rpc::Status {
            code: PERMISSION_DENIED,
            message: code.to_owned(),
            ..Default::default()
        }),
        http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus {
                code: telling.status,
            }),
            headers,
            body: format!("{body}\n"),
        })),
        dynamic_metadata: Some(structure(metadata)),
    }
}

/// An allow of either lane.
pub(crate) fn allowed(answer: OkHttpResponse, metadata: Vec<Field>) -> CheckResponse {
    CheckResponse {
        status: Some(rpc::Status {
            code: OK,
            ..Default::default()
        }),
        http_response: Some(HttpResponse::OkResponse(answer)),
        dynamic_metadata: Some(structure(metadata)),
    }
}

/// RFC 9209; the details are a quoted string of ours, so plain ASCII.
pub(crate) fn proxy_status(error: &str, code: &str) -> String {
    format!("agent-gateway; error={error}; details=\"{code}\"")
}

/// How a deny is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Telling {
    /// HTTP status.
    pub(crate) status: i32,
    /// What happened, in a few words.
    pub(crate) error: &'static str,
    /// What the agent, or its principal, can do about it.
    pub(crate) hint: &'static str,
    /// RFC 9209, section 2.3: the proxy error type.
    pub(crate) proxy_error: &'static str,
}

impl Telling {
    /// With the hint for those who ask by this kind of requests.
    fn where_answered(self, requests: Requests) -> Self {
        match (requests, self.status) {
            (Requests::Http, 405) => Self {
                hint: "no tunnels are opened here: send the request itself",
                ..self
            },
            (Requests::Http, 400) => Self {
                hint: "the host must be a name or an address, and its port one that is served here",
                ..self
            },
            _ => self,
        }
    }

    /// The one place that turns reasons into statuses.
    pub(crate) fn of(reason: Reason) -> Self {
        let blocked = |hint| Self {
            status: 403,
            error: "blocked by policy",
            hint,
            proxy_error: "http_request_denied",
        };
        match reason {
            Reason::NoClientCertificate => {
                blocked("connect with a client certificate, through the sidecar")
            }
            Reason::CertificateUnparseable => {
                blocked("the client certificate can't be read; make it with the sidecar's init")
            }
            Reason::IdentityExtensionMissing => blocked(
                "the client certificate names no identity where the gateway looks for it; make it with the sidecar's init",
            ),
            Reason::IdentityExtensionInvalid => blocked(
                "the certificate must name exactly one identity of 1 to 256 bytes: a DER UTF8String in its identity extension, or where the gateway is set up so one SPIFFE ID or common name",
            ),
            Reason::SigningKeyUntrusted => blocked(
                "the key that signed the permission is not vouched for by a root of trust; tell your principal",
            ),
            Reason::ScopeUntrusted => blocked(
                "the principal's scope for this destination is not vouched for by a root of trust; tell your principal",
            ),
            Reason::NoPermission => blocked(
                "nobody signed a permission for this identity, key and destination; another route won't work, ask your principal for a grant",
            ),
            Reason::PermissionNotYetValid => {
                blocked("the permission has not begun; retrying before then won't work")
            }
            Reason::PermissionExpired => {
                blocked("the permission has ended; ask your principal for a new one")
            }
            Reason::PermissionRevoked => blocked(
                "your principal took the permission back; another route won't work, don't retry",
            ),
            Reason::SigningKeyUnknown | Reason::SigningKeyInactive => blocked(
                "the key that signed the permission is not active; ask your principal to sign it again",
            ),
            Reason::SignatureInvalid => blocked(
                "the permission is not what its principal signed; ask your principal to grant it again",
            ),
            Reason::ScopeMissing => blocked(
                "the principal may not grant this destination for all of that time; an admin can extend its scope",
            ),
            Reason::DestinationAddressForbidden => Self {
                status: 403,
                error: "blocked by policy",
                hint: "the destination resolves to an address that must not be reached; another route won't work",
                proxy_error: "destination_ip_prohibited",
            },
            Reason::DestinationInvalid => Self {
                status: 400,
                error: "malformed destination",
                hint: "write it as host:port, such as api.example.com:443",
                proxy_error: "http_request_error",
            },
            Reason::MethodNotAllowed => Self {
                status: 405,
                error: "method not allowed",
                hint: "only CONNECT is carried here: use https, through the sidecar",
                proxy_error: "http_request_error",
            },
            Reason::UpgradeNotAllowed => {
                blocked("only plain requests are carried here, no upgrade such as WebSocket")
            }
            Reason::ProfileUnknown => blocked(
                "the gateway's route and its authorization service disagree about a profile; tell their operator",
            ),
            Reason::DestinationUnresolvable => Self {
                status: 502,
                error: "destination not reached",
                hint: "its name could not be resolved in time; check the name, or retry later",
                proxy_error: "dns_error",
            },
            Reason::RegistryUnavailable => Self {
                status: 503,
                error: "no decision could be made",
                hint: "the gateway can't read its permissions now; retry later",
                proxy_error: "proxy_internal_error",
            },
            Reason::AuditUnavailable => Self {
                status: 503,
                error: "no decision could be made",
                hint: "the gateway can't record its decisions now; retry later",
                proxy_error: "proxy_internal_error",
            },
        }
    }
}

/// A member of the metadata that Envoy keeps with the request.
pub(crate) type Field = (&'static str, Kind);

fn known(asked: &Asked, reason: &str, id: &str) -> Vec<Field> {
    let mut fields = vec![("reason", text(reason)), ("decision_id", text(id))];
    let identity = asked
        .identity
        .as_ref()
        .map(|identity| text(identity.as_str()));
    let spki = asked.spki.as_ref().map(|spki| text(&spki.to_hex()));
    let destination = asked.destination.as_ref().map(|to| text(&to.to_string()));
    let read = [
        ("identity", identity),
        ("spki", spki),
        ("destination", destination),
    ];
    fields.extend(
        read.into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    fields
}

pub(crate) fn text(value: &str) -> Kind {
    Kind::StringValue(value.to_owned())
}

fn structure(fields: Vec<Field>) -> Struct {
    let value = |kind| Value { kind: Some(kind) };
    let fields = fields
        .into_iter()
        .map(|(name, kind)| (name.to_owned(), value(kind)));
    Struct {
        fields: fields.collect(),
    }
}

pub(crate) fn header(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;
