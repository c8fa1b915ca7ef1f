//! The sidecar's connections to the gateway: shared by all tunnels, and no tunnel suffers from it.

use std::sync::Arc;
use std::time::Duration;

use testbed::{Behaviour, dns};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::machine::{Machine, bytes, lives};
use super::open_tunnels::PATIENCE;
use super::wire::Wire;

/// Sends `data` to a service that echoes, and expects it back.
async fn echoes(stream: TcpStream, data: Vec<u8>) {
    let (mut read, mut write) = stream.into_split();
    let mut echoed = vec![0; data.len()];
    let both = async { tokio::join!(write.write_all(&data), read.read_exact(&mut echoed)) };
    let (sent, received) = timeout(2 * PATIENCE, both).await.expect("all data");
    sent.unwrap();
    received.unwrap();
    assert!(echoed == data);
}

/// Twenty tunnels at once get all their data through.
async fn assert_others_work(machine: &Machine) {
    let mut working = JoinSet::new();
    for number in 0..20 {
        let stream = machine.tunnel(&machine.destination).await;
        working.spawn(echoes(stream, bytes(1_000_000 + number)));
    }
    working.join_all().await;
    // All of them, and the stalled ones, on the same connection.
    assert_eq!(machine.connections().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_stop_hold_up_no_other_tunnel() {
    for stalled in [1, 50] {
        let machine = Machine::granted(Behaviour::Echo).await;
        let mut unread = Vec::new();
        for _ in 0..stalled {
            unread.push(machine.tunnel(&machine.flood.1).await);
        }
        machine.flood.0.wait_until_flood_stands().await.unwrap();
        assert_others_work(&machine).await;
        // They go on where they stopped.
        for mut stream in unread {
            let mut data = vec![0; 2_000_000];
            let read = timeout(PATIENCE, stream.read_exact(&mut data)).await;
            read.expect("data").unwrap();
            assert!(data.iter().all(|byte| *byte == b'x'));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_read_nothing_hold_up_no_other_tunnel() {
    let machine = Machine::granted(Behaviour::Echo).await;
    let mut unread = Vec::new();
    for _ in 0..50 {
        let mut stream = machine.tunnel(&machine.silent.1).await;
        // Until nothing goes any more.
        let data = [b'x'; 16 * 1024];
        while let Ok(sent) = timeout(Duration::from_millis(200), stream.write_all(&data)).await {
            sent.unwrap();
        }
        unread.push(stream);
    }
    assert_others_work(&machine).await;
}

/// Envoy closes a connection on which too many requests are reset before their answer.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_before_the_answer_do_not_cost_the_others_their_connection() {
    let machine = Machine::granted(Behaviour::Echo).await;
    let mut other = machine.tunnel(&machine.destination).await;
    // Its name is looked up for a second, then the answer is 502.
    let slow = "slow.test:443";
    machine.gateway.dns.answer("slow.test", dns::Answer::Hang);
    machine.grant(slow);
    machine.gateway.authz.settle().await;
    let token = machine.sidecar.authorization();
    let request = format!("CONNECT {slow} HTTP/1.1\r\n{token}\r\n");
    for round in 1..=5 {
        let mut leaving = Vec::new();
        for _ in 0..60 {
            let mut client = TcpStream::connect(machine.sidecar.addr()).await.unwrap();
            client.write_all(request.as_bytes()).await.unwrap();
            leaving.push(client);
        }
        let asked = async {
            let asked = "http.gateway.downstream_rq_total";
            while machine.gateway.envoy.stat(asked).await.unwrap() <= 60 * round {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, asked).await.expect("requests");
    }
    assert!(lives(&mut other).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_tunnels_are_open_at_once_and_each_carries_its_own_bytes() {
    testbed::process::allow_many_open_files().unwrap();
    let machine = Arc::new(Machine::granted(Behaviour::Echo).await);
    let mut opening = JoinSet::new();
    for _ in 0..50 {
        let machine = Arc::clone(&machine);
        opening.spawn(async move {
            let mut open = Vec::new();
            for _ in 0..20 {
                open.push(machine.tunnel(&machine.destination).await);
            }
            open
        });
    }
    let mut open: Vec<_> = opening.join_all().await.into_iter().flatten().collect();
    assert_eq!(open.len(), 1000);
    for (number, stream) in open.iter_mut().enumerate() {
        stream.write_all(&number.to_be_bytes()).await.unwrap();
    }
    for (number, stream) in open.iter_mut().enumerate() {
        let mut echoed = [0; size_of::<usize>()];
        let read = timeout(PATIENCE, stream.read_exact(&mut echoed)).await;
        read.expect("an echo").unwrap();
        assert_eq!(usize::from_be_bytes(echoed), number);
    }
    // 100 on each: what Envoy allows.
    assert_eq!(machine.connections().await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_waits_for_one_handshake_and_then_for_the_next() {
    let mut machine = Machine::granted(Behaviour::Echo).await;
    assert_eq!(machine.connect_status().await, 200);
    // There is no connection, and none on its way.
    machine.gateway.envoy.start_again().await.unwrap();
    let machine = Arc::new(machine);
    let mut asking = JoinSet::new();
    for _ in 0..150 {
        let machine = Arc::clone(&machine);
        asking.spawn(async move { machine.tunnel(&machine.destination).await });
    }
    let open = asking.join_all().await;
    assert_eq!(open.len(), 150);
    assert_eq!(machine.connections().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_and_without_a_tpm_one_more_tunnel_is_refused_until_either_is_back() {
    let few = [("max_concurrent_streams: 100", "max_concurrent_streams: 3")];
    let mut machine = Machine::granted_replacing(Behaviour::Echo, &few).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(machine.tunnel(&machine.destination).await);
    }
    machine.agent.tpm.stop().unwrap();
    let refused = machine.connect().await;
    assert_eq!(refused.status, 503);
    assert!(refused.body().await.unwrap().contains("tpm_unavailable"));
    for stream in &mut open {
        assert!(lives(stream).await);
    }
    // The place of one that ended is taken, without a signature.
    drop(open.pop());
    let again = async {
        while machine.connect_status().await != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("the place");
    assert_eq!(machine.connections().await, 1);

    machine.agent.tpm.start_again().unwrap();
    for _ in 0..3 {
        open.push(machine.tunnel(&machine.destination).await);
    }
    assert_eq!(machine.connections().await, 2);
    for stream in &mut open {
        assert!(lives(stream).await);
    }
}

/// Holds up one direction at a time: all that Envoy needs is on its way before it has said a word,
/// and the client has its 200 before the sidecar can say another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_on_a_warm_connection_costs_one_round_trip() {
    let mut machine = Machine::granted(Behaviour::Echo).await;
    let wire = Wire::to(machine.gateway.envoy.addr()).await;
    machine.run_with(&[wire.addr], &[]);
    let mut first = machine.tunnel(&machine.destination).await;
    assert!(lives(&mut first).await);
    machine.service.wait_for(b"ping").await.unwrap();
    let before = wire.up.records();

    wire.down.hold();
    let mut client = TcpStream::connect(machine.sidecar.addr()).await.unwrap();
    let token = machine.sidecar.authorization();
    let request = format!(
        "CONNECT {} HTTP/1.1\r\n{token}\r\nearly",
        machine.destination
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let dialled = async {
        while machine.service.connections() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, dialled)
        .await
        .expect("Envoy never dialled");
    assert_eq!(wire.up.records() - before, 1);
    let mut nothing = [0];
    assert!(
        client.try_read(&mut nothing).is_err(),
        "an answer of nobody"
    );

    wire.up.hold();
    wire.down.let_go();
    let mut answer = [0; 12];
    let read = timeout(PATIENCE, client.read_exact(&mut answer)).await;
    read.expect("an answer").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    // What the client sent behind its header has waited for the answer.
    assert_eq!(machine.service.received(), b"ping");
    wire.up.let_go();
    machine.service.wait_for(b"pingearly").await.unwrap();
}

/// The answer to the sidecar's ping waits behind megabytes of data.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_slow_is_not_taken_for_one_that_is_gone() {
    let mut machine = Machine::granted(Behaviour::Echo).await;
    let wire = Wire::to(machine.gateway.envoy.addr()).await;
    machine.run_with(&[wire.addr], &[]);
    let mut flood = machine.tunnel(&machine.flood.1).await;
    wire.down.slow_down();
    let mut buffer = vec![0; 64 * 1024];
    // A ping goes out after 5 s, and 5 s of silence are the end.
    let until = Instant::now() + Duration::from_secs(14);
    while Instant::now() < until {
        let read = timeout(PATIENCE, flood.read(&mut buffer)).await;
        assert!(read.expect("data").unwrap() > 0);
    }
}
