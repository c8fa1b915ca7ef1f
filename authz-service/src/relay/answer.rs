//! Writes Envoy's `CheckResponse` about a tool call.
//!
//! An allow names, in metadata that no client can set, the lane, the address and which bytes of
//! the body are the payload; Envoy does the rest. No content length is named here: with the body
//! unreplaced, what is beyond it would become the next request on the tool's connection.

use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::{CheckResponse, OkHttpResponse};
use envoy_types::pb::google::protobuf::value::Kind;

use super::envelope::Form;
use super::{Asked, Denial, Forward};
use crate::check::answer::{self, DECISION_ID, Field, header, text};

/// Which answers Envoy waits for no longer than this, in milliseconds.
const TIME_LIMIT: &str = "x-envoy-upstream-rq-timeout-ms";
/// Tells the tool who calls.
const IDENTITY: &str = "x-agent-identity";
/// Tells the tool under which decision.
const TOOL_DECISION_ID: &str = "x-decision-id";

/// What is between the agent and the gateway, and none of the tool's business. Envoy's filter lets
/// only a few other headers through; these are taken away before that, too.
const REMOVED: [&str; 6] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "x-poca-manifest",
    "x-poca-signature",
    "x-contract-id",
];

/// Either.
pub(super) fn of(decided: &Result<Forward, Denial>, asked: &Asked, id: &str) -> CheckResponse {
    match decided {
        Ok(forward) => allow(forward, asked, id),
        Err(denial) => deny(denial, asked, id),
    }
}

/// An allow.
fn allow(forward: &Forward, asked: &Asked, id: &str) -> CheckResponse {
    let Forward {
        grounds,
        target,
        tool,
        ..
    } = forward;
    let time_limit = tool.time_limit.min(time_left(forward));
    let mut headers = vec![
        header(":path", &tool.url.path_and_query),
        header(":authority", &tool.url.authority()),
        header(TIME_LIMIT, &time_limit.as_millis().max(1).to_string()),
        header(TOOL_DECISION_ID, id),
    ];
    if let Some(identity) = &asked.identity {
        headers.push(header(IDENTITY, &identity.header_value()));
    }
    if forward.form == Form::Envelope {
        headers.push(header("content-type", "application/json"));
    }
    let answer = OkHttpResponse {
        headers,
        headers_to_remove: REMOVED.map(str::to_owned).to_vec(),
        response_headers_to_add: vec![header(DECISION_ID, id)],
        ..Default::default()
    };
    let mut metadata = known(asked, "allowed", id);
    metadata.extend([
        ("permission_id", text(grounds.permission_id.as_str())),
        ("signing_key_id", text(grounds.signing_key_id.as_str())),
        ("lane", text(tool.url.scheme.as_str())),
        ("dial", text(&target.address.to_string())),
        ("allow_private", Kind::BoolValue(target.private)),
        ("off", number(forward.payload.start)),
        ("len", number(forward.payload.len())),
    ]);
    answer::allowed(answer, metadata)
}

/// How long the permission still lasts.
fn time_left(forward: &Forward) -> Duration {
    let left = forward.grounds.ends_at.as_unix_micros() - forward.decided_at.as_unix_micros();
    Duration::from_micros(u64::try_from(left).unwrap_or(0))
}

/// A deny: its status, a body that an agent understands, and the same for the access log.
fn deny(denial: &Denial, asked: &Asked, id: &str) -> CheckResponse {
    let (code, telling) = (denial.reason.code(), denial.reason.telling());
    let mut body = answer::body(&telling, code, id);
    if let (Some(body), Some(violation)) = (body.as_object_mut(), &denial.violation) {
        body.insert("pointer".to_owned(), violation.pointer.as_str().into());
        body.insert("keyword".to_owned(), violation.keyword.as_str().into());
    }
    answer::denied(&telling, code, id, "POST", &body, known(asked, code, id))
}

fn known(asked: &Asked, reason: &str, id: &str) -> Vec<Field> {
    let mut fields = vec![("reason", text(reason)), ("decision_id", text(id))];
    let identity = asked.identity.as_ref();
    let read = [
        ("identity", identity.map(|identity| text(identity.as_str()))),
        ("spki", asked.spki.as_ref().map(|spki| text(&spki.to_hex()))),
        ("tool", asked.tool.as_ref().map(|tool| text(tool.as_str()))),
        (
            "destination",
            asked.destination.as_ref().map(|to| text(&to.to_string())),
        ),
    ];
    fields.extend(
        read.into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    fields
}

/// Exact: a body has far fewer bytes than a double has whole numbers.
fn number(value: usize) -> Kind {
    Kind::NumberValue(f64::from(u32::try_from(value).unwrap_or(u32::MAX)))
}
