//! For operators: liveness, readiness and metrics over HTTP; over gRPC decisions explained, what is
//! held in memory, and the kill switch for open tunnels.

mod operations;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use futures::{Stream, StreamExt as _};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use permission::{Decision, Identity, Reason, Request, Spki, decide, judge};
use proto::admin::v1::debug_server::Debug as DebugService;
use proto::admin::v1::{Candidate, ExplainRequest, ExplainResponse};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::Status;

use crate::audit::Audit;
use crate::check::profiles::{Profile, Profiles};
use crate::check::{Options, Telling, now};
use crate::connections::Connection;
use crate::decision_point::DecisionPoint;
use crate::freshness::{BootTime, Freshness};
use crate::metrics::Metrics;
use crate::relay::reload::CurrentRules;

pub use operations::Operations;

/// Longest a readiness probe waits for the registry.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest an HTTP connection lasts.
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);

/// What the HTTP endpoints look at.
#[derive(Debug, Clone)]
pub struct Probes {
    point: Arc<DecisionPoint>,
    freshness: Arc<Freshness>,
    audit: Audit,
    metrics: Metrics,
    rules: Option<Arc<CurrentRules>>,
    draining: Arc<AtomicBool>,
    /// Held while the registry is asked: probes leave the other connections to Checks.
    probing: Arc<Mutex<()>>,
}

impl Probes {
    /// Ready until [`Probes::drain`].
    pub fn new(
        point: Arc<DecisionPoint>,
        rules: Option<Arc<CurrentRules>>,
        freshness: Arc<Freshness>,
        audit: Audit,
        metrics: Metrics,
    ) -> Self {
        Self {
            point,
            rules,
            freshness,
            audit,
            metrics,
            draining: Arc::default(),
            probing: Arc::default(),
        }
    }

    /// From now on not ready: the service is about to stop.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Answers HTTP on `connections`, until it is dropped. One request each, for a bounded time.
    pub(crate) async fn serve(self, connections: impl Stream<Item = io::Result<Connection>>) {
        let service = TowerToHyperService::new(self.router());
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).keep_alive(false);
        let mut open = JoinSet::new();
        let mut connections = pin!(connections);
        while let Some(Ok(connection)) = connections.next().await {
            let served = http.serve_connection(TokioIo::new(connection), service.clone());
            // A client that sends half a request or takes half an answer is left, not waited for.
            open.spawn(timeout(HTTP_TIMEOUT, served));
            while open.try_join_next().is_some() {}
        }
    }

    /// `/healthz`, `/readyz`, `/metrics`.
    fn router(self) -> Router {
        Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self)
    }
}

async fn ready(State(probes): State<Probes>) -> (StatusCode, String) {
    if probes.draining.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    if !probes.audit.is_writable() {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "audit_unavailable\n".to_owned(),
        );
    }
    let deadline = Instant::now() + PROBE_TIMEOUT;
    let is_ready = timeout_at(deadline, async {
        let _one_at_a_time = probes.probing.lock().await;
        probes.point.registry.is_ready(deadline).await
    });
    let is_ready = is_ready.await.unwrap_or(false);
    // And its changes are followed, without which nothing would be allowed.
    if is_ready && probes.point.cache.confirm(deadline).await.is_ok() {
        // What is in force goes on being so, and the operator is told that it isn't what is there.
        let refused = probes.rules.as_ref().and_then(|rules| rules.refused());
        let detail = refused.map(|why| format!("relay_rules_refused: {why}\n"));
        (
            StatusCode::OK,
            format!("ready\n{}", detail.unwrap_or_default()),
        )
    } else {
        let code = "registry_unavailable\n".to_owned();
        (StatusCode::SERVICE_UNAVAILABLE, code)
    }
}

async fn metrics(State(probes): State<Probes>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let age = probes.freshness.confirmed();
    let age = age.map(|confirmed| BootTime::now().since(confirmed));
    ([(header::CONTENT_TYPE, kind)], probes.metrics.text(age))
}

/// Explains decisions that nobody asked for yet.
#[derive(Debug, Clone)]
pub struct Explainer {
    point: Arc<DecisionPoint>,
    profiles: Profiles,
    timeout: Duration,
}

impl Explainer {
    /// As Checks are answered with these options.
    pub fn new(point: Arc<DecisionPoint>, options: &Options) -> Self {
        Self {
            point,
            profiles: options.profiles.clone(),
            timeout: options.timeout,
        }
    }

    /// The address, none where it isn't resolved here, or why not; and what was looked at.
    async fn explain(
        &self,
        request: Result<(Request, bool), Reason>,
    ) -> (Result<Option<String>, Reason>, Vec<Candidate>) {
        let (now, deadline) = (now(), Instant::now() + self.timeout);
        let (request, resolve) = match request {
            Ok(asked) => asked,
            Err(reason) => return (Err(reason), Vec::new()),
        };
        let Ok(facts) = self.point.registry.facts(&request, deadline).await else {
            return (Err(Reason::RegistryUnavailable), Vec::new());
        };
        let candidates = facts.candidates.iter().map(|candidate| {
            let row = candidate.permission();
            let judged = judge(candidate, &request, now);
            Candidate {
                permission_id: row.permission_id.to_string(),
                signing_key_id: row.signing_key_id.to_string(),
                reason: judged.map_or_else(Reason::code, |_| "allowed").to_owned(),
                not_before: row.window.not_before().to_string(),
                not_after: row.window.not_after().to_string(),
            }
        });
        let candidates = candidates.collect();
        let decided = match decide(&facts, &request, now) {
            Decision::Allow(_) if !resolve => Ok(None),
            Decision::Allow(_) => {
                let DecisionPoint { addresses, .. } = &*self.point;
                let target = self.point.target(&request.destination, addresses, deadline);
                let target = target.await;
                let address = target.map(|target| Some(target.address.to_string()));
                address.map_err(|denial| denial.reason)
            }
            Decision::Deny(reason) => Err(reason),
        };
        (decided, candidates)
    }
}

#[tonic::async_trait]
impl DebugService for Explainer {
    async fn explain(
        &self,
        request: tonic::Request<ExplainRequest>,
    ) -> Result<tonic::Response<ExplainResponse>, Status> {
        let asked = request.into_inner();
        let name = Some(&*asked.profile).filter(|name| !name.is_empty());
        let profile = self.profiles.named(name).ok_or(Reason::ProfileUnknown);
        let caller = caller(&asked, profile)?;
        let destination = profile.and_then(|profile| {
            let destination = profile.destination("https", &asked.destination);
            destination.map_err(|denial| denial.reason)
        });
        let mut answer = ExplainResponse {
            decided_at: now().to_string(),
            ..Default::default()
        };
        if let Ok((identity, spki)) = &caller {
            answer.identity = identity.to_string();
            answer.spki_hex = spki.to_hex();
        }
        if let Ok(destination) = &destination {
            answer.destination = destination.to_string();
        }
        let request = profile.and_then(|profile| {
            let (identity, spki) = caller?;
            let request = Request {
                identity,
                spki,
                destination: destination?,
            };
            Ok((request, profile.resolve))
        });
        let (decided, candidates) = self.explain(request).await;
        answer.candidates = candidates;
        match decided {
            Ok(dial) => {
                "allow".clone_into(&mut answer.decision);
                "allowed".clone_into(&mut answer.reason);
                answer.dial = dial.unwrap_or_default();
            }
            Err(reason) => {
                "deny".clone_into(&mut answer.decision);
                reason.code().clone_into(&mut answer.reason);
                Telling::of(reason).hint.clone_into(&mut answer.hint);
            }
        }
        Ok(tonic::Response::new(answer))
    }
}

/// Who is asked about: by certificate, or by identity and key.
fn caller(
    asked: &ExplainRequest,
    profile: Result<&Profile, Reason>,
) -> Result<Result<(Identity, Spki), Reason>, Status> {
    let by_certificate = !asked.certificate_pem.is_empty();
    let by_parts = !asked.identity.is_empty() && !asked.spki_hex.is_empty();
    let any_part = !asked.identity.is_empty() || !asked.spki_hex.is_empty();
    match (by_certificate, any_part, by_parts) {
        (true, false, _) => Ok(profile
            .and_then(|profile| profile.leaf(asked.certificate_pem.as_bytes()))
            .map(|leaf| (leaf.identity, leaf.spki))),
        (false, _, true) => {
            let identity = Identity::parse(&asked.identity)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            let spki = Spki::from_hex(&asked.spki_hex)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            Ok(Ok((identity, spki)))
        }
        _ => Err(Status::invalid_argument(
            "give either certificate_pem, or identity and spki_hex",
        )),
    }
}
