//! W3C trace context, and the export of spans.

use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::agent::Agent;
use crate::client::{PATIENCE, connect, read, tunnel};
use crate::gateway::Gateway;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

#[tokio::test(flavor = "multi_thread")]
async fn every_tunnel_is_part_of_a_trace_of_its_own() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let mut command = agent.run_command(&gateway, &[]);
    // Quiet logs must not break traces.
    command.env("RUST_LOG", "sidecar=info,off");
    let sidecar = agent.start(&command);
    let mut traces = Vec::new();
    for headers in [
        "",
        "",
        "traceparent: rubbish\r\n",
        &format!("traceparent: 00-{}-{PARENT}-01\r\n", "0".repeat(32)),
        &format!("traceparent: 00-{TRACE}-{PARENT}-01\r\ntraceparent: 00-{TRACE}-{PARENT}-01\r\n"),
    ] {
        connect(sidecar.proxy, "echo:443", headers).await;
        let sent = gateway.seen().requests.pop().unwrap().1;
        let parts: Vec<&str> = sent["traceparent"].split('-').collect();
        assert_eq!(parts.len(), 4, "{parts:?}");
        assert_eq!(
            (parts[0], parts[1].len(), parts[2].len(), parts[3]),
            ("00", 32, 16, "01")
        );
        traces.push(parts[1].to_owned());
    }
    assert!(!traces.iter().any(|trace| trace == TRACE));
    traces.sort_unstable();
    traces.dedup();
    assert_eq!(traces.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn trace_of_the_client_is_continued() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let mut sidecar = agent.run(&gateway);
    let headers = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: a=1\r\n");
    connect(sidecar.proxy, "echo:443", &headers).await;
    let sent = gateway.seen().requests.pop().unwrap().1;
    let parts: Vec<&str> = sent["traceparent"].split('-').collect();
    assert_eq!(parts[1], TRACE);
    assert_ne!(parts[2], PARENT, "a span of our own lies between");
    assert_eq!(sent["tracestate"], "a=1");
    sidecar.process.wait_for_log(TRACE).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_exported_where_the_environment_says() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let collector = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut command = agent.run_command(&gateway, &[]);
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    let mut sidecar = agent.start(&command);
    drop(tunnel(sidecar.proxy, "echo:443").await);
    let stopping = tokio::task::spawn_blocking(move || sidecar.process.terminate());
    let (mut connection, _) = timeout(PATIENCE, collector.accept())
        .await
        .expect("an exporter")
        .unwrap();
    assert_eq!(read(&mut connection, 14).await, b"PRI * HTTP/2.0");
    // A collector that never answers doesn't hold up the end for long.
    assert_eq!(stopping.await.unwrap().unwrap().code(), Some(0));
}
