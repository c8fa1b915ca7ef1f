//! Agents as they really are: a TPM key, the sidecar, and a plain client behind it.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use testbed::Behaviour;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::machine::{Machine, bytes, lives};

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_bytes_go_there_and_back() {
    let machine = Machine::granted(Behaviour::Echo).await;
    let mut answer = machine.sidecar.connect(&machine.destination).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.stream.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    answer.stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"ping");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_reaches_the_agent_with_its_reason() {
    let machine = Machine::granted(Behaviour::Echo).await;
    let answer = machine.sidecar.connect("elsewhere.test:443").await.unwrap();
    assert_eq!(answer.status, 403, "{answer:?}");
    assert!(
        answer
            .head
            .to_ascii_lowercase()
            .contains("x-agent-gateway-decision-id: ")
    );
    assert!(
        answer
            .head
            .to_ascii_lowercase()
            .contains("proxy-status: agent-gateway; error=")
    );
    let body: serde_json::Value = serde_json::from_str(&answer.body().await.unwrap()).unwrap();
    assert_eq!(body["reason"], "no_permission");
    assert_eq!(body["error"], "blocked by policy");
    assert!(
        body["hint"]
            .as_str()
            .unwrap()
            .contains("another route won't work")
    );

    let revoke = "UPDATE permission_registry SET revoked_at = now()";
    machine.gateway.database.execute(revoke).unwrap();
    machine.gateway.authz.settle().await;
    let answer = machine.sidecar.connect(&machine.destination).await.unwrap();
    let body: serde_json::Value = serde_json::from_str(&answer.body().await.unwrap()).unwrap();
    assert_eq!(body["reason"], "permission_revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_tunnels_at_once_each_carry_their_own_bytes() {
    let machine = Arc::new(Machine::granted(Behaviour::Echo).await);
    let tunnels: Vec<_> = (0..50u8)
        .map(|number| {
            let machine = Arc::clone(&machine);
            tokio::spawn(async move {
                let answer = machine.sidecar.connect(&machine.destination).await.unwrap();
                assert_eq!(answer.status, 200, "{answer:?}");
                let (mut read, mut write) = answer.stream.into_split();
                let sent: Vec<u8> = bytes(200_000)
                    .iter()
                    .map(|byte| byte.wrapping_mul(number | 1))
                    .collect();
                let expected = sent.clone();
                let writer =
                    tokio::spawn(async move { write.write_all(&sent).await.map(|()| write) });
                let mut echoed = vec![0; expected.len()];
                read.read_exact(&mut echoed).await.unwrap();
                assert!(echoed == expected, "tunnel {number}");
                drop(writer.await.unwrap().unwrap());
            })
        })
        .collect();
    for tunnel in tunnels {
        tunnel.await.unwrap();
    }
    assert_eq!(machine.service.connections(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_finish_first_and_still_hears_the_answer() {
    let machine = Machine::granted(Behaviour::EchoAtEnd).await;
    let mut answer = machine.sidecar.connect(&machine.destination).await.unwrap();
    let sent = bytes(300_000);
    answer.stream.write_all(&sent).await.unwrap();
    answer.stream.shutdown().await.unwrap();
    let mut heard = Vec::new();
    answer.stream.read_to_end(&mut heard).await.unwrap();
    assert!(heard == sent, "{} bytes", heard.len());
}

/// Envoy 1.40 resets a tunnel whose destination ends first, and drops what then does not fit
/// into the client's window; what fits is complete, and what is cut never looks complete.
#[tokio::test(flavor = "multi_thread")]
async fn a_download_from_a_service_that_ends_first_is_complete_or_visibly_cut() {
    for (length, fits) in [(400_000, true), (3_000_000, false)] {
        let said = bytes(length);
        let machine = Machine::granted(Behaviour::SayThenListen(said.clone())).await;
        for _ in 0..10 {
            let mut answer = machine.sidecar.connect(&machine.destination).await.unwrap();
            let mut heard = Vec::new();
            let end = answer.stream.read_to_end(&mut heard).await;
            let complete = heard == said;
            assert!(
                complete || (!fits && end.is_err()),
                "{} of {length}: {end:?}",
                heard.len()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_and_comes_back_is_found_again() {
    let mut machine = Machine::granted(Behaviour::Echo).await;
    assert_eq!(machine.connect_status().await, 200);
    machine.gateway.envoy.stop().unwrap();
    let answer = machine.sidecar.connect(&machine.destination).await.unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.body().await.unwrap().contains("gateway_unreachable"));
    machine.gateway.envoy.start_again().await.unwrap();
    assert_eq!(machine.connect_status().await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_that_is_gone_costs_only_new_connections_until_it_is_back() {
    let mut machine = Machine::granted(Behaviour::Echo).await;
    let mut open = machine.tunnel(&machine.destination).await;
    machine.agent.tpm.stop().unwrap();
    // The connection that stands needs no signature.
    assert_eq!(machine.connect_status().await, 200);
    assert!(lives(&mut open).await);
    machine.gateway.envoy.start_again().await.unwrap();
    let answer = machine.sidecar.connect(&machine.destination).await.unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.body().await.unwrap().contains("tpm_unavailable"));
    machine.agent.tpm.start_again().unwrap();
    assert_eq!(machine.connect_status().await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_that_hangs_holds_up_new_connections_alone_and_not_for_ever() {
    let one = [("max_concurrent_streams: 100", "max_concurrent_streams: 1")];
    let mut machine = Machine::granted_replacing(Behaviour::Echo, &one).await;
    let mut open = machine.tunnel(&machine.destination).await;
    machine.agent.tpm.process().pause().unwrap();
    let (mut echoes, asked) = (0, Instant::now());
    let refused = {
        let mut asking = pin!(machine.connect());
        loop {
            tokio::select! {
                refused = &mut asking => break refused,
                () = tokio::time::sleep(Duration::from_millis(100)) => {
                    assert!(lives(&mut open).await);
                    echoes += 1;
                }
            }
        }
    };
    // The TPM was waited for, for 5 s; the open tunnel was not held up meanwhile.
    let waited = asked.elapsed();
    assert!(waited >= Duration::from_millis(4500), "{waited:?}");
    assert!(echoes >= 2, "{echoes}");
    assert_eq!(refused.status, 503);
    assert!(refused.body().await.unwrap().contains("tpm_unavailable"));
    machine.agent.tpm.process().resume().unwrap();
    assert_eq!(machine.connect_status().await, 200);
}

/// What came back on a connection to the local proxy, and whether it was cut rather than ended.
async fn say(machine: &Machine, words: &[u8]) -> (String, bool) {
    let mut stream = TcpStream::connect(machine.sidecar.addr()).await.unwrap();
    let sent = stream.write_all(words).await;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (answer, sent.is_err() || read.is_err())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_sends_garbage_or_too_much_disturbs_nobody() {
    let machine = Machine::granted(Behaviour::Echo).await;
    let (answer, cut) = say(&machine, b"\x00\xff\x16\x03\x01garbage\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && !cut, "{answer:?}");

    // As long as a header may be and without its end: read to its last byte, and refused.
    let start = "CONNECT a:1 HTTP/1.1\r\nX: ";
    let full = format!("{start}{}", "a".repeat(16 * 1024 - start.len()));
    let (answer, cut) = say(&machine, full.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 ") && !cut, "{answer:?}");

    // Of more than that, the rest is not read, and the reset may overtake the answer.
    let huge = format!("{start}{}\r\n\r\n", "a".repeat(1_000_000));
    let (answer, cut) = say(&machine, huge.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 431 ") || answer.is_empty() && cut,
        "{answer:?}"
    );

    let silent = TcpStream::connect(machine.sidecar.addr()).await.unwrap();
    assert_eq!(machine.connect_status().await, 200);
    drop(silent);
    machine.service.wait_for_connections(1).await.unwrap();
}
