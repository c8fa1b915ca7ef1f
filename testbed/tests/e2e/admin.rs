//! Operators look at open tunnels, and cut them.

use std::path::PathBuf;

use proto::admin::v1::operations_client::OperationsClient;
use proto::admin::v1::{CutTunnelsRequest, CutTunnelsResponse, ListTunnelsRequest, Tunnel};
use testbed::gateway::AGENT;
use testbed::rows::{Grant, Times};
use testbed::{AuthzOptions, ClientCertificate, scratch, tunnel};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::open_tunnels::{PATIENCE, ends, lives};
use super::{Scene, assert_denied};

const OTHER: &str = "agent-beta";

/// A gateway whose service has an admin socket, and two agents that may reach `docstore`.
struct Operated {
    scene: Scene,
    other: ClientCertificate,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Operated {
    async fn start() -> Self {
        let folder = scratch::folder("admin").unwrap();
        let socket = folder.path().join("admin.sock");
        let path = socket.to_str().unwrap().to_owned();
        let scene = Scene::start_with(AuthzOptions {
            environment: vec![("AGENT_GATEWAY__ADMIN__SOCKET".to_owned(), path)],
            ..AuthzOptions::default()
        });
        let scene = scene.await;
        let (gateway, destination) = (&scene.gateway, &scene.destination);
        gateway.grant(&scene.agent, destination).unwrap();
        let other = ClientCertificate::for_identity(OTHER).unwrap();
        let grant = Grant::new(OTHER, other.spki_der(), destination);
        gateway.principal.grant(&gateway.database, &grant).unwrap();
        Self {
            scene,
            other,
            socket,
            _folder: folder,
        }
    }

    /// A tunnel of the other agent, that has carried something.
    async fn open_other(&self) -> tunnel::Tunnel {
        let scene = &self.scene;
        let answer = scene.gateway.connect(&self.other, &scene.destination).await;
        let mut tunnel = answer.unwrap().into_tunnel().unwrap();
        assert!(lives(&mut tunnel).await);
        tunnel
    }

    async fn by_socket(&self) -> OperationsClient<Channel> {
        client(&format!("unix:{}", self.socket.display())).await
    }

    async fn by_tcp(&self) -> OperationsClient<Channel> {
        client(&format!(
            "http://{}",
            self.scene.gateway.authz.admin_grpc_addr()
        ))
        .await
    }

    async fn list(&self, asked: ListTunnelsRequest) -> Vec<Tunnel> {
        let listed = self.by_tcp().await.list_tunnels(asked).await.unwrap();
        listed.into_inner().tunnels
    }

    async fn all(&self) -> Vec<Tunnel> {
        self.list(ListTunnelsRequest::default()).await
    }

    async fn cut(&self, order: CutTunnelsRequest) -> Result<CutTunnelsResponse, Status> {
        let cut = self.by_socket().await.cut_tunnels(order).await?;
        Ok(cut.into_inner())
    }

    /// Waits until so many tunnels are open.
    async fn wait_for(&self, tunnels: usize) {
        let listed = async {
            while self.all().await.len() != tunnels {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, listed).await;
        waited.unwrap_or_else(|_| panic!("never {tunnels} tunnels"));
    }
}

async fn client(uri: &str) -> OperationsClient<Channel> {
    let endpoint = Endpoint::from_shared(uri.to_owned()).unwrap();
    OperationsClient::new(endpoint.connect().await.unwrap())
}

fn by_identity(identity: &str) -> CutTunnelsRequest {
    CutTunnelsRequest {
        identity: identity.to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn an_open_tunnel_is_listed_as_what_it_is_until_it_ends() {
    let operated = Operated::start().await;
    let scene = &operated.scene;
    assert_eq!(operated.all().await, []);
    let answer = scene.connect().await;
    let decision = answer.header("x-agent-gateway-decision-id").unwrap();
    let decision = decision.to_owned();
    let mut tunnel = answer.into_tunnel().unwrap();
    assert!(lives(&mut tunnel).await);

    let listed = operated.all().await;
    let opened = |entry: &serde_json::Value| {
        entry["type"] == "DownstreamTunnelSuccessfullyEstablished"
            && entry["decision_id"] == *decision
    };
    let opened = scene.gateway.envoy.logged(opened).await.unwrap();
    let expected = Tunnel {
        id: decision,
        identity: AGENT.to_owned(),
        spki_hex: hex::encode(scene.agent.spki_der()),
        permission_id: format!("{AGENT}-{}", scene.destination),
        destination: scene.destination.clone(),
        connection: opened["client"].as_str().unwrap().to_owned(),
        opened_at: listed[0].opened_at.clone(),
    };
    assert_eq!(listed, [expected]);
    let in_window = |from, to| {
        let Times {
            not_before,
            not_after,
        } = Times::from_now(from, to);
        (not_before..not_after).contains(&listed[0].opened_at)
    };
    assert!(in_window(-60, 1), "{listed:?}");

    drop(tunnel);
    operated.wait_for(0).await;
}

#[tokio::test]
async fn a_tunnel_is_listed_with_the_permission_that_it_rests_on_now() {
    let operated = Operated::start().await;
    let scene = &operated.scene;
    let mut tunnel = scene.open().await;
    let mut second = Grant::new(AGENT, scene.agent.spki_der(), &scene.destination)
        .during(Times::from_now(-60, 86_400));
    "second".clone_into(&mut second.permission_id);
    let database = &scene.gateway.database;
    scene.gateway.principal.grant(database, &second).unwrap();
    let revoke = format!(
        "UPDATE permission_registry SET revoked_at = now()
         WHERE subject_identity = '{AGENT}' AND permission_id <> 'second'"
    );
    database.execute(&revoke).unwrap();
    let on_second = ListTunnelsRequest {
        permission_id: "second".to_owned(),
        ..Default::default()
    };
    let moved = async { while operated.list(on_second.clone()).await.is_empty() {} };
    tokio::time::timeout(PATIENCE, moved).await.unwrap();
    assert!(lives(&mut tunnel).await);
    let of_first = CutTunnelsRequest {
        permission_id: format!("{AGENT}-{}", scene.destination),
        ..Default::default()
    };
    assert_eq!(operated.cut(of_first).await.unwrap().cut, 0);
    assert!(lives(&mut tunnel).await);
}

#[tokio::test]
async fn filters_and_pages_choose_what_is_listed() {
    let operated = Operated::start().await;
    let scene = &operated.scene;
    let _tunnels = (
        scene.open().await,
        operated.open_other().await,
        scene.open().await,
    );
    let all = operated.all().await;
    let identities: Vec<_> = all.iter().map(|tunnel| &*tunnel.identity).collect();
    assert_eq!(identities, [AGENT, OTHER, AGENT]);
    let none = ListTunnelsRequest::default;
    for (filter, expected) in [
        (
            ListTunnelsRequest {
                identity: OTHER.to_owned(),
                ..none()
            },
            &all[1..2],
        ),
        (
            ListTunnelsRequest {
                spki_hex: hex::encode(operated.other.spki_der()),
                ..none()
            },
            &all[1..2],
        ),
        (
            ListTunnelsRequest {
                permission_id: format!("{OTHER}-{}", scene.destination),
                ..none()
            },
            &all[1..2],
        ),
        (
            ListTunnelsRequest {
                destination: scene.destination.to_uppercase(),
                ..none()
            },
            &all[..],
        ),
        (
            ListTunnelsRequest {
                destination: "docstore:1".to_owned(),
                ..none()
            },
            &[],
        ),
        (
            ListTunnelsRequest {
                identity: AGENT.to_owned(),
                spki_hex: hex::encode(operated.other.spki_der()),
                ..none()
            },
            &[],
        ),
    ] {
        assert_eq!(operated.list(filter.clone()).await, expected, "{filter:?}");
    }

    let mut asked = ListTunnelsRequest {
        page_size: 2,
        ..none()
    };
    let mut operations = operated.by_tcp().await;
    let page = operations.list_tunnels(asked.clone()).await.unwrap();
    let page = page.into_inner();
    assert_eq!(page.tunnels, all[..2]);
    asked.page_token = page.next_page_token;
    let page = operations.list_tunnels(asked).await.unwrap().into_inner();
    assert_eq!((&page.tunnels[..], &*page.next_page_token), (&all[2..], ""));
}

#[tokio::test]
async fn each_selector_cuts_its_own_tunnels_and_no_others_and_revokes_nothing() {
    let mut operated = Operated::start().await;
    let spki = hex::encode(operated.scene.agent.spki_der());
    let permission = format!("{AGENT}-{}", operated.scene.destination);
    let none = CutTunnelsRequest::default;
    for order in [
        by_identity(AGENT),
        CutTunnelsRequest {
            spki_hex: spki,
            ..none()
        },
        CutTunnelsRequest {
            permission_id: permission,
            ..none()
        },
    ] {
        let mut untouched = operated.open_other().await;
        let (first, second) = (operated.scene.open().await, operated.scene.open().await);
        let ids: Vec<_> = operated
            .all()
            .await
            .into_iter()
            .map(|found| found.id)
            .collect();
        let cut = operated.cut(order.clone()).await.unwrap();
        assert_eq!((cut.cut, &cut.tunnel_ids[..]), (2, &ids[1..]), "{order:?}");
        assert!(cut.notice.starts_with("nothing was revoked"), "{cut:?}");
        ends(first).await;
        ends(second).await;
        assert!(lives(&mut untouched).await);
        operated.wait_for(1).await;
        // The agent may go on at once.
        drop(operated.scene.open().await);
        drop(untouched);
        operated.wait_for(0).await;
    }
    operated.scene.cut_for("cut_by_operator").await;

    let (first, mut second) = (operated.scene.open().await, operated.scene.open().await);
    let by_id = CutTunnelsRequest {
        tunnel_id: operated.all().await[0].id.clone(),
        ..none()
    };
    let cut = operated.cut(by_id.clone()).await.unwrap();
    assert_eq!(cut.tunnel_ids, [&*by_id.tunnel_id]);
    ends(first).await;
    assert!(lives(&mut second).await);
    operated.wait_for(1).await;
    assert_eq!(operated.cut(by_id).await.unwrap().cut, 0);

    // Who did it, in the log: the tests' own user.
    let process = operated.scene.gateway.authz.process();
    let log = process.log();
    let audit = log
        .lines()
        .find(|line| line.contains("an operator cut tunnels"));
    let audit: serde_json::Value = serde_json::from_str(audit.unwrap()).unwrap();
    let uid = rustix::process::getuid().as_raw();
    assert_eq!(audit["operator.uid"], uid);
    assert_eq!(audit["operator.pid"], std::process::id());
    assert_eq!(audit["selector"], "identity");
    assert_eq!(audit["selected"], AGENT);
    assert_eq!(audit["tunnels"], 2);
}

#[tokio::test]
async fn an_order_over_tcp_or_without_exactly_one_selector_cuts_nothing() {
    let operated = Operated::start().await;
    let mut tunnel = operated.scene.open().await;
    let refused = operated
        .by_tcp()
        .await
        .cut_tunnels(by_identity(AGENT))
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let socket = operated.socket.to_str().unwrap();
    assert!(refused.message().contains(socket), "{refused:?}");

    let one = &operated.all().await[0];
    let none = CutTunnelsRequest::default;
    for order in [
        none(),
        CutTunnelsRequest {
            tunnel_id: one.id.clone(),
            ..by_identity(AGENT)
        },
        CutTunnelsRequest {
            spki_hex: one.spki_hex.clone(),
            permission_id: one.permission_id.clone(),
            ..none()
        },
        CutTunnelsRequest {
            spki_hex: "00".to_owned(),
            ..none()
        },
    ] {
        let refused = operated.cut(order.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{order:?}");
    }
    assert_eq!(operated.cut(by_identity("nobody")).await.unwrap().cut, 0);
    assert!(lives(&mut tunnel).await);
    assert_eq!(operated.all().await.len(), 1);
}

#[tokio::test]
async fn a_revoked_permission_is_no_longer_listed_and_lets_nobody_in_again() {
    let operated = Operated::start().await;
    let scene = &operated.scene;
    let (tunnel, mut untouched) = (scene.open().await, operated.open_other().await);
    let revoke = format!(
        "UPDATE permission_registry SET revoked_at = now() WHERE subject_identity = '{AGENT}'"
    );
    scene.gateway.database.execute(&revoke).unwrap();
    ends(tunnel).await;
    operated.wait_for(1).await;
    assert_eq!(operated.all().await[0].identity, OTHER);
    assert!(lives(&mut untouched).await);
    assert_denied(&scene.connect().await, 403, "permission_revoked");
}
