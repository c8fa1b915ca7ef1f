//! The gateway says no, or nothing: what the local client sees.

use serde_json::json;

use crate::agent::Agent;
use crate::client::{refused, tunnel, tunnel_when_there_is_room};
use crate::gateway::Gateway;

#[tokio::test(flavor = "multi_thread")]
async fn refusal_of_the_gateway_is_handed_on() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let answer = refused(sidecar.proxy, "deny:443").await;
    assert_eq!(answer.status, 403);
    assert_eq!(
        answer.json(),
        json!({"error": "denied", "reason": "no_permission"})
    );
    for (name, value) in [
        ("content-type", Some("application/json")),
        ("x-agent-gateway-decision-id", Some("decision-1")),
        (
            "proxy-status",
            Some("agent-gateway; error=http_request_denied"),
        ),
        ("retry-after", Some("7")),
        ("x-internal", None),
    ] {
        assert_eq!(
            answer.headers.get(name).map(String::as_str),
            value,
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_without_an_end_is_cut_at_64_kib() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let answer = refused(sidecar.proxy, "long:443").await;
    assert_eq!(answer.status, 403);
    assert_eq!(answer.body, vec![b'x'; 64 * 1024]);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_whose_body_stalls_is_handed_on_as_far_as_it_came() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let answer = refused(sidecar.proxy, "stall:443").await;
    assert_eq!(answer.status, 403);
    assert_eq!(answer.headers["x-agent-gateway-decision-id"], "decision-1");
    assert_eq!(answer.body, br#"{"error":"#);
    // Others use the same connection still.
    tunnel(sidecar.proxy, "echo:443").await;
    assert_eq!(gateway.seen().keys.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn request_that_the_gateway_resets_is_a_bad_gateway() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let answer = refused(sidecar.proxy, "reset:443").await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (502, "gateway_reset")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_that_does_not_answer_is_given_up() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run_with(&gateway, &["--open-timeout", "1"]);
    let answer = refused(sidecar.proxy, "silent:443").await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (503, "gateway_timeout")
    );
    // Others use the same connection still.
    tunnel(sidecar.proxy, "echo:443").await;
    assert_eq!(gateway.seen().keys.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tunnel_too_many_is_refused_until_another_ends() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run_with(&gateway, &["--max-tunnels", "2"]);
    let first = tunnel(sidecar.proxy, "echo:443").await;
    let _second = tunnel(sidecar.proxy, "echo:443").await;
    let answer = refused(sidecar.proxy, "echo:443").await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (429, "too_many_tunnels")
    );
    drop(first);
    tunnel_when_there_is_room(sidecar.proxy, "echo:443").await;
}
