//! What operators may know of the registry and the cache. Tunnels are tested through Envoy, in
//! testbed.

use std::time::{Duration, Instant};

use proto::admin::v1::operations_client::OperationsClient;
use proto::admin::v1::{
    CacheStatsRequest, CacheStatsResponse, CutTunnelsRequest, FreshnessRequest, FreshnessResponse,
    ListTunnelsRequest,
};
use testbed::gateway::AGENT;
use testbed::process::PATIENCE;
use testbed::rows::Grant;
use testbed::{Database, Postgres, authz};
use tonic::Code;
use tonic::transport::Channel;

use super::{Scene, channel, connect, verdict};

impl Scene {
    async fn operations(&self) -> OperationsClient<Channel> {
        OperationsClient::new(channel(self.authz.admin_grpc_addr()).await)
    }

    async fn freshness(&self) -> FreshnessResponse {
        let asked = self.operations().await.freshness(FreshnessRequest {}).await;
        asked.unwrap().into_inner()
    }

    async fn cache_stats(&self) -> CacheStatsResponse {
        let mut operations = self.operations().await;
        let asked = operations.cache_stats(CacheStatsRequest {}).await;
        asked.unwrap().into_inner()
    }

    /// Waits for a freshness that is as wanted.
    async fn freshness_that(&self, wanted: impl Fn(&FreshnessResponse) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let told = self.freshness().await;
            if wanted(&told) {
                return;
            }
            assert!(Instant::now() < deadline, "{told:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn freshness_tells_how_current_the_service_is_and_with_whom() {
    // A server of its own, to be paused.
    let mut server = Postgres::start().await.unwrap();
    let database = server.database("registry").unwrap();
    authz::migrate(&database.url()).unwrap();
    let bound = [("AGENT_GATEWAY__POLICY__MAX_STALENESS_MS", "1000")];
    let scene = Scene::start_at(database, &bound, Database::url).await;
    scene.authz.settle().await;
    let told = scene.freshness().await;
    assert!(told.fresh);
    assert_eq!(told.max_staleness_ms, 1000);
    let identifier = "SELECT system_identifier FROM pg_control_system()";
    let identifier = scene.database.query(identifier).unwrap();
    assert_eq!((told.system_identifier, told.timeline), (identifier, 1));

    scene.grant().await;
    let last = "SELECT max(seq) FROM registry_changes";
    let last: i64 = scene.database.query(last).unwrap().parse().unwrap();
    let told = scene.freshness().await;
    assert_eq!(told.last_change, Some(last));
    assert!(told.handled_below_xid > 0);

    server.pause().unwrap();
    let stale = |told: &FreshnessResponse| !told.fresh && told.confirmed_age_ms > Some(1000);
    scene.freshness_that(stale).await;
    assert_eq!(scene.freshness().await.last_change, Some(last));
    assert_eq!(verdict(&scene.check().await), (503, "registry_unavailable"));
    server.resume().unwrap();
    scene.freshness_that(|told| told.fresh).await;
}

#[tokio::test]
async fn cache_stats_follow_the_checks() {
    let scene = Scene::start().await;
    let before = scene.cache_stats().await;
    assert_eq!((before.hits, before.misses), (0, 0));
    assert_eq!((before.known_entries, before.known_bytes), (0, 0));
    assert_eq!((before.unknown_entries, before.unknown_bytes), (0, 0));
    assert_eq!(
        (before.max_bytes, before.max_unknown, before.max_lookups),
        (96 * 1024 * 1024, 10_000, 1024)
    );
    scene.grant().await;
    for _ in 0..3 {
        assert_eq!(verdict(&scene.check().await), (200, "allowed"));
    }
    let mut client = scene.client().await;
    for _ in 0..2 {
        let elsewhere = connect(scene.agent.pem(), "elsewhere:1");
        let answer = client.check(elsewhere).await.unwrap().into_inner();
        assert_eq!(verdict(&answer), (403, "no_permission"));
    }
    let after = scene.cache_stats().await;
    assert_eq!((after.hits, after.misses), (3, 2));
    assert_eq!((after.known_entries, after.unknown_entries), (1, 1));
    assert!(after.known_bytes > 0 && after.unknown_bytes > 0);
    assert_eq!(after.lookups, 0);
}

#[tokio::test]
async fn what_is_in_memory_is_bounded_in_bytes_and_unknown_requests_in_number() {
    let scene = Scene::start_with(&[
        ("AGENT_GATEWAY__CACHE__MAX_BYTES", "8192"),
        ("AGENT_GATEWAY__CACHE__MAX_UNKNOWN", "20"),
    ])
    .await;
    let mut client = scene.client().await;
    for port in 1..50 {
        let destination = format!("docstore:{port}");
        let grant = Grant::new(AGENT, scene.agent.spki_der(), &destination);
        scene.principal.grant(&scene.database, &grant).unwrap();
        for destination in [&destination, &format!("elsewhere:{port}")] {
            let asked = connect(scene.agent.pem(), destination);
            client.check(asked).await.unwrap();
        }
    }
    let told = scene.cache_stats().await;
    assert!((1..17).contains(&told.known_entries), "{told:?}");
    assert!(told.known_bytes <= 8192, "{told:?}");
    assert!((1..=20).contains(&told.unknown_entries), "{told:?}");
    assert!(told.unknown_bytes <= 20 * 1024, "{told:?}");
}

#[tokio::test]
async fn nothing_is_cut_over_tcp_and_the_refusal_says_where() {
    let mut scene = Scene::start().await;
    let order = CutTunnelsRequest {
        identity: "agent-alpha".to_owned(),
        ..Default::default()
    };
    let refused = scene.operations().await.cut_tunnels(order).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused.message().contains("set admin.socket"),
        "{refused:?}"
    );
    let log = scene.authz.process().log();
    assert!(log.contains("an order to cut tunnels was refused"), "{log}");
}

#[tokio::test]
async fn filters_that_cannot_be_read_are_refused_by_name() {
    let scene = Scene::start().await;
    let mut operations = scene.operations().await;
    let none = ListTunnelsRequest::default;
    for (asked, field) in [
        (
            ListTunnelsRequest {
                identity: "a\nb".to_owned(),
                ..none()
            },
            "identity: ",
        ),
        (
            ListTunnelsRequest {
                spki_hex: "00".to_owned(),
                ..none()
            },
            "spki_hex: ",
        ),
        (
            ListTunnelsRequest {
                permission_id: "a".repeat(257),
                ..none()
            },
            "permission_id: ",
        ),
        (
            ListTunnelsRequest {
                destination: "a:1:2".to_owned(),
                ..none()
            },
            "destination: ",
        ),
        (
            ListTunnelsRequest {
                page_token: "x".to_owned(),
                ..none()
            },
            "page_token: ",
        ),
    ] {
        let refused = operations.list_tunnels(asked).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(field), "{refused:?}");
    }
    let all = operations.list_tunnels(none()).await.unwrap().into_inner();
    assert!(all.tunnels.is_empty() && all.next_page_token.is_empty());
}
