//! Two replicas of the service behind one Envoy, which asks them in turn.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use testbed::gateway::private;
use testbed::process::{Process, Signal};
use testbed::tunnel::Tunnel;
use testbed::{Authz, AuthzOptions, Envoy, EnvoyOptions, TunnelClient};
use tokio::time::{sleep, timeout};

use super::audit::AuditFile;
use super::open_tunnels::{PATIENCE, ends, lives, settings};
use super::{Scene, assert_denied, assert_undecided};

const POLL: Duration = Duration::from_millis(10);

/// A scene with a second replica; the first is the scene's own.
struct Pair {
    scene: Scene,
    second: Authz,
}

impl Pair {
    async fn granted() -> Self {
        Self::granted_with([&[], &[]]).await
    }

    /// With further settings of each.
    async fn granted_with(own: [&[(&str, &str)]; 2]) -> Self {
        let changed = [
            // Time enough to see that open tunnels are still there.
            ("TUNNEL__DRAIN_TIMEOUT_MS", "5000"),
            // Has allows logged too.
            (
                "OBSERVABILITY__LOG_LEVEL",
                "info,authz_service::check=debug",
            ),
        ];
        let [first, second] = own.map(|own| settings(&[&changed, own].concat()));
        let mut scene = Scene::start_with(first).await;
        scene.allow();
        let gateway = &mut scene.gateway;
        let second = Authz::start(&AuthzOptions {
            database_url: gateway.database.url(),
            hosts: "127.0.0.1 docstore".to_owned(),
            private: vec![private("docstore", &scene.service)],
            ..second
        })
        .unwrap();
        let options = EnvoyOptions {
            replicas: vec![second.grpc_addr()],
            ..EnvoyOptions::new(gateway.authz.grpc_addr(), &gateway.pki)
        };
        gateway.envoy = Envoy::start(options).await.unwrap();
        let pair = Self { scene, second };
        // Until then they are not asked in turn.
        pair.are_healthy(2).await;
        pair.settle().await;
        pair
    }

    async fn settle(&self) {
        self.scene.gateway.authz.settle().await;
        self.second.settle().await;
    }

    /// Opens so many tunnels, half of which each replica holds.
    async fn open(&self, count: usize) -> Vec<Tunnel> {
        let client = self.scene.client().await;
        let mut tunnels = Vec::new();
        for _ in 0..count {
            tunnels.push(open(&client, &self.scene.destination).await);
        }
        assert_eq!(self.held().await, (count / 2, count / 2));
        tunnels
    }

    /// Waits until Envoy takes so many replicas for healthy.
    async fn are_healthy(&self, count: u64) {
        let healthy = "cluster.authorization.membership_healthy";
        let noticed = async {
            while self.scene.gateway.envoy.stat(healthy).await.unwrap() != count {
                sleep(POLL).await;
            }
        };
        timeout(PATIENCE, noticed).await.unwrap();
    }

    /// How many tunnels each replica holds.
    async fn held(&self) -> (usize, usize) {
        let first = self.scene.gateway.authz.open_tunnels().await.unwrap();
        (first, self.second.open_tunnels().await.unwrap())
    }
}

/// A tunnel that has carried something. What is refused after it takes one turn, and a tunnel two,
/// so that each replica decides and holds in turn.
async fn open(client: &TunnelClient, destination: &str) -> Tunnel {
    let answer = client.open(destination).await.unwrap();
    let mut tunnel = answer.into_tunnel().unwrap();
    assert!(lives(&mut tunnel).await);
    let refused = client.open("nowhere:1").await.unwrap();
    assert_denied(&refused, 403, "no_permission");
    tunnel
}

/// The decisions of which a replica logged this.
fn decisions(process: &Process, message: &str) -> HashSet<String> {
    let log = process.log();
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
    lines
        .filter(|line: &Value| line["message"] == message)
        .map(|line| line["decision.id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn it_does_not_matter_which_replica_decides_and_which_holds_the_tunnel() {
    let mut pair = Pair::granted().await;
    let tunnels = pair.open(4).await;
    let revoke = "UPDATE permission_registry SET revoked_at = now()";
    pair.scene.gateway.database.execute(revoke).unwrap();
    for tunnel in tunnels {
        ends(tunnel).await;
    }
    pair.settle().await;
    for _ in 0..2 {
        assert_denied(&pair.scene.connect().await, 403, "permission_revoked");
    }
    let (first, second) = (pair.scene.gateway.authz.process(), pair.second.process());
    for (one, other) in [(&*first, &*second), (second, first)] {
        let (decided, held) = (decisions(one, "allowed"), decisions(other, "tunnel cut"));
        assert!(
            decided.intersection(&held).count() > 0,
            "{decided:?} {held:?}"
        );
    }
}

#[tokio::test]
async fn each_end_is_recorded_once_by_the_replica_that_held_the_tunnel() {
    let files = [AuditFile::new(), AuditFile::new()];
    let [first, second] = files.each_ref().map(|file| [("AUDIT__PATH", file.path())]);
    let pair = Pair::granted_with([&first, &second]).await;
    drop(pair.open(8).await);
    let of = |event: &str| {
        files.each_ref().map(|file| {
            let records = file.records().into_iter();
            let found = records.filter(|it| it["event"] == event || it["decision"] == event);
            let entry = |it: Value| (it["decision_id"].to_string(), it);
            found.map(entry).collect::<HashMap<_, _>>()
        })
    };
    let recorded = async {
        while of("tunnel_end").iter().map(HashMap::len).sum::<usize>() < 8 {
            sleep(POLL).await;
        }
    };
    timeout(PATIENCE, recorded).await.unwrap();
    let (allows, ends) = (of("allow"), of("tunnel_end"));
    assert_eq!(ends.each_ref().map(HashMap::len), [4, 4]);
    for end in ends.iter().flat_map(HashMap::values) {
        assert_eq!(
            (&end["bytes_up"], &end["bytes_down"]),
            (&json!(4), &json!(4)),
            "{end:#}"
        );
        assert_eq!(end["reason"], json!(["closed_by_client"]));
    }
    for id in allows.iter().flat_map(HashMap::keys) {
        assert_eq!(
            ends.iter().filter(|ends| ends.contains_key(id)).count(),
            1,
            "{id}"
        );
    }
    // One decided and the other held, of some at least.
    assert!(
        allows[0].keys().any(|id| ends[1].contains_key(id)),
        "{allows:#?} {ends:#?}"
    );
}

#[tokio::test]
async fn a_replica_is_rolled_while_tunnels_run() {
    let mut pair = Pair::granted().await;
    let mut tunnels = pair.open(8).await;
    let done = Arc::new(AtomicBool::new(false));
    let opener = tokio::spawn(open_all_the_time(
        pair.scene.client().await,
        pair.scene.destination.clone(),
        Arc::clone(&done),
    ));

    let first = pair.scene.gateway.authz.process();
    first.signal(Signal::TERM).unwrap();
    first.wait_for_log("\"stopping\"").unwrap();
    for tunnel in &mut tunnels {
        assert!(lives(tunnel).await, "cut before the drain has ended");
    }
    let ended = async {
        loop {
            match first.ended().unwrap() {
                Some(status) => return status,
                None => sleep(POLL).await,
            }
        }
    };
    assert!(timeout(PATIENCE, ended).await.unwrap().success());
    assert_eq!(decisions(first, "tunnel cut").len(), 4);
    let mut living = Vec::new();
    for mut tunnel in tunnels {
        if lives(&mut tunnel).await {
            living.push(tunnel);
        }
    }
    assert_eq!(living.len(), 4);

    pair.scene.gateway.authz.start_again().unwrap();
    let taken = async {
        while decisions(pair.scene.gateway.authz.process(), "allowed").is_empty() {
            sleep(POLL).await;
        }
    };
    timeout(PATIENCE, taken)
        .await
        .expect("the new one is not asked");
    done.store(true, Ordering::Relaxed);
    assert!(opener.await.unwrap() > 0);
    for tunnel in &mut living {
        assert!(lives(tunnel).await);
    }
}

#[tokio::test]
async fn a_replica_that_hangs_is_asked_nothing_while_the_other_is_well() {
    let mut pair = Pair::granted().await;
    let client = pair.scene.client().await;
    pair.second.process().pause().unwrap();
    pair.are_healthy(1).await;
    for _ in 0..6 {
        drop(open(&client, &pair.scene.destination).await);
    }
    // Where none is well they are asked all the same, and nothing comes of it.
    pair.scene.gateway.authz.process().pause().unwrap();
    pair.are_healthy(0).await;
    let unasked = client.open(&pair.scene.destination).await.unwrap();
    assert_undecided(&unasked, 503, "registry_unavailable");

    pair.second.process().resume().unwrap();
    pair.scene.gateway.authz.process().resume().unwrap();
    pair.are_healthy(2).await;
    pair.settle().await;
    drop(open(&client, &pair.scene.destination).await);
}

/// Opens one tunnel after another, none of which may be refused; returns how many.
async fn open_all_the_time(
    client: TunnelClient,
    destination: String,
    done: Arc<AtomicBool>,
) -> usize {
    let mut opened = 0;
    while !done.load(Ordering::Relaxed) {
        drop(open(&client, &destination).await);
        opened += 1;
        sleep(POLL).await;
    }
    opened
}
