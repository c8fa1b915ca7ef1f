//! What the service holds now, for operators, and their kill switch.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use permission::{Destination, Id, Identity, Spki};
use proto::admin::v1::operations_server::Operations as OperationsService;
use proto::admin::v1::{
    CacheStatsRequest, CacheStatsResponse, CutTunnelsRequest, CutTunnelsResponse, FreshnessRequest,
    FreshnessResponse, ListTunnelsRequest, ListTunnelsResponse, Tunnel as Shown,
};
use tonic::{Request, Response, Status};

use crate::cache::Cache;
use crate::connections::Peer;
use crate::freshness::{BootTime, Freshness};
use crate::tunnels::{Filter, Selector, Tunnel, Tunnels};

/// Tunnels on a page, if nothing is said, and at most.
const PAGE: usize = 100;
const LARGEST_PAGE: usize = 1000;
/// Most ids of cut tunnels in an answer.
const MOST_IDS: usize = 1000;

const NOTICE: &str = "nothing was revoked: the agents can connect again, until their permission is \
                      taken back (agent-gateway-registry revoke)";

/// Answers operators.
#[derive(Debug, Clone)]
pub struct Operations {
    freshness: Arc<Freshness>,
    cache: Cache,
    tunnels: Tunnels,
    max_staleness: Duration,
    socket: Option<PathBuf>,
}

impl Operations {
    /// What is cached is used only if confirmed within `max_staleness`; tunnels are cut only over
    /// `socket`.
    pub fn new(
        freshness: Arc<Freshness>,
        cache: Cache,
        tunnels: Tunnels,
        max_staleness: Duration,
        socket: Option<PathBuf>,
    ) -> Self {
        Self {
            freshness,
            cache,
            tunnels,
            max_staleness,
            socket,
        }
    }

    fn only_by_socket(&self) -> Status {
        Status::permission_denied(match &self.socket {
            Some(path) => format!(
                "tunnels are cut only over the Unix socket {}",
                path.display()
            ),
            None => "tunnels are cut only over a Unix socket: set admin.socket in the \
                     service's configuration"
                .to_owned(),
        })
    }
}

#[tonic::async_trait]
impl OperationsService for Operations {
    async fn freshness(
        &self,
        _: Request<FreshnessRequest>,
    ) -> Result<Response<FreshnessResponse>, Status> {
        let age = self.freshness.confirmed();
        let age = age.map(|confirmed| BootTime::now().since(confirmed));
        let mut answer = FreshnessResponse {
            confirmed_age_ms: age.map(millis),
            max_staleness_ms: millis(self.max_staleness),
            fresh: age.is_some_and(|age| age <= self.max_staleness),
            ..Default::default()
        };
        if let Some(progress) = self.freshness.progress() {
            answer.system_identifier = progress.system;
            answer.timeline = progress.timeline;
            answer.standby = progress.standby;
            answer.handled_below_xid = progress.xmin;
            answer.last_change = progress.last_change;
        }
        Ok(Response::new(answer))
    }

    async fn cache_stats(
        &self,
        _: Request<CacheStatsRequest>,
    ) -> Result<Response<CacheStatsResponse>, Status> {
        let stats = self.cache.stats();
        Ok(Response::new(CacheStatsResponse {
            known_entries: stats.known_entries,
            known_bytes: stats.known_bytes,
            max_bytes: stats.options.max_bytes,
            unknown_entries: stats.unknown_entries,
            unknown_bytes: stats.unknown_bytes,
            max_unknown: stats.options.max_unknown,
            hits: stats.hits,
            misses: stats.misses,
            lookups: stats.loads as u64,
            max_lookups: stats.options.max_lookups as u64,
        }))
    }

    async fn list_tunnels(
        &self,
        request: Request<ListTunnelsRequest>,
    ) -> Result<Response<ListTunnelsResponse>, Status> {
        let asked = request.into_inner();
        let filter = Filter {
            identity: given("identity", &asked.identity, Identity::parse)?,
            spki: given("spki_hex", &asked.spki_hex, Spki::from_hex)?,
            permission_id: given("permission_id", &asked.permission_id, Id::parse)?,
            destination: given("destination", &asked.destination, str::parse::<Destination>)?,
        };
        let from = given("page_token", &asked.page_token, str::parse::<u64>)?.unwrap_or(0);
        let most = match usize::try_from(asked.page_size) {
            Ok(0) => PAGE,
            Ok(size) => size.min(LARGEST_PAGE),
            Err(_) => LARGEST_PAGE,
        };
        let page = self.tunnels.list(&filter, from, most);
        Ok(Response::new(ListTunnelsResponse {
            tunnels: page.tunnels.iter().map(shown).collect(),
            next_page_token: page.next.map_or_else(String::new, |next| next.to_string()),
        }))
    }

    async fn cut_tunnels(
        &self,
        request: Request<CutTunnelsRequest>,
    ) -> Result<Response<CutTunnelsResponse>, Status> {
        let Some(Peer::Unix(operator)) = request.extensions().get::<Peer>().copied() else {
            tracing::warn!("an order to cut tunnels was refused: not over the admin socket");
            return Err(self.only_by_socket());
        };
        let selector = selector(&request.into_inner())?;
        let mut ids = self.tunnels.cut(&selector);
        let cut = ids.len();
        let (by, value) = named(&selector);
        // The audit record; each tunnel's own line says `cut_by_operator`.
        tracing::warn!(
            operator.uid = operator.uid(),
            operator.pid = operator.pid(),
            selector = by,
            selected = value,
            tunnels = cut,
            "an operator cut tunnels"
        );
        ids.truncate(MOST_IDS);
        Ok(Response::new(CutTunnelsResponse {
            cut: u32::try_from(cut).unwrap_or(u32::MAX),
            tunnel_ids: ids.iter().map(Id::to_string).collect(),
            notice: NOTICE.to_owned(),
        }))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn shown(tunnel: &Tunnel) -> Shown {
    Shown {
        id: tunnel.id.to_string(),
        identity: tunnel.request.identity.to_string(),
        spki_hex: tunnel.request.spki.to_hex(),
        permission_id: tunnel.permission_id.to_string(),
        destination: tunnel.request.destination.to_string(),
        connection: tunnel
            .connection
            .map_or_else(String::new, |address| address.to_string()),
        opened_at: tunnel.opened_at.to_string(),
    }
}

/// Reads a field that may be left out, which is to leave it empty.
fn given<'a, T, E: std::fmt::Display>(
    field: &str,
    text: &'a str,
    parse: impl Fn(&'a str) -> Result<T, E>,
) -> Result<Option<T>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let unreadable = |error: E| Status::invalid_argument(format!("{field}: {error}"));
    parse(text).map(Some).map_err(unreadable)
}

/// Exactly one: two could be meant as either both or one of them.
fn selector(asked: &CutTunnelsRequest) -> Result<Selector, Status> {
    let selectors = [
        given("identity", &asked.identity, Identity::parse)?.map(Selector::Identity),
        given("spki_hex", &asked.spki_hex, Spki::from_hex)?.map(Selector::Spki),
        given("permission_id", &asked.permission_id, Id::parse)?.map(Selector::Permission),
        given("tunnel_id", &asked.tunnel_id, Id::parse)?.map(Selector::Tunnel),
    ];
    let mut selectors = selectors.into_iter().flatten();
    match (selectors.next(), selectors.next()) {
        (Some(selector), None) => Ok(selector),
        _ => Err(Status::invalid_argument(
            "give exactly one of identity, spki_hex, permission_id and tunnel_id",
        )),
    }
}

/// A selector for the log, without characters that would disguise it.
fn named(selector: &Selector) -> (&'static str, String) {
    match selector {
        Selector::Identity(identity) => ("identity", identity.as_str().escape_debug().to_string()),
        Selector::Spki(spki) => ("spki", spki.to_hex()),
        Selector::Permission(id) => ("permission", id.as_str().escape_debug().to_string()),
        Selector::Tunnel(id) => ("tunnel", id.as_str().escape_debug().to_string()),
    }
}
