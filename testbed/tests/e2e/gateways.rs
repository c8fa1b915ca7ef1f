//! Several gateways: the next is used when those before it are down, and only then.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use testbed::{Behaviour, Envoy, EnvoyOptions, GatewayPki, Wire, free_port};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use super::machine::{Machine, connections, lives};

/// How long the sidecar tries an address that failed after all others.
const AVOIDED: Duration = Duration::from_secs(10);

/// A second Envoy before the same service, and a sidecar that knows both.
async fn two_gateways(replace: &[(&str, &str)]) -> (Machine, Envoy) {
    let mut machine = Machine::granted_replacing(Behaviour::Echo, replace).await;
    let second = EnvoyOptions {
        replace,
        ..EnvoyOptions::new(machine.gateway.authz.grpc_addr(), &machine.gateway.pki)
    };
    let second = Envoy::start(second).await.unwrap();
    machine.run_with(&[machine.gateway.envoy.addr(), second.addr()], &[]);
    (machine, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_gateway_is_used_while_the_first_is_down() {
    let (mut machine, mut second) = two_gateways(&[]).await;
    assert_eq!(machine.connect_status().await, 200);
    assert_eq!(connections(&second).await, 0);

    machine.gateway.envoy.stop().unwrap();
    let mut tunnel = machine.tunnel(&machine.destination).await;
    assert!(lives(&mut tunnel).await);
    assert_eq!(connections(&second).await, 1);

    // The first failed a moment ago, and is all the same tried before giving up.
    machine.gateway.envoy.start_again().await.unwrap();
    second.stop().unwrap();
    assert_eq!(machine.connect_status().await, 200);
    assert_eq!(machine.connections().await, 1);

    machine.gateway.envoy.stop().unwrap();
    let refused = machine.connect().await;
    assert_eq!(refused.status, 503);
    assert!(
        refused
            .body()
            .await
            .unwrap()
            .contains("gateway_unreachable")
    );
    second.start_again().await.unwrap();
    assert_eq!(machine.connect_status().await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_gateway_is_used_again_for_new_connections_when_it_is_back() {
    let one = [("max_concurrent_streams: 100", "max_concurrent_streams: 1")];
    let (mut machine, second) = two_gateways(&one).await;
    let options = EnvoyOptions {
        replace: &one,
        ..EnvoyOptions::new(machine.gateway.authz.grpc_addr(), &machine.gateway.pki)
    };
    let first = Envoy::start(options).await.unwrap();
    // Where nobody listens yet: it can be back at once, however long Envoy takes to start.
    let way = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    machine.run_with(&[way, second.addr()], &[]);
    let mut open = vec![machine.tunnel(&machine.destination).await];
    let _back = Wire::at(way, first.addr()).await.unwrap();
    // Not at once: a gateway that is down may cost time with every connection.
    open.push(machine.tunnel(&machine.destination).await);
    assert_eq!(connections(&second).await, 2);
    assert_eq!(connections(&first).await, 0);

    tokio::time::sleep(AVOIDED).await;
    open.push(machine.tunnel(&machine.destination).await);
    assert_eq!(connections(&first).await, 1);
    assert_eq!(connections(&second).await, 2);
    for tunnel in &mut open {
        assert!(lives(tunnel).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_an_answer_and_no_reason_to_ask_another_gateway() {
    let (mut machine, second) = two_gateways(&[]).await;
    assert_eq!(
        machine
            .sidecar
            .connect("elsewhere.test:443")
            .await
            .unwrap()
            .status,
        403
    );

    // This one is up, and can't decide.
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    let undecided = Envoy::start(EnvoyOptions::new(nobody, &machine.gateway.pki))
        .await
        .unwrap();
    machine.run_with(&[undecided.addr(), second.addr()], &[]);
    let refused = machine.connect().await;
    assert_eq!(refused.status, 503);
    assert!(
        refused
            .body()
            .await
            .unwrap()
            .contains("registry_unavailable")
    );
    assert_eq!(connections(&second).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_not_trusted_is_told_of_and_passed_over() {
    let mut machine = Machine::granted(Behaviour::Echo).await;
    let stranger = GatewayPki::generate().unwrap();
    let first = EnvoyOptions::new(machine.gateway.authz.grpc_addr(), &stranger);
    let first = Envoy::start(first).await.unwrap();
    machine.run_with(&[first.addr(), machine.gateway.envoy.addr()], &[]);
    assert_eq!(machine.connect_status().await, 200);
    let log = machine.sidecar.process().log();
    let warned = log.lines().any(|line| {
        line.contains("WARN")
            && line.contains(&format!("gateway={}", first.addr()))
            && line.contains("the gateway's certificate is not trusted")
    });
    assert!(warned, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_drops_packets_costs_little_and_not_each_time() {
    let one = [("max_concurrent_streams: 100", "max_concurrent_streams: 1")];
    let mut machine = Machine::granted_replacing(Behaviour::Echo, &one).await;
    let (hole, before) = (BlackHole::dig().await, machine.connections().await);
    machine.run_with(&[hole.addr, machine.gateway.envoy.addr()], &[]);
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(machine.tunnel(&machine.destination).await);
    }
    assert_eq!(machine.connections().await - before, 4);
    let log = machine.sidecar.process().log();
    assert_eq!(log.matches("not connected").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_falls_silent_is_left_for_the_second_before_its_clients_give_up() {
    let (mut machine, second) = two_gateways(&[]).await;
    assert_eq!(machine.connect_status().await, 200);
    // Its connections stay up, and it even takes new ones, but says nothing.
    machine.gateway.envoy.process().pause().unwrap();
    let mut tunnel = machine.tunnel(&machine.destination).await;
    assert!(lives(&mut tunnel).await);
    assert_eq!(connections(&second).await, 1);
    machine.gateway.envoy.process().resume().unwrap();
}

/// A port that answers no SYN: its queue of connections that nobody accepts is full.
struct BlackHole {
    addr: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    async fn dig() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(connected) = timeout(Duration::from_secs(1), TcpStream::connect(addr)).await {
            queued.push(connected.unwrap());
        }
        Self {
            addr,
            _listener: listener,
            _queued: queued,
        }
    }
}
