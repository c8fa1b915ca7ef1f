//! Envoy's `ext_authz` service: one Check for each CONNECT, and one for each tool call.

pub(crate) mod answer;
mod asked;
mod certificates;
pub mod profiles;

use std::str::EscapeDebug;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::audit::{Event, Outcome, Record, Target};
use envoy_types::pb::envoy::service::auth::v3::authorization_server::Authorization;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use permission::{Reason, Timestamp};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tracing::field::{self, DisplayValue};
use tracing::{Instrument as _, Span};
use uuid::Uuid;

use crate::audit::{Audit, Unwritable};
use crate::decision_point::{DecisionPoint, Denial, Leave};
use crate::metrics::Metrics;
use crate::relay::{self, Question, Relay};
use crate::telemetry;

pub(crate) use answer::{Telling, proxy_status};
use asked::Asked;
pub(crate) use certificates::Certificates;
use profiles::Profiles;

/// Answers Checks.
#[derive(Debug, Clone)]
pub struct Checks {
    point: Arc<DecisionPoint>,
    relay: Option<Arc<Relay>>,
    profiles: Profiles,
    audit: Audit,
    metrics: Metrics,
    timeout: Duration,
    traced: bool,
    places: Arc<Semaphore>,
}

/// How Checks are answered.
#[derive(Debug)]
pub struct Options {
    /// How they are read.
    pub profiles: Profiles,
    /// Clips a Check as a whole.
    pub timeout: Duration,
    /// Most that are in progress at a time, over all connections.
    pub most: usize,
    /// Whether each Check gets a span: making one takes longer than deciding.
    pub traced: bool,
}

impl Checks {
    /// Without a `relay`, tool calls are denied.
    pub fn new(
        point: Arc<DecisionPoint>,
        relay: Option<Arc<Relay>>,
        audit: Audit,
        metrics: Metrics,
        options: Options,
    ) -> Self {
        let places = Arc::new(Semaphore::new(options.most));
        Self {
            point,
            relay,
            profiles: options.profiles,
            audit,
            metrics,
            timeout: options.timeout,
            traced: options.traced,
            places,
        }
    }

    /// A span in the trace that Envoy is in, if Checks are traced.
    fn span(&self, id: &str, metadata: &MetadataMap, attributes: &AttributeContext) -> Span {
        if !self.traced {
            return Span::none();
        }
        let span = tracing::info_span!(
            "check",
            decision.id = id,
            request.id = request_id(attributes),
            reason = field::Empty,
            identity = field::Empty,
            destination = field::Empty
        );
        telemetry::continue_trace(&span, metadata, asked::http(attributes));
        span
    }

    /// Answers a Check about a tool call.
    async fn call(
        &self,
        attributes: AttributeContext,
        metadata: &MetadataMap,
        id: Uuid,
    ) -> CheckResponse {
        let decision_id = id.to_string();
        let request_id = request_id(&attributes).to_owned();
        let trace_id = telemetry::trace_id(metadata, asked::http(&attributes)).map(str::to_owned);
        let question = Question {
            decision: &decision_id,
            request: &request_id,
            trace: &trace_id.unwrap_or_else(|| id.simple().to_string()),
        };
        match &self.relay {
            Some(relay) => {
                relay
                    .check(attributes, self.profiles.tunnel(), &question)
                    .await
            }
            None => relay::switched_off(&self.audit, &question).await,
        }
    }

    async fn decide(
        &self,
        attributes: &AttributeContext,
        asked: &mut Asked,
        now: Timestamp,
        deadline: Instant,
    ) -> Result<Leave, Denial> {
        let profile = self.profiles.of(attributes).ok_or(Reason::ProfileUnknown)?;
        let request = asked::read(attributes, profile, asked)?;
        self.point
            .decide(&request, now, deadline, profile.resolve)
            .await
    }

    /// Has the decision recorded; what can't be is no decision.
    async fn recorded(
        &self,
        decided: Result<Leave, Denial>,
        asked: &Asked,
        about: About<'_>,
        deadline: Instant,
    ) -> Result<Leave, Denial> {
        if !self.audit.is_on() {
            return decided;
        }
        let reason = match &decided {
            Ok(_) => "allowed",
            Err(denial) => denial.reason.code(),
        };
        let record = about.record(&decided, asked, std::slice::from_ref(&reason));
        match timeout_at(deadline, Box::pin(self.audit.record(&record))).await {
            Ok(Ok(())) => decided,
            Ok(Err(Unwritable)) | Err(_) => Err(Reason::AuditUnavailable.into()),
        }
    }
}

/// Which decision a record is about.
#[derive(Debug, Clone, Copy)]
struct About<'a> {
    id: &'a str,
    request_id: &'a str,
    trace_id: Option<&'a str>,
    decided_at: Timestamp,
}

impl<'a> About<'a> {
    fn record(
        self,
        decided: &'a Result<Leave, Denial>,
        asked: &'a Asked,
        reason: &'a [&'a str],
    ) -> Record<'a> {
        let leave = decided.as_ref().ok();
        let event = match decided {
            Ok(_) => Event::Decision(Outcome::Allow, 200),
            Err(denial) => {
                let status = Telling::of(denial.reason).status;
                Event::Decision(Outcome::Deny, u16::try_from(status).unwrap_or(0))
            }
        };
        Record {
            target: Target::Tunnel(asked.destination.as_ref()),
            decision_id: Some(self.id),
            request_id: Some(self.request_id).filter(|id| !id.is_empty()),
            trace_id: self.trace_id,
            identity: asked.identity.as_ref(),
            spki: asked.spki.as_ref(),
            permission_id: leave.map(|leave| leave.permission_id.as_str()),
            signing_key_id: leave.map(|leave| leave.signing_key_id.as_str()),
            dialled: leave.and_then(|leave| Some(leave.target.as_ref()?.address)),
            reason,
            ..Record::new(self.decided_at, event)
        }
    }
}

#[tonic::async_trait]
impl Authorization for Checks {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let Ok(_place) = self.places.try_acquire() else {
            return Err(Status::resource_exhausted("too many checks in progress"));
        };
        let started = Instant::now();
        let (metadata, _, message) = request.into_parts();
        let attributes = message.attributes.unwrap_or_default();
        let uuid = Uuid::new_v4();
        if relay::is_call(&attributes) {
            let span = self.span(&uuid.to_string(), &metadata, &attributes);
            // Apart, so that the Check of a tunnel stays small.
            let answer = Box::pin(self.call(attributes, &metadata, uuid)).instrument(span);
            return Ok(Response::new(answer.await));
        }
        let request_id = request_id(&attributes);
        let id = uuid.to_string();
        let span = self.span(&id, &metadata, &attributes);

        async {
            let mut asked = Asked::default();
            let deadline = started + self.timeout;
            let decided = self.decide(&attributes, &mut asked, now(), deadline).await;
            // Looking up and resolving took time, and the permission may have ended meanwhile.
            let decided_at = now();
            let decided = match decided {
                Ok(leave) if leave.ends_at <= decided_at => Err(Reason::PermissionExpired.into()),
                decided => decided,
            };
            let about = About {
                id: &id,
                request_id,
                trace_id: if self.audit.is_on() {
                    telemetry::trace_id(&metadata, asked::http(&attributes))
                } else {
                    None
                },
                decided_at,
            };
            let decided = self.recorded(decided, &asked, about, deadline).await;
            log(&decided, &asked, &id, request_id);
            let denied = decided.as_ref().err().map(|denial| denial.reason);
            self.metrics.checked(denied, started.elapsed());
            Ok(Response::new(match &decided {
                Ok(leave) => answer::allow(leave, &asked, now(), &id),
                Err(denial) => answer::deny(denial.reason, &asked, &id),
            }))
        }
        .instrument(span)
        .await
    }
}

/// Envoy's id of the request: what joins our records with its access log.
fn request_id(attributes: &AttributeContext) -> &str {
    const LONGEST: usize = 128;
    let headers = asked::http(attributes).map(|http| &http.headers);
    let id = headers
        .and_then(|headers| headers.get("x-request-id"))
        .map_or("", String::as_str);
    if id.len() <= LONGEST { id } else { "" }
}

/// The one line about a decision, and the same for its trace. Allows are in Envoy's access log too,
/// and far more of them.
fn log(decided: &Result<Leave, Denial>, asked: &Asked, id: &str, request_id: &str) {
    let identity = asked
        .identity
        .as_ref()
        .map(|identity| readable(identity.as_str()));
    let destination = asked.destination.as_ref().map(field::display);
    match decided {
        Ok(leave) => tracing::debug!(
            decision.id = id,
            request.id = request_id,
            identity,
            destination,
            permission.id = readable(leave.permission_id.as_str()),
            signing_key.id = readable(leave.signing_key_id.as_str()),
            dial = leave.target.as_ref().map(|target| field::display(target.address)),
            ends_at = %leave.ends_at,
            "allowed"
        ),
        Err(Denial {
            reason: reason @ (Reason::RegistryUnavailable | Reason::AuditUnavailable),
            cause,
        }) => tracing::error!(
            decision.id = id,
            request.id = request_id,
            identity,
            destination,
            %reason,
            cause,
            "denied"
        ),
        Err(Denial { reason, cause }) => tracing::info!(
            decision.id = id,
            request.id = request_id,
            identity,
            destination,
            %reason,
            cause,
            "denied"
        ),
    }
    let reason = decided
        .as_ref()
        .map_or_else(|denial| denial.reason.code(), |_| "allowed");
    let span = Span::current();
    if !span.is_disabled() {
        span.record("reason", reason)
            .record("identity", identity)
            .record("destination", destination);
    }
}

/// A name of somebody's choice, without characters that would disguise it: bidirectional ones in a
/// terminal, or line ends that only some programs take for one.
pub(crate) fn readable(name: &str) -> DisplayValue<EscapeDebug<'_>> {
    field::display(name.escape_debug())
}

/// The wall clock; the one place where this program reads it for a decision.
pub(crate) fn now() -> Timestamp {
    let since_epoch = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let micros = i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX);
    // A clock beyond the year 9999 finds every permission expired.
    Timestamp::from_unix_micros(micros).unwrap_or(Timestamp::MAX)
}
