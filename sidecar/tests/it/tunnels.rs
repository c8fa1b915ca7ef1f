//! Open tunnels: every byte arrives, ends are told from cuts, and no tunnel holds up another.

use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use testbed::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::agent::{Agent, Sidecar};
use crate::client::{
    PATIENCE, connect, head, read, read_to_end, read_to_its_end, read_until_reset, send, tunnel,
    tunnel_when_there_is_room,
};
use crate::gateway::{Ending, Gateway};

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_and_the_handshake_proved_the_tpm_key() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let mut stream = tunnel(sidecar.proxy, "echo:443").await;
    stream.write_all(b"ping").await.unwrap();
    assert_eq!(read(&mut stream, 4).await, b"ping");
    stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(stream).await, b"");
    assert_eq!(gateway.seen().keys, [agent.spki()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_of_an_open_tunnel_learns_the_decision_and_no_more() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let (answer, _) = connect(sidecar.proxy, "echo:443", "").await;
    assert_eq!(answer.status, 200);
    let mut headers = answer.headers;
    headers.remove("date");
    let decision = ("x-agent-gateway-decision-id", "decision-1");
    let decision = (decision.0.to_owned(), decision.1.to_owned());
    assert_eq!(headers, HashMap::from([decision]));
}

#[tokio::test(flavor = "multi_thread")]
async fn authority_is_sent_as_the_client_wrote_it() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let authorities = ["echo", "echo:0", "echo:99999", "echo:0443", "echo:"].map(str::to_owned);
    for authority in &authorities {
        tunnel(sidecar.proxy, authority).await;
    }
    let sent: Vec<String> = gateway
        .seen()
        .requests
        .into_iter()
        .map(|request| request.0)
        .collect();
    assert_eq!(sent, authorities);
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_is_reached_over_ipv6_and_under_another_name() {
    let (agent, gateway) = (
        Agent::initialised(),
        Gateway::start_at("[::1]:0", 100).await,
    );
    for more in [&[][..], &["--server-name", "gateway"]] {
        let sidecar = agent.run_with(&gateway, more);
        tunnel(sidecar.proxy, "echo:443").await;
    }
    assert_eq!(gateway.seen().keys.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_tunnels_at_once_carry_their_own_bytes_on_one_connection() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let proxy = sidecar.proxy;
    let mut tunnels = JoinSet::new();
    for number in 0..50_u32 {
        tunnels.spawn(async move {
            let data = noise(number, 300_000 + number as usize);
            let stream = tunnel(proxy, "echo:443").await;
            assert!(echo(stream, &data).await == data, "tunnel {number} differs");
        });
    }
    tunnels.join_all().await;
    assert_eq!(gateway.seen().requests.len(), 50);
    assert_eq!(gateway.seen().keys.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_that_nobody_reads_do_not_freeze_others() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let mut unread = Vec::new();
    for _ in 0..8 {
        unread.push(tunnel(sidecar.proxy, "flood:443").await);
    }
    gateway.wait_until_flood_stands().await;
    let data = noise(1, 4 << 20);
    let stream = tunnel(sidecar.proxy, "echo:443").await;
    assert!(echo(stream, &data).await == data);
    assert_eq!(gateway.seen().keys.len(), 1);
}

/// Four bytes come in each frame, which h2 would keep with some 200 bytes about it.
#[tokio::test(flavor = "multi_thread")]
async fn unread_bytes_take_no_more_memory_for_having_come_in_small_frames() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let mut command = agent.run_command(&gateway, &[]);
    // A line for each frame would take longer than the frame.
    command.env("RUST_LOG", "info");
    let mut sidecar = agent.start(&command);
    tunnel(sidecar.proxy, "echo:443").await;
    let before = resident_bytes(&mut sidecar);
    let mut unread = tunnel(sidecar.proxy, "drizzle:443").await;
    gateway.wait_until_flood_stands().await;
    let (mut now, mut last) = (resident_bytes(&mut sidecar), 0);
    while now != last {
        tokio::time::sleep(Duration::from_millis(500)).await;
        (now, last) = (resident_bytes(&mut sidecar), now);
    }
    let flood = gateway.seen().flood;
    let grown = now.saturating_sub(before);
    assert!(grown < 10 << 20, "{grown} bytes for {flood}");
    let mut data = vec![0; flood];
    let all = timeout(4 * PATIENCE, unread.read_exact(&mut data)).await;
    all.expect("all of it").unwrap();
    assert!(data.iter().all(|byte| *byte == b'x'));
}

/// What was on its way when a client left comes after the reset. h2 counts that as an error once
/// it has forgotten the tunnel, and ends the connection after so many of them.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_while_data_comes_do_not_cost_the_others_their_connection() {
    let agent = Agent::initialised();
    let gateway = Gateway::start_at("127.0.0.1:0", 1000).await;
    let sidecar = agent.run(&gateway);
    let mut other = tunnel(sidecar.proxy, "echo:443").await;
    for _ in 0..25 {
        let mut flooded = JoinSet::new();
        for _ in 0..60 {
            flooded.spawn(tunnel(sidecar.proxy, "flood:443"));
        }
        for stream in flooded.join_all().await {
            stream.set_zero_linger().unwrap();
        }
    }
    other.write_all(b"still").await.unwrap();
    assert_eq!(read(&mut other, 5).await, b"still");
    assert_eq!(gateway.seen().keys.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_are_not_limited_by_the_usual_limit_of_open_files() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let run = agent.run_command(&gateway, &[]);
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -Sn 40 && exec "$0" "$@""#]);
    command.arg(run.get_program()).args(run.get_args());
    for (name, value) in run.get_envs() {
        command.env(name, value.unwrap());
    }
    let sidecar = agent.start(&command);
    let mut open = Vec::new();
    for _ in 0..60 {
        open.push(tunnel(sidecar.proxy, "echo:443").await);
    }
    for stream in &mut open {
        stream.write_all(b"!").await.unwrap();
        assert_eq!(read(stream, 1).await, b"!");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_128_tunnels_open_a_second_connection_whatever_the_gateway_allows() {
    let agent = Agent::initialised();
    let gateway = Gateway::start_at("127.0.0.1:0", 1000).await;
    let sidecar = agent.run(&gateway);
    let mut open = Vec::new();
    for _ in 0..128 {
        open.push(tunnel(sidecar.proxy, "echo:443").await);
    }
    assert_eq!(gateway.seen().keys.len(), 1);
    open.push(tunnel(sidecar.proxy, "echo:443").await);
    assert_eq!(gateway.seen().keys.len(), 2);
    for stream in &mut open {
        stream.write_all(b"!").await.unwrap();
        assert_eq!(read(stream, 1).await, b"!");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_that_allows_few_streams_gets_more_connections() {
    let (agent, gateway) = (
        Agent::initialised(),
        Gateway::start_at("127.0.0.1:0", 10).await,
    );
    let sidecar = agent.run(&gateway);
    let mut opening = JoinSet::new();
    for _ in 0..25 {
        opening.spawn(tunnel(sidecar.proxy, "echo:443"));
    }
    let open = opening.join_all().await;
    assert_eq!(open.len(), 25);
    assert_eq!(gateway.seen().keys.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_right_behind_the_header_is_not_lost() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let token = sidecar.proxy.authorization;
    let request = format!("CONNECT echo:443 HTTP/1.1\r\nHost: echo:443\r\n{token}\r\nearly");
    let mut stream = send(sidecar.proxy, request.as_bytes()).await;
    assert_eq!(head(&mut stream).await.status, 200);
    assert_eq!(read(&mut stream, 5).await, b"early");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_may_end_first_and_still_read() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let mut stream = tunnel(sidecar.proxy, "listen:443").await;
    stream.write_all(b"abc").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(stream).await, b"616263");
    assert_eq!(
        gateway.seen().uploads,
        [(b"abc".to_vec(), Ending::EndStream)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn destination_may_end_first_and_still_be_written_to() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let mut stream = tunnel(sidecar.proxy, "greet:443").await;
    assert_eq!(read_to_its_end(&mut stream).await, b"hello");
    stream.write_all(b"thanks").await.unwrap();
    drop(stream);
    let seen = gateway.wait_until(|seen| !seen.uploads.is_empty()).await;
    assert_eq!(seen.uploads, [(b"thanks".to_vec(), Ending::EndStream)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_tunnel_is_not_mistaken_for_a_finished_one() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    for host in [
        "cut-no-error:443",
        "cut-cancel:443",
        "cut-internal-error:443",
    ] {
        let mut stream = tunnel(sidecar.proxy, host).await;
        assert_eq!(read(&mut stream, 7).await, b"partial", "{host}");
        stream.write_all(b"go on").await.unwrap();
        assert_eq!(read_until_reset(stream).await, b"", "{host}");
    }
    // The connection itself is none the worse for it.
    tunnel(sidecar.proxy, "echo:443").await;
    assert_eq!(gateway.seen().keys.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_breaks_off_resets_its_stream() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let mut stream = tunnel(sidecar.proxy, "listen:443").await;
    stream.write_all(b"abc").await.unwrap();
    // The reset must not overtake the data.
    let mut other = tunnel(sidecar.proxy, "echo:443").await;
    other.write_all(b"x").await.unwrap();
    read(&mut other, 1).await;
    stream.set_zero_linger().unwrap();
    drop(stream);
    let seen = gateway.wait_until(|seen| !seen.uploads.is_empty()).await;
    assert_eq!(seen.uploads[0].1, Ending::Reset(Some(h2::Reason::CANCEL)));
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_leaves_before_the_answer_gives_its_place_back() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run_with(&gateway, &["--max-tunnels", "1"]);
    let token = sidecar.proxy.authorization;
    let request = format!("CONNECT silent:443 HTTP/1.1\r\n{token}\r\n");
    let waiting = send(sidecar.proxy, request.as_bytes()).await;
    gateway.wait_until(|seen| seen.requests.len() == 1).await;
    assert_eq!(connect(sidecar.proxy, "echo:443", "").await.0.status, 429);
    drop(waiting);
    tunnel_when_there_is_room(sidecar.proxy, "echo:443").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_cuts_what_does_not_end_by_itself() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let mut sidecar = agent.run(&gateway);
    let mut stream = tunnel(sidecar.proxy, "echo:443").await;
    sidecar.process.signal(Signal::TERM).unwrap();
    sidecar.process.wait_for_log(" draining").unwrap();
    assert!(!agent.file("proxy.url").exists());
    // For a short while it still works.
    stream.write_all(b"still").await.unwrap();
    assert_eq!(read(&mut stream, 5).await, b"still");
    assert_eq!(read_until_reset(stream).await, b"");
    assert_eq!(
        sidecar
            .process
            .wait(testbed::process::PATIENCE)
            .unwrap()
            .code(),
        Some(0)
    );
}

/// What the process holds in memory.
fn resident_bytes(sidecar: &mut Sidecar) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", sidecar.process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: usize = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib * 1024
}

/// Sends `data` while it reads as much.
async fn echo(stream: TcpStream, data: &[u8]) -> Vec<u8> {
    let (mut from, mut to) = stream.into_split();
    let mut received = vec![0; data.len()];
    let both = async { tokio::join!(to.write_all(data), from.read_exact(&mut received)) };
    let (sent, _) = timeout(PATIENCE, both).await.expect("all data");
    sent.unwrap();
    received
}

/// Bytes that differ by seed and don't repeat soon (a linear congruential generator).
fn noise(seed: u32, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..bytes).map(|_| next()).collect()
}
