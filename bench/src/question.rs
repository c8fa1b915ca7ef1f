//! A Check as Envoy sends it, encoded once, and what a right answer to it holds.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::address::Address as Kind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, Metadata, SocketAddress};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use envoy_types::pb::google::protobuf::{Struct, Timestamp, Value, value};
use envoy_types::pb::google::rpc;
use memchr::memmem::Finder;
use prost::Message as _;

/// gRPC's code for a deny.
const PERMISSION_DENIED: i32 = 7;

/// One Check.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// The gRPC frame, but for `tail`.
    pub(crate) frame: Bytes,
    /// Its end, where many questions share it.
    pub(crate) tail: Bytes,
    expected: Expected,
}

/// The bytes that only a right answer holds; so the client need not decode it, which would take
/// as much CPU as the service does.
#[derive(Debug, Clone)]
struct Expected {
    status: Vec<u8>,
    field: Finder<'static>,
}

/// What a Check must come to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict<'a> {
    /// Allowed by the permission with this id.
    Allow(&'a str),
    /// Denied for this reason.
    Deny(&'a str),
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Right,
    Undecided,
}

impl Question {
    /// Asks for `destination` on a connection with `certificate` (PEM, as Envoy encodes it).
    pub(crate) fn new(certificate: &str, destination: &str, verdict: Verdict<'_>) -> Self {
        let http = HttpRequest {
            method: "CONNECT".to_owned(),
            host: destination.to_owned(),
            headers: [request_id()].into(),
            ..Default::default()
        };
        let message = check(certificate, http, "").encode_to_vec();
        Self::framed(&message, Bytes::new(), verdict)
    }

    /// Asks about a tool call with these headers and the body that `tail` is of.
    pub(crate) fn of_call(
        certificate: &str,
        headers: [(&str, String); 3],
        tail: &Bytes,
        verdict: Verdict<'_>,
    ) -> Self {
        let headers = headers.map(|(name, value)| (name.to_owned(), value));
        let http = HttpRequest {
            method: "POST".to_owned(),
            host: "gateway".to_owned(),
            path: "/relay".to_owned(),
            headers: headers.into_iter().chain([request_id()]).collect(),
            ..Default::default()
        };
        let message = check(certificate, http, "relay").encode_to_vec();
        Self::framed(&message, tail.clone(), verdict)
    }

    fn framed(message: &[u8], tail: Bytes, verdict: Verdict<'_>) -> Self {
        let length = u32::try_from(message.len() + tail.len()).unwrap_or(u32::MAX);
        // Not compressed; the length; the message.
        let frame = [&[0], length.to_be_bytes().as_slice(), message].concat();
        Self {
            frame: frame.into(),
            tail,
            expected: Expected::new(verdict),
        }
    }

    /// Whether `frame` is the answer that is due, or says that nothing could be decided (on a busy
    /// machine a lookup may not end in time); anything else is an error.
    pub(crate) fn check(&self, frame: &[u8]) -> Result<Answer> {
        let message = frame.get(5..).context("not a gRPC frame")?;
        if self.expected.holds(message) {
            return Ok(Answer::Right);
        }
        let undecided = Expected::new(Verdict::Deny("registry_unavailable"));
        ensure!(
            undecided.holds(message),
            "a wrong decision: {:?}",
            CheckResponse::decode(message)
        );
        Ok(Answer::Undecided)
    }
}

impl Expected {
    fn holds(&self, message: &[u8]) -> bool {
        message.starts_with(&self.status) && self.field.find(message).is_some()
    }

    fn new(verdict: Verdict<'_>) -> Self {
        let (key, value, status) = match verdict {
            Verdict::Allow(id) => ("permission_id", id, rpc::Status::default()),
            Verdict::Deny(reason) => {
                let status = rpc::Status {
                    code: PERMISSION_DENIED,
                    message: reason.to_owned(),
                    ..Default::default()
                };
                ("reason", reason, status)
            }
        };
        let status = CheckResponse {
            status: Some(status),
            ..Default::default()
        };
        let kind = Some(value::Kind::StringValue(value.to_owned()));
        let metadata = Struct {
            fields: [(key.to_owned(), Value { kind })].into(),
        };
        Self {
            status: status.encode_to_vec(),
            field: Finder::new(&metadata.encode_to_vec()).into_owned(),
        }
    }
}

/// The end of a Check about a call with this body: what of a message comes twice is merged
/// (Protocol Buffers, "Encoding", "Last One Wins"), so the body can follow all the rest.
pub(crate) fn tail(body: Vec<u8>) -> Bytes {
    let http = HttpRequest {
        raw_body: body,
        ..Default::default()
    };
    let request = Request {
        http: Some(http),
        ..Default::default()
    };
    let attributes = AttributeContext {
        request: Some(request),
        ..Default::default()
    };
    let check = CheckRequest {
        attributes: Some(attributes),
    };
    check.encode_to_vec().into()
}

fn request_id() -> (String, String) {
    let id = "726f12b3-a900-46de-b598-7aea95f9fa7c";
    ("x-request-id".to_owned(), id.to_owned())
}

/// What Envoy 1.40 sends, with `envoy/envoy.yaml`.
fn check(certificate: &str, http: HttpRequest, lane: &str) -> CheckRequest {
    let peer = |port, principal: &str, certificate: &str| Peer {
        address: Some(loopback(port)),
        principal: principal.to_owned(),
        certificate: certificate.to_owned(),
        ..Default::default()
    };
    let http = HttpRequest {
        id: "9207724745914340321".to_owned(),
        scheme: "https".to_owned(),
        protocol: "HTTP/2".to_owned(),
        ..http
    };
    let lane = Some(lane).filter(|lane| !lane.is_empty());
    let lane = lane.map(|lane| ("lane".to_owned(), lane.to_owned()));
    let request = Request {
        time: Some(Timestamp {
            seconds: 1_795_353_726,
            nanos: 87_414_000,
        }),
        http: Some(http),
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(peer(36630, "CN=agent", certificate)),
            destination: Some(peer(8443, "gateway", "")),
            request: Some(request),
            context_extensions: lane.into_iter().collect(),
            metadata_context: Some(Metadata::default()),
            route_metadata_context: Some(Metadata::default()),
            ..Default::default()
        }),
    }
}

fn loopback(port: u32) -> Address {
    Address {
        address: Some(Kind::SocketAddress(SocketAddress {
            address: "127.0.0.1".to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: rpc::Status, key: &str, value: &str) -> Vec<u8> {
        let field = |text: &str| Value {
            kind: Some(value::Kind::StringValue(text.to_owned())),
        };
        let fields = [("dial", field("127.0.0.1:1")), (key, field(value))];
        let fields = fields.map(|(key, value)| (key.to_owned(), value));
        let message = CheckResponse {
            status: Some(status),
            dynamic_metadata: Some(Struct {
                fields: fields.into(),
            }),
            ..Default::default()
        };
        [&[0; 5], message.encode_to_vec().as_slice()].concat()
    }

    fn denied(reason: &str) -> rpc::Status {
        rpc::Status {
            code: PERMISSION_DENIED,
            message: reason.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn only_an_allow_by_the_right_permission_is_right() {
        let question = Question::new("", "a.test:443", Verdict::Allow("p-1"));
        let allowed = |id| answer(rpc::Status::default(), "permission_id", id);
        assert_eq!(question.check(&allowed("p-1")).unwrap(), Answer::Right);
        assert!(question.check(&allowed("p-10")).is_err());
        assert!(question.check(&allowed("p-2")).is_err());
        let refused = answer(denied("no_permission"), "permission_id", "p-1");
        assert!(question.check(&refused).is_err());
        assert!(question.check(&[]).is_err());
    }

    #[test]
    fn only_a_deny_for_the_right_reason_is_right() {
        let question = Question::new("", "a.test:443", Verdict::Deny("permission_revoked"));
        let refused = |reason| answer(denied(reason), "reason", reason);
        let right = question.check(&refused("permission_revoked")).unwrap();
        assert_eq!(right, Answer::Right);
        let undecided = question.check(&refused("registry_unavailable")).unwrap();
        assert_eq!(undecided, Answer::Undecided);
        assert!(question.check(&refused("permission_expired")).is_err());
        let allowed = answer(rpc::Status::default(), "reason", "permission_revoked");
        assert!(question.check(&allowed).is_err());
    }
}
