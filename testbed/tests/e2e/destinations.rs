//! Names that lead nowhere, or where they must not.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use testbed::dns::Answer;
use testbed::gateway::AGENT;
use testbed::{AuthzOptions, Behaviour, ClientCertificate, Gateway, TcpService};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use super::assert_denied;

/// A gateway whose agent may reach `app.test:port`, which may resolve to 127.0.0.1 alone, and the
/// services at that port of 127.0.0.1 and 127.0.0.2.
struct Named {
    gateway: Gateway,
    agent: ClientCertificate,
    good: Option<TcpService>,
    bad: TcpService,
    destination: String,
}

const GOOD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const BAD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

impl Named {
    async fn start(good_listens: bool) -> Self {
        let bad = TcpService::start(BAD, Behaviour::Echo).await.unwrap();
        let port = bad.addr().port();
        let good = if good_listens {
            Some(
                TcpService::start_at((GOOD, port).into(), Behaviour::Echo)
                    .await
                    .unwrap(),
            )
        } else {
            None
        };
        let destination = format!("app.test:{port}");
        let options = AuthzOptions {
            private: vec![(destination.clone(), vec!["127.0.0.1/32".to_owned()])],
            ..AuthzOptions::default()
        };
        let gateway = Gateway::start_with(options).await.unwrap();
        let agent = ClientCertificate::for_identity(AGENT).unwrap();
        gateway.grant(&agent, &destination).unwrap();
        Self {
            gateway,
            agent,
            good,
            bad,
            destination,
        }
    }

    async fn answer(&self, answer: Answer) -> testbed::tunnel::Answer {
        self.gateway.dns.answer("app.test", answer);
        self.gateway
            .connect(&self.agent, &self.destination)
            .await
            .unwrap()
    }
}

fn addresses(list: &[&str]) -> Answer {
    Answer::Addresses(
        list.iter()
            .map(|address| address.parse().unwrap())
            .collect(),
    )
}

#[tokio::test]
async fn a_name_reaches_only_the_addresses_listed_for_it() {
    let named = Named::start(true).await;
    let answer = named.answer(addresses(&["127.0.0.1"])).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(named.good.as_ref().unwrap().connections(), 1);
    for forbidden in [
        "127.0.0.2",
        "169.254.169.254",
        "10.0.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "fe80::1",
        "fd00:ec2::254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ] {
        let answer = named.answer(addresses(&[forbidden])).await;
        assert_denied(&answer, 403, "destination_address_forbidden");
    }
    assert_eq!(named.bad.connections(), 0);
}

#[tokio::test]
async fn of_good_and_bad_addresses_only_the_good_is_dialled() {
    let named = Named::start(true).await;
    for _ in 0..4 {
        for order in [["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"]] {
            assert_eq!(named.answer(addresses(&order)).await.status, 200);
        }
    }
    assert_eq!(named.good.as_ref().unwrap().connections(), 8);
    assert_eq!(named.bad.connections(), 0);
}

#[tokio::test]
async fn a_good_address_that_refuses_does_not_lead_to_the_bad_one() {
    let named = Named::start(false).await;
    let answer = named.answer(addresses(&["127.0.0.1", "127.0.0.2"])).await;
    assert_denied(&answer, 502, "destination_unreachable");
    assert_eq!(named.bad.connections(), 0);
}

/// A port of 127.0.0.1 that answers no SYN any more: the queue of its listener is full.
struct Unanswering {
    listener: TcpListener,
    queued: Vec<TcpStream>,
}

impl Unanswering {
    async fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((GOOD, 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let (addr, mut queued) = (listener.local_addr().unwrap(), Vec::new());
        let patience = Duration::from_millis(500);
        while let Ok(stream) = timeout(patience, TcpStream::connect(addr)).await {
            queued.push(stream.unwrap());
        }
        Self { listener, queued }
    }

    /// Whether nobody got into the queue besides those who filled it.
    async fn is_untouched(&self) -> bool {
        for stream in &self.queued {
            let (_, peer) = self.listener.accept().await.unwrap();
            if peer != stream.local_addr().unwrap() {
                return false;
            }
        }
        let further = timeout(Duration::from_millis(100), self.listener.accept());
        further.await.is_err()
    }
}

#[tokio::test]
async fn a_destination_that_never_answers_is_502() {
    let silent = Unanswering::start().await;
    let destination = silent.listener.local_addr().unwrap().to_string();
    let options = AuthzOptions {
        private: vec![(destination.clone(), vec!["127.0.0.1/32".to_owned()])],
        ..AuthzOptions::default()
    };
    let gateway = Gateway::start_with(options).await.unwrap();
    let agent = ClientCertificate::for_identity(AGENT).unwrap();
    gateway.grant(&agent, &destination).unwrap();
    let answer = gateway.connect(&agent, &destination).await.unwrap();
    assert_denied(&answer, 502, "destination_unreachable");
    let id = answer.header("x-agent-gateway-decision-id").unwrap();
    let entry = gateway.envoy.logged(|entry| entry["decision_id"] == id);
    let entry = entry.await.unwrap();
    let details = entry["details"].as_str().unwrap();
    assert!(details.contains("connection_timeout"), "{entry:#}");
    assert!(silent.is_untouched().await);
}

#[tokio::test]
async fn a_name_that_points_elsewhere_the_second_time_is_judged_again() {
    let named = Named::start(true).await;
    let rebinding = Answer::Sequence(vec![vec![GOOD], vec![BAD]]);
    assert_eq!(named.answer(rebinding).await.status, 200);
    let again = named
        .gateway
        .connect(&named.agent, &named.destination)
        .await
        .unwrap();
    assert_denied(&again, 403, "destination_address_forbidden");
    assert_eq!(named.good.as_ref().unwrap().connections(), 1);
    assert_eq!(named.bad.connections(), 0);
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_502() {
    let named = Named::start(true).await;
    let answer = named.answer(Answer::NxDomain).await;
    assert_denied(&answer, 502, "destination_unresolvable");
    let answer = named.answer(addresses(&[])).await;
    assert_denied(&answer, 502, "destination_unresolvable");
}

#[tokio::test]
async fn a_name_whose_servers_hang_is_502() {
    let named = Named::start(true).await;
    let answer = named.answer(Answer::Hang).await;
    assert_denied(&answer, 502, "destination_unresolvable");
}

#[tokio::test]
async fn only_a_granted_name_is_ever_looked_up() {
    let named = Named::start(true).await;
    let answer = named
        .gateway
        .connect(&named.agent, "exfil.test:443")
        .await
        .unwrap();
    assert_denied(&answer, 403, "no_permission");
    assert_eq!(named.gateway.dns.queries("exfil.test"), 0);
}

#[tokio::test]
async fn address_literals_are_judged_like_names() {
    let named = Named::start(true).await;
    let literal = named.bad.addr().to_string();
    named.gateway.grant(&named.agent, &literal).unwrap();
    let answer = named.gateway.connect(&named.agent, &literal).await.unwrap();
    assert_denied(&answer, 403, "destination_address_forbidden");
    assert_eq!(named.bad.connections(), 0);
}

#[tokio::test]
async fn the_gateways_own_listeners_are_out_of_reach_even_where_loopback_is_listed() {
    let other = TcpService::start(GOOD, Behaviour::Echo).await.unwrap();
    let mut gateway = Gateway::start().await.unwrap();
    let envoys = vec![gateway.envoy.addr(), gateway.envoy.admin_addr()];
    let services = [
        gateway.authz.grpc_addr(),
        gateway.authz.admin_grpc_addr(),
        gateway.authz.admin_http_addr(),
    ];
    let own = [envoys.as_slice(), &services].concat();
    let listed = |address: &SocketAddr| (address.to_string(), vec!["127.0.0.0/8".to_owned()]);
    let options = AuthzOptions {
        database_url: gateway.database.url(),
        private: own.iter().chain([&other.addr()]).map(listed).collect(),
        gateway_listeners: envoys,
        ..AuthzOptions::default()
    };
    gateway.authz.start_again_with(&options).unwrap();
    let agent = ClientCertificate::for_identity(AGENT).unwrap();
    for address in own {
        let address = address.to_string();
        gateway.grant(&agent, &address).unwrap();
        let answer = gateway.connect(&agent, &address).await.unwrap();
        assert_denied(&answer, 403, "destination_address_forbidden");
    }
    let other = other.addr().to_string();
    gateway.grant(&agent, &other).unwrap();
    let answer = gateway.connect(&agent, &other).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
}
