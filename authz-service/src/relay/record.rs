//! What is written down of a decision about a tool call.

use tokio::time::{Instant, timeout_at};
use tracing::field;

use ::audit::{Event, Outcome, Record, Target};

use super::tools::ToolName;
use super::{Asked, Denial, Forward};
use crate::audit::{Audit, Unwritable};
use crate::check::{now, readable};

/// What joins a decision with other records.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    /// The decision's id.
    pub(crate) decision: &'a str,
    /// Envoy's id of the request.
    pub(crate) request: &'a str,
    /// The id of the trace that it is in.
    pub(crate) trace: &'a str,
}

/// Has the decision recorded; what can't be is no decision.
pub(super) async fn recorded(
    audit: &Audit,
    decided: Result<Forward, Denial>,
    asked: &Asked,
    question: &Question<'_>,
    deadline: Instant,
) -> Result<Forward, Denial> {
    if !audit.is_on() {
        return decided;
    }
    let forward = decided.as_ref().ok();
    let grounds = forward.map(|forward| &forward.grounds);
    let (event, reason) = match &decided {
        Ok(_) => (Event::Decision(Outcome::Allow, 200), vec!["allowed"]),
        Err(Denial { reason, .. }) => {
            let status = u16::try_from(reason.telling().status).unwrap_or(0);
            (Event::Decision(Outcome::Deny, status), reason.codes())
        }
    };
    let record = Record {
        target: Target::Tool(asked.tool.as_ref().map(ToolName::as_str)),
        decision_id: Some(question.decision),
        request_id: Some(question.request).filter(|id| !id.is_empty()),
        trace_id: Some(question.trace),
        identity: asked.identity.as_ref(),
        spki: asked.spki.as_ref(),
        permission_id: grounds.map(|grounds| grounds.permission_id.as_str()),
        signing_key_id: grounds.map(|grounds| grounds.signing_key_id.as_str()),
        dialled: forward.map(|forward| forward.target.address),
        reason: &reason,
        ..Record::new(now(), event)
    };
    match timeout_at(deadline, audit.record(&record)).await {
        Ok(Ok(())) => decided,
        Ok(Err(Unwritable)) | Err(_) => Err(permission::Reason::AuditUnavailable.into()),
    }
}

/// The one line about a decision.
pub(super) fn log(decided: &Result<Forward, Denial>, asked: &Asked, question: &Question<'_>) {
    let identity = (asked.identity.as_ref()).map(|identity| readable(identity.as_str()));
    let destination = asked.destination.as_ref().map(field::display);
    let tool = asked.tool.as_ref().map(ToolName::as_str);
    let (decision, request) = (question.decision, question.request);
    match decided {
        Ok(forward) => tracing::debug!(
            decision.id = decision,
            request.id = request,
            identity,
            tool,
            destination,
            permission.id = readable(forward.grounds.permission_id.as_str()),
            dial = %forward.target.address,
            "call allowed"
        ),
        Err(denial) if denial.reason.telling().status == 503 => tracing::error!(
            decision.id = decision,
            request.id = request,
            identity,
            tool,
            destination,
            reason = %denial.reason,
            cause = denial.cause,
            "call denied"
        ),
        Err(denial) => tracing::info!(
            decision.id = decision,
            request.id = request,
            identity,
            tool,
            destination,
            reason = %denial.reason,
            cause = denial.cause,
            "call denied"
        ),
    }
}
