//! Open tunnels: one `ext_proc` stream each, for as long as there are grounds for the tunnel.
//!
//! Envoy opens the stream after the Check and before it dials. The order is: register, decide
//! again from a fresh confirmation, answer; so nothing that is taken back between Check and
//! registration slips through. From then on every change that touches the tunnel, and the end of
//! every window, is decided anew. Who and where come from the metadata of our own Check, which
//! no client can set, never from headers.

mod message;
mod table;

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::ExternalProcessor;
use envoy_types::pb::envoy::service::ext_proc::v3::{ProcessingRequest, ProcessingResponse};
use futures::StreamExt as _;
use futures::stream::{BoxStream, once};
use permission::{Decision, Id, Reason, Timestamp, decide};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use crate::audit::{Audit, Ended};
use crate::cache::{Cache, Entry, Unavailable};
use crate::check::now;
use crate::freshness::{BootTime, Freshness, Watch};
use crate::metrics::Metrics;

pub use table::{Filter, Limits, Page, Selector, Tunnel};
use table::{Place, Table};

/// How long Envoy's end of the stream of a tunnel that was cut is waited for.
const END: Duration = Duration::from_millis(900);
/// Longest a later decision may take; the tunnel is open meanwhile.
const DECISION: Duration = Duration::from_millis(1500);
/// Longest sleep at a time: a sleep doesn't see the machine suspended, nor its clock set.
const STEP: Duration = Duration::from_secs(1);
/// Decisions about open tunnels under way at a time.
const TURNS: usize = 32;
/// How soon a decision is tried again while the registry is away.
const RETRY: Duration = Duration::from_millis(250);

/// Why a tunnel is refused or cut. The code is in Envoy's access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// No grounds any more.
    Denied(Reason),
    /// One too many.
    TooMany,
    /// An operator said so.
    ByOperator,
    /// This service stops.
    Stopping,
}

impl Cut {
    fn code(self) -> &'static str {
        match self {
            Self::Denied(reason) => reason.code(),
            Self::TooMany => "too_many_tunnels",
            Self::ByOperator => "cut_by_operator",
            Self::Stopping => "service_stopping",
        }
    }
}

/// Holds the streams of all open tunnels.
#[derive(Debug, Clone)]
pub struct Tunnels {
    cache: Cache,
    freshness: Arc<Freshness>,
    table: Arc<Table>,
    limits: Limits,
    audit: Audit,
    metrics: Metrics,
    stop: CancellationToken,
    /// Those who record how tunnels ended.
    recording: TaskTracker,
    turns: Arc<Semaphore>,
}

impl Tunnels {
    /// Tunnels are cut when `stop` is cancelled.
    pub fn new(
        cache: Cache,
        freshness: Arc<Freshness>,
        limits: Limits,
        audit: Audit,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Self {
        let table = Arc::new(Table::new(&limits));
        Self {
            cache,
            freshness,
            table,
            limits,
            audit,
            metrics,
            stop,
            recording: TaskTracker::new(),
            turns: Arc::new(Semaphore::new(TURNS)),
        }
    }

    /// At most `most` open tunnels that meet `filter`, from where a page left off, or 0.
    pub fn list(&self, filter: &Filter, from: u64, most: usize) -> Page {
        self.table.list(filter, from, most)
    }

    /// Cuts open tunnels, as an operator may; returns their ids. Nothing is revoked by it.
    pub fn cut(&self, selector: &Selector) -> Vec<Id> {
        self.table.cut(selector)
    }

    /// Returns when the ends of all tunnels are recorded.
    pub async fn recorded(&self) {
        self.recording.close();
        self.recording.wait().await;
    }

    /// One tunnel from its first message to its end.
    async fn supervise(
        self,
        mut inbound: Streaming<ProcessingRequest>,
        outbound: mpsc::Sender<Result<ProcessingResponse, Status>>,
    ) {
        let deadline = Instant::now() + self.limits.open_timeout;
        let Ok(Ok(Some(first))) = timeout_at(deadline, inbound.message()).await else {
            return;
        };
        let Some(opened) = message::read(&first, now()) else {
            // Not a tunnel that our Check allowed.
            tracing::error!("a stream without our metadata was refused: check Envoy's config");
            let _ = outbound
                .send(Err(Status::failed_precondition("no decision")))
                .await;
            return;
        };
        let span = tracing::info_span!("tunnel", decision.id = opened.id.as_str());
        self.register(&opened, &mut inbound, &outbound, deadline)
            .instrument(span)
            .await;
    }

    /// Gives the tunnel its place, holds it, and cuts it when there is a reason to.
    async fn register(
        &self,
        opened: &Tunnel,
        inbound: &mut Streaming<ProcessingRequest>,
        outbound: &mpsc::Sender<Result<ProcessingResponse, Status>>,
        deadline: Instant,
    ) {
        let began = std::time::Instant::now();
        // Whoever waits for the records waits for this tunnel's from now on: Envoy's word on its end
        // may be there before this task has noticed that it ended.
        let _recording = self.recording.token();
        let awaited = self.audit.await_end(opened.id.as_str());
        let ended = self.watch(opened, inbound, outbound, deadline, began).await;
        if let Some(awaited) = awaited {
            let ended = Ended {
                tunnel: opened.clone(),
                at: now(),
                open: began.elapsed(),
                cut: ended.map(Cut::code),
            };
            let audit = self.audit.clone();
            self.recording
                .spawn(async move { audit.record_end(ended, awaited).await });
        }
    }

    /// Returns when the tunnel has ended; if it was cut, why.
    async fn watch(
        &self,
        opened: &Tunnel,
        inbound: &mut Streaming<ProcessingRequest>,
        outbound: &mpsc::Sender<Result<ProcessingResponse, Status>>,
        deadline: Instant,
        began: std::time::Instant,
    ) -> Option<Cut> {
        // Kept until Envoy has ended the stream: so long it may still have the tunnel open.
        let mut held = None;
        let ended = match self.table.take(opened.clone()) {
            None => Some(Cut::TooMany),
            Some((place, ordered)) => {
                let (place, _) = held.insert((place, self.metrics.tunnel_opened()));
                tokio::select! {
                    biased;
                    Ok(()) = ordered => Some(Cut::ByOperator),
                    ended = self.hold(opened, place, inbound, outbound, deadline) => ended,
                }
            }
        };
        let cut = ended?;
        if held.is_some() {
            self.metrics.tunnel_cut(cut.code());
        }
        tracing::info!(
            decision.id = opened.id.as_str(),
            identity = opened.request.identity.as_str().escape_debug().to_string(),
            destination = %opened.request.destination,
            reason = cut.code(),
            open_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "tunnel cut"
        );
        // Envoy ends the stream when it has cut the tunnel; not for ever.
        let _ = timeout(END, async {
            let _ = outbound.send(Ok(message::cut(cut, &opened.id))).await;
            while matches!(inbound.message().await, Ok(Some(_))) {}
        })
        .await;
        Some(cut)
    }

    /// Holds a registered tunnel; returns why to cut it, or `None` when it ended by itself.
    async fn hold(
        &self,
        opened: &Tunnel,
        place: &Place,
        inbound: &mut Streaming<ProcessingRequest>,
        outbound: &mpsc::Sender<Result<ProcessingResponse, Status>>,
        deadline: Instant,
    ) -> Option<Cut> {
        if self.cache.confirm(deadline).await.is_err() {
            return Some(Cut::Denied(Reason::RegistryUnavailable));
        }
        let mut grounds = match self.grounds(opened, place, deadline).await {
            Ok(grounds) => grounds,
            Err(refused) => return Some(refused.into()),
        };
        let first = message::go_on_with(None);
        if outbound.send(Ok(first)).await.is_err() {
            return None;
        }
        // Since when the registry could not be asked about grounds that may have changed.
        let mut doubt: Option<BootTime> = None;
        loop {
            let wait = doubt.map_or_else(|| grounds.left(&self.cache), |_| RETRY);
            tokio::select! {
                message = inbound.message() => {
                    // Response trailers: nothing of theirs is changed.
                    let Ok(Some(message)) = message else { return None };
                    let answer = message::go_on_with(message.request.as_ref());
                    if outbound.send(Ok(answer)).await.is_err() {
                        return None;
                    }
                }
                () = self.stop.cancelled() => return Some(Cut::Stopping),
                () = grounds.watch.changed() => {}
                () = sleep(wait.min(STEP)) => {}
            }
            if self.unconfirmed_for() >= self.limits.max_unconfirmed {
                return Some(Cut::Denied(Reason::RegistryUnavailable));
            }
            if doubt.is_none() && grounds.hold(&self.cache) {
                continue;
            }
            let decided = tokio::select! {
                decided = self.grounds(opened, place, Instant::now() + DECISION) => decided,
                () = self.stop.cancelled() => return Some(Cut::Stopping),
            };
            match decided {
                Ok(renewed) => (grounds, doubt) = (renewed, None),
                Err(Refused::Denied(reason)) => return Some(Cut::Denied(reason)),
                Err(Refused::Unavailable) => {
                    // What is known of the grounds still ends when it ends.
                    let known = decide(&grounds.entry.facts, &opened.request, now());
                    if let Decision::Deny(reason) = known {
                        return Some(Cut::Denied(reason));
                    }
                    let since = *doubt.get_or_insert_with(BootTime::now);
                    if BootTime::now().since(since) >= self.limits.max_unconfirmed {
                        return Some(Cut::Denied(Reason::RegistryUnavailable));
                    }
                }
            }
        }
    }

    /// How long the registry has not confirmed anything.
    fn unconfirmed_for(&self) -> Duration {
        let known = self.freshness.confirmed();
        known.map_or(Duration::MAX, |known| BootTime::now().since(known))
    }

    /// Decides about the tunnel, from facts that are current.
    async fn grounds(
        &self,
        opened: &Tunnel,
        place: &Place,
        deadline: Instant,
    ) -> Result<Grounds, Refused> {
        // Waits its turn: a change that touches all tunnels leaves lookups to Checks.
        let turn = timeout_at(deadline, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(Refused::Unavailable);
        };
        loop {
            let facts = self.cache.confirmed_facts(&opened.request, deadline).await;
            let entry = facts.map_err(|error: Unavailable| {
                tracing::warn!(
                    decision.id = opened.id.as_str(),
                    %error,
                    "an open tunnel can't be decided about"
                );
                Refused::Unavailable
            })?;
            // Watched first and looked at again then, so that no change falls between.
            let watch = self.freshness.watch(entry.tags());
            if !self.cache.is_unchanged(&entry) {
                continue;
            }
            return match decide(&entry.facts, &opened.request, now()) {
                Decision::Allow(permit) => {
                    let ends_at = permit.ends_at();
                    place.rests_on(&permit.permission().permission_id);
                    Ok(Grounds {
                        entry,
                        watch,
                        ends_at,
                    })
                }
                Decision::Deny(reason) => Err(Refused::Denied(reason)),
            };
        }
    }
}

enum Refused {
    Denied(Reason),
    Unavailable,
}

impl From<Refused> for Cut {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Denied(reason) => Self::Denied(reason),
            Refused::Unavailable => Self::Denied(Reason::RegistryUnavailable),
        }
    }
}

/// What an open tunnel rests on.
struct Grounds {
    entry: Arc<Entry>,
    watch: Watch,
    ends_at: Timestamp,
}

impl Grounds {
    /// Whether they still hold, without asking anybody.
    fn hold(&self, cache: &Cache) -> bool {
        cache.is_current(&self.entry) && now() < self.ends_at
    }

    /// How long until they must be looked at in any case.
    fn left(&self, cache: &Cache) -> Duration {
        let micros = self.ends_at.as_unix_micros() - now().as_unix_micros();
        let window = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
        window.min(cache.left(&self.entry))
    }
}

#[tonic::async_trait]
impl ExternalProcessor for Tunnels {
    type ProcessStream = BoxStream<'static, Result<ProcessingResponse, Status>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        // Envoy sends at most headers and trailers, and waits for each answer.
        let (outbound, answers) = mpsc::channel(2);
        tokio::spawn(self.clone().supervise(request.into_inner(), outbound));
        // Never an orderly end of ours, which Envoy would take for leave to keep the tunnel open
        // with nobody to cut it: whatever ends the task ends the tunnel.
        let unheld = once(async { Err(Status::unavailable("the tunnel is no longer held")) });
        Ok(Response::new(
            ReceiverStream::new(answers).chain(unheld).boxed(),
        ))
    }
}
