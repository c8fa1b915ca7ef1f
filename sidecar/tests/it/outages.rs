//! Gateway and TPM go away and come back.

use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;

use crate::agent::{Agent, Sidecar};
use crate::client::{read, read_until_reset, refused, tunnel};
use crate::gateway::Gateway;

async fn assert_unavailable(sidecar: &Sidecar, reason: &str) {
    let answer = refused(sidecar.proxy, "echo:443").await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (503, reason),
        "{answer:?}"
    );
    assert!(answer.json()["hint"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_may_be_down_at_first_and_between() {
    let (agent, mut gateway) = (Agent::initialised(), Gateway::start().await);
    gateway.stop().await;
    let sidecar = agent.run(&gateway);
    assert_unavailable(&sidecar, "gateway_unreachable").await;
    gateway.start_again().await;
    let stream = tunnel(sidecar.proxy, "echo:443").await;

    gateway.stop().await;
    assert_eq!(read_until_reset(stream).await, b"");
    assert_unavailable(&sidecar, "gateway_unreachable").await;
    gateway.start_again().await;
    tunnel(sidecar.proxy, "echo:443").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_connection_is_replaced_for_the_next_tunnel() {
    let (agent, mut gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    tunnel(sidecar.proxy, "echo:443").await;
    // At once: the sidecar may not have noticed yet, and must not answer 503 for that.
    gateway.stop().await;
    gateway.start_again().await;
    tunnel(sidecar.proxy, "echo:443").await;
    assert_eq!(gateway.seen().keys.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_takes_no_more_carries_on_what_it_has() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let mut old = tunnel(sidecar.proxy, "echo:443").await;
    gateway.go_away();
    // The old connection takes requests until the sidecar has seen the notice.
    let mut new = Vec::new();
    while gateway.seen().keys.len() < 2 {
        // With 100 it would be full, and another one opened for that.
        assert!(new.len() < 90, "the notice was ignored");
        new.push(tunnel(sidecar.proxy, "echo:443").await);
    }
    for stream in new.iter_mut().chain([&mut old]) {
        stream.write_all(b"!").await.unwrap();
        assert_eq!(read(stream, 1).await, b"!");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_all_take_no_more_at_once_refuse_nobody() {
    let agent = Agent::initialised();
    let gateway = Gateway::start_at("127.0.0.1:0", 2).await;
    let sidecar = agent.run(&gateway);
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(tunnel(sidecar.proxy, "echo:443").await);
    }
    assert_eq!(gateway.seen().keys.len(), 5);
    // Room on each of them, as far as the sidecar knows.
    for place in (0..10).step_by(2).rev() {
        drop(open.remove(place));
    }
    gateway.go_away();
    for _ in 0..4 {
        open.push(tunnel(sidecar.proxy, "echo:443").await);
    }
    for stream in &mut open {
        stream.write_all(b"!").await.unwrap();
        assert_eq!(read(stream, 1).await, b"!");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_wait_share_one_connection() {
    let (agent, mut gateway) = (Agent::initialised(), Gateway::start().await);
    gateway.stop().await;
    let sidecar = agent.run(&gateway);
    let mut waiting = JoinSet::new();
    for _ in 0..40 {
        waiting.spawn(refused(sidecar.proxy, "echo:443"));
    }
    for answer in waiting.join_all().await {
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (503, "gateway_unreachable")
        );
    }
    // Far fewer attempts than callers: at most one pause of the backoff apart.
    let attempts = sidecar.process.log().matches("not connected").count();
    assert!(attempts <= 8, "{attempts} attempts");

    gateway.start_again().await;
    let mut waiting = JoinSet::new();
    for _ in 0..40 {
        waiting.spawn(tunnel(sidecar.proxy, "echo:443"));
    }
    assert_eq!(waiting.join_all().await.len(), 40);
    assert_eq!(gateway.seen().keys.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_of_another_authority_or_name_is_not_trusted() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let stranger = Gateway::start().await;
    let ca = stranger.pki.ca_file();
    for more in [
        ["--ca", ca.to_str().unwrap()],
        ["--server-name", "other.example"],
    ] {
        let sidecar = agent.run_with(&gateway, &more);
        assert_unavailable(&sidecar, "gateway_untrusted").await;
    }
    // The key was never shown to it.
    assert_eq!(gateway.seen().keys.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tpm_may_go_away_and_come_back() {
    let (mut agent, mut gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let mut stream = tunnel(sidecar.proxy, "echo:443").await;

    agent.tpm.stop().unwrap();
    // An open connection does without.
    stream.write_all(b"on").await.unwrap();
    assert_eq!(read(&mut stream, 2).await, b"on");
    tunnel(sidecar.proxy, "echo:443").await;

    gateway.stop().await;
    gateway.start_again().await;
    assert_unavailable(&sidecar, "tpm_unavailable").await;
    assert_eq!(gateway.seen().keys.len(), 1);

    agent.tpm.start_again().unwrap();
    tunnel(sidecar.proxy, "echo:443").await;
    assert_eq!(gateway.seen().keys, [agent.spki(), agent.spki()]);
}
