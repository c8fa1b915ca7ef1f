//! Tool calls: one Check with the whole body for each `POST /relay`.
//!
//! Nobody's CA vouches for who calls, so a call needs first what a tunnel needs: an active signed
//! permission for (identity, key, the tool's host and port). Then come the proof of its context,
//! the contract, the policy, the egress list and the tool's address, in this order; the first that
//! says no gives the reason. Nothing is sent from here: Envoy sends what this allows.

pub mod agents;
mod answer;
pub mod contracts;
mod denial;
pub mod egress;
pub mod envelope;
mod files;
mod keys;
mod memory;
pub mod nonces;
pub mod policy;
pub mod reason;
mod record;
pub mod reload;
pub mod rules;
pub mod tools;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::HttpRequest;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckResponse};
use permission::{Destination, Identity, Request, Spki, Timestamp};
use poca::PublicKey;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use crate::audit::Audit;
use crate::check::{Certificates, now};
use crate::decision_point::{DecisionPoint, Grounds};
use crate::metrics::Metrics;
use crate::resolver::Target as Dialled;

use envelope::{Call, EnvelopeError, Form};
use keys::{AgentKeys, Entry};
use nonces::{Nonces, Refusal};
use policy::opa::{Opa, OpaError};
use policy::{Answer, Input};
use reload::CurrentRules;
use rules::Rules;
use tools::{Tool, ToolName};

pub use denial::Denial;
pub(crate) use memory::{Bodies, Budget};
pub use reason::Reason;
pub(crate) use record::Question;
use record::{log, recorded};

/// Largest body that is carried, in bytes; Envoy's `max_request_bytes` is the same.
pub const MAX_BODY: usize = 2 * 1024 * 1024;
/// Up to this many bytes are worked through in place; more by a thread that may take its time.
const INLINE_BODY: usize = 64 * 1024;
/// Longest `X-Contract-ID`, in bytes.
const MAX_CONTRACT_ID: usize = 256;
/// Longest that recording a decision may take, beyond deciding.
const RECORDING: Duration = Duration::from_millis(250);
/// How often a call is decided whose permission changes meanwhile.
const TRIES: usize = 2;

/// Who asks Envoy says in this member of the Check's context, which no client can set.
const LANE: &str = "lane";

/// Decides about tool calls.
#[derive(Debug)]
pub struct Relay {
    point: Arc<DecisionPoint>,
    rules: Arc<CurrentRules>,
    /// Agents' keys from the registry, beside those of the rules.
    keys: AgentKeys,
    opa: Option<Opa>,
    nonces: Arc<dyn Nonces>,
    audit: Audit,
    metrics: Metrics,
    options: Options,
    /// Large bodies worked through at a time.
    turns: Semaphore,
}

/// How calls are decided about.
#[derive(Debug, Clone)]
pub struct Options {
    /// Clips a decision as a whole.
    pub timeout: Duration,
    /// Whether a call must have its context proven. Where it need not, a proof that a call has all
    /// the same must be good, and policy is told of one that has none.
    pub poca_required: bool,
    /// How far away a proof's end may be.
    pub max_manifest_ttl: Duration,
}

/// As much of a call as could be read; a deny names what is known.
#[derive(Debug, Default)]
pub struct Asked {
    /// From the certificate.
    pub identity: Option<Identity>,
    /// From the certificate.
    pub spki: Option<Spki>,
    /// From the body.
    pub tool: Option<ToolName>,
    /// The tool's host and port.
    pub destination: Option<Destination>,
}

/// Leave to call one tool with one payload.
#[derive(Debug)]
pub struct Forward {
    /// The permission.
    grounds: Grounds,
    /// Where to dial.
    target: Dialled,
    /// Which tool.
    tool: Tool,
    /// Which bytes of the body it gets.
    payload: Range<usize>,
    /// What they are.
    form: Form,
    /// When this was decided.
    decided_at: Timestamp,
}

/// A proof that was good, and what that rests on.
#[derive(Debug)]
struct Proven {
    /// The agent's key.
    key: PublicKey,
    /// The registry's rows, where it has the key from there alone.
    rows: Option<Arc<Entry>>,
}

/// Whether Envoy asks about a tool call: its route says so.
pub(crate) fn is_call(attributes: &AttributeContext) -> bool {
    (attributes.context_extensions.get(LANE)).is_some_and(|lane| lane == "relay")
}

/// The answer where no tools are configured.
pub(crate) async fn switched_off(audit: &Audit, question: &Question<'_>) -> CheckResponse {
    let asked = Asked::default();
    let denied = Denial::because(Reason::UnknownTool, "no tools are configured");
    let deadline = Instant::now() + RECORDING;
    let decided = recorded(audit, Err(denied), &asked, question, deadline).await;
    log(&decided, &asked, question);
    answer::of(&decided, &asked, question.decision)
}

impl Relay {
    /// `opa` is asked where there is one, else the Rego in `rules`.
    pub fn new(
        point: Arc<DecisionPoint>,
        rules: Arc<CurrentRules>,
        opa: Option<Opa>,
        nonces: Arc<dyn Nonces>,
        audit: Audit,
        metrics: Metrics,
        options: Options,
    ) -> Self {
        let turns = available_parallelism().map_or(1, usize::from);
        Self {
            keys: AgentKeys::new(point.cache.clone()),
            point,
            rules,
            opa,
            nonces,
            audit,
            metrics,
            options,
            turns: Semaphore::new(turns),
        }
    }

    /// Answers one Check.
    pub(crate) async fn check(
        &self,
        attributes: AttributeContext,
        certificates: &Certificates,
        question: &Question<'_>,
    ) -> CheckResponse {
        let started = Instant::now();
        let mut asked = Asked::default();
        let deadline = started + self.options.timeout;
        let decided = self
            .decide(attributes, certificates, question, &mut asked, deadline)
            .await;
        // However late the decision, it is recorded.
        let deadline = deadline + RECORDING;
        let decided = recorded(&self.audit, decided, &asked, question, deadline).await;
        log(&decided, &asked, question);
        let denied = decided.as_ref().err().map(|denial| denial.reason.code());
        self.metrics.called(denied, started.elapsed());
        answer::of(&decided, &asked, question.decision)
    }

    async fn decide(
        &self,
        attributes: AttributeContext,
        certificates: &Certificates,
        question: &Question<'_>,
        asked: &mut Asked,
        deadline: Instant,
    ) -> Result<Forward, Denial> {
        let http = attributes.request.and_then(|request| request.http);
        let mut http = http.ok_or(Reason::MethodNotAllowed)?;
        if http.method != "POST" {
            return Err(Reason::MethodNotAllowed.into());
        }
        let leaf = attributes.source.as_ref();
        let leaf = certificates.read(leaf.map_or("", |source| source.certificate.as_str()))?;
        asked.identity = Some(leaf.identity.clone());
        asked.spki = Some(leaf.spki.clone());
        // Envoy asks with the first 2 MiB of some bodies that have more.
        let body = Bytes::from(std::mem::take(&mut http.raw_body));
        let partial = header(&http, "x-envoy-auth-partial-body") == Some("true");
        if partial || body.len() > MAX_BODY {
            return Err(Reason::BodyTooLarge.into());
        }

        // What can't be read as an envelope is for this one.
        asked.tool = Some(tools::bare_body_tool());
        let call = self.read(&http, &body, deadline).await?;
        asked.tool = Some(call.tool.clone());
        let rules = self.rules.get();
        let tool = rules.tools.find(&call.tool).ok_or(Reason::UnknownTool)?;
        let request = Request {
            identity: leaf.identity.clone(),
            spki: leaf.spki.clone(),
            destination: tool.url.destination.clone(),
        };
        asked.destination = Some(request.destination.clone());
        let grounds = self.point.grounds(&request, now(), deadline).await?;
        let proven = self
            .proof(&http, &body, &request, tool, &rules, deadline)
            .await?;
        let contract = self.contract(&http, &body, &call, tool, &rules, deadline);
        let contract = contract.await?;
        let input = Input {
            caller: leaf.identity.as_str(),
            tool: tool.name.as_str(),
            poca_verified: proven.is_some(),
            trace_id: question.trace,
            schema_id: contract.as_deref(),
        };
        self.policy(&input, &rules, deadline).await?;
        if !rules.egress.allows(&tool.url) {
            return Err(Denial::because(Reason::EgressDenied, &tool.url));
        }
        let (grounds, target) = self
            .target(&request, grounds, proven, tool, deadline)
            .await?;
        let decided_at = now();
        if grounds.ends_at <= decided_at {
            return Err(permission::Reason::PermissionExpired.into());
        }
        Ok(Forward {
            grounds,
            target,
            tool: tool.clone(),
            payload: call.payload,
            form: call.form,
            decided_at,
        })
    }

    /// Which tool, and which bytes for it.
    async fn read(
        &self,
        http: &HttpRequest,
        body: &Bytes,
        deadline: Instant,
    ) -> Result<Call, Denial> {
        let coding = header(http, "content-encoding").unwrap_or("identity");
        if !coding.eq_ignore_ascii_case("identity") {
            return Err(Reason::BodyUnreadable.into());
        }
        let declared_json = header(http, "content-type").is_some_and(is_json);
        let read = {
            let body = body.clone();
            move || envelope::read(&body, declared_json)
        };
        let read = self.work(body.len(), deadline, read).await?;
        read.map_err(|error| match error {
            EnvelopeError::NotJson => Reason::JsonParseError.into(),
            EnvelopeError::Malformed => Reason::EnvelopeInvalid.into(),
            EnvelopeError::BadName => Reason::UnknownTool.into(),
        })
    }

    /// The proof of the call's context: `None` where there is none and none is needed.
    async fn proof(
        &self,
        http: &HttpRequest,
        body: &Bytes,
        request: &Request,
        tool: &Tool,
        rules: &Rules,
        deadline: Instant,
    ) -> Result<Option<Proven>, Denial> {
        let headers = poca::Headers {
            manifest: header(http, "x-poca-manifest"),
            signature: header(http, "x-poca-signature"),
        };
        let has_none = headers.manifest.is_none() && headers.signature.is_none();
        if has_none && !self.options.poca_required {
            return Ok(None);
        }
        let hash = {
            let body = body.clone();
            move || Sha256::digest(&body).into()
        };
        let payload_sha256 = self.work(body.len(), deadline, hash).await?;
        let caller = &request.identity;
        let rows = self.rows(request, deadline).await?;
        let now = now();
        let listed = rules.agents.keys(caller);
        let counting = rows.counting(caller, &request.destination, now);
        let keys: Vec<PublicKey> = listed.iter().copied().chain(counting).collect();
        let expected = poca::Expected {
            caller,
            tool: tool.name.as_str(),
            payload_sha256,
            keys: &keys,
            now,
            max_ttl: self.options.max_manifest_ttl,
        };
        let proof = poca::verify(&headers, &expected).map_err(Reason::Poca)?;
        // Last, so that nobody can use up another's.
        match self.nonces.use_up(&proof, expected.now, deadline).await {
            Ok(()) => Ok(Some(Proven {
                key: proof.key(),
                rows: (!listed.contains(&proof.key())).then_some(rows),
            })),
            Err(Refusal::Used) => Err(Reason::Poca(poca::Reason::Replay).into()),
            Err(refusal) => Err(Denial::because(Reason::NoncesUnavailable, &refusal)),
        }
    }

    /// The registry's keys of whoever asks, for where it asks to go.
    async fn rows(&self, request: &Request, deadline: Instant) -> Result<Arc<Entry>, Denial> {
        let rows = self
            .keys
            .of(&request.identity, &request.destination, deadline);
        // Apart: mostly nothing of it is waited for.
        Box::pin(rows).await.map_err(|error| {
            Denial::because(permission::Reason::RegistryUnavailable.into(), &error)
        })
    }

    /// Holds the payload against the contract that the call names and the tool's own; returns the
    /// `$id` that policy is told.
    async fn contract(
        &self,
        http: &HttpRequest,
        body: &Bytes,
        call: &Call,
        tool: &Tool,
        rules: &Arc<Rules>,
        deadline: Instant,
    ) -> Result<Option<String>, Denial> {
        let named = header(http, "x-contract-id").filter(|id| !id.is_empty());
        if let Some(id) = named
            && (id.len() > MAX_CONTRACT_ID || !rules.contracts.contains(id))
        {
            return Err(Reason::UnknownContract.into());
        }
        let mut ids: Vec<String> = [named, tool.contract.as_deref()]
            .into_iter()
            .flatten()
            .map(str::to_owned)
            .collect();
        ids.dedup();
        let Some(told) = ids.first().cloned() else {
            return Ok(None);
        };
        // Nobody said that a bare body is JSON; what is held against a contract must be all the same.
        if !call.is_json {
            return Err(Reason::JsonParseError.into());
        }
        let (rules, payload) = (Arc::clone(rules), body.slice(call.payload.clone()));
        let check = move || hold_against(&ids, &payload, &rules);
        self.work(body.len(), deadline, check).await??;
        Ok(Some(told))
    }

    async fn policy(
        &self,
        input: &Input<'_>,
        rules: &Rules,
        deadline: Instant,
    ) -> Result<(), Denial> {
        let answer = match (&self.opa, &rules.rego) {
            (Some(opa), _) => opa.evaluate(input, deadline).await.map_err(|error| {
                let reason = match error {
                    OpaError::Unreachable(_) => Reason::OpaUnreachable,
                    OpaError::BadResponse(_) => Reason::OpaBadResponse,
                };
                Denial::because(reason, &error)
            })?,
            (None, Some(rego)) => rego
                .evaluate(input)
                .map_err(|error| Denial::because(Reason::PolicyError, &error))?,
            (None, None) => return Err(Denial::because(Reason::PolicyError, "there is none")),
        };
        match answer {
            Answer::Allow => Ok(()),
            Answer::Deny(reasons) => Err(Denial::because(Reason::Policy, &reasons.join("; "))),
        }
    }

    /// The tool's address, on grounds that still hold when it is known.
    async fn target(
        &self,
        request: &Request,
        mut grounds: Grounds,
        proven: Option<Proven>,
        tool: &Tool,
        deadline: Instant,
    ) -> Result<(Grounds, Dialled), Denial> {
        let target = self
            .point
            .target(&request.destination, &tool.addresses, deadline)
            .await?;
        let key = proven.as_ref().map(|proven| proven.key);
        let mut rows = proven.and_then(|proven| proven.rows);
        for _ in 0..TRIES {
            let key_holds = rows.as_ref().is_none_or(|rows| self.keys.still_hold(rows));
            if key_holds && self.point.still_hold(&grounds) {
                return Ok((grounds, target));
            }
            grounds = self.point.grounds(request, now(), deadline).await?;
            if let (Some(rows), Some(key)) = (&mut rows, key) {
                *rows = self.rows(request, deadline).await?;
                let mut counting = rows.counting(&request.identity, &request.destination, now());
                if !counting.any(|counting| counting == key) {
                    return Err(Reason::Poca(poca::Reason::UnknownCallerKey).into());
                }
            }
        }
        Err(Denial::because(
            permission::Reason::RegistryUnavailable.into(),
            "permissions change faster than they can be decided on",
        ))
    }

    /// Works through a body of so many bytes, without holding up whoever else is served.
    async fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        deadline: Instant,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Denial> {
        if bytes <= INLINE_BODY {
            return Ok(work());
        }
        let overloaded = |_| Denial::from(Reason::Overloaded);
        let turn = timeout_at(deadline, self.turns.acquire()).await;
        let _turn = turn.map_err(overloaded)?;
        // A panic there is a decision that could not be made.
        spawn_blocking(work)
            .await
            .map_err(|error| Denial::because(Reason::Overloaded, &error))
    }
}

fn hold_against(ids: &[String], payload: &[u8], rules: &Rules) -> Result<(), Denial> {
    let payload =
        serde_json::from_slice(payload).map_err(|_| Denial::from(Reason::JsonParseError))?;
    for id in ids {
        let checked = rules.contracts.check(id, &payload);
        // Tools' own contracts were looked up when the rules were read.
        let checked = checked.ok_or(Reason::UnknownContract)?;
        checked.map_err(|violation| Denial {
            violation: Some(violation),
            ..Reason::SchemaRequestInvalid.into()
        })?;
    }
    Ok(())
}

/// A header's value; Envoy writes names in lower case, and joins repeated ones with commas.
fn header<'a>(http: &'a HttpRequest, name: &str) -> Option<&'a str> {
    let headers: &HashMap<String, String> = &http.headers;
    headers.get(name).map(String::as_str)
}

/// `application/json`, or a type that ends in `+json` (RFC 6839), whatever its parameters. Of several
/// each counts: which one the tool goes by is not known.
fn is_json(content_type: &str) -> bool {
    content_type.split(',').any(|one| {
        let essence = one.split(';').next().unwrap_or_default().trim();
        let essence = essence.to_ascii_lowercase();
        essence == "application/json" || essence.ends_with("+json")
    })
}
