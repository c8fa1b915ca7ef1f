//! What people ask of a sidecar: `certificate`, `status`, `doctor`.

use std::process::Output;

use serde_json::{Value, json};
use testbed::GatewayPki;

use crate::agent::{Agent, IDENTITY, failure};
use crate::client::tunnel;
use crate::gateway::Gateway;

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs `doctor`; the tests' gateway goes on meanwhile.
fn doctor(agent: &Agent, more: &[&str]) -> Output {
    let mut command = vec!["doctor"];
    command.extend(more);
    tokio::task::block_in_place(|| agent.cli(&command))
}

/// Each check's name and verdict, and detail and hint of the last one.
fn verdicts(output: &Output) -> (Vec<(String, String)>, String, String) {
    let checks = json(output)["checks"].as_array().unwrap().clone();
    let text = |check: &Value, name: &str| check[name].as_str().unwrap_or("").to_owned();
    let last = checks.last().unwrap();
    (
        checks
            .iter()
            .map(|check| (text(check, "name"), text(check, "verdict")))
            .collect(),
        text(last, "detail"),
        text(last, "hint"),
    )
}

fn expected(verdicts: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(check, verdict): &(&str, &str)| ((*check).to_owned(), (*verdict).to_owned());
    verdicts.iter().map(owned).collect()
}

#[test]
fn certificate_is_printed_whole_as_key_and_as_request() {
    let agent = Agent::initialised();
    let pem = agent.cli(&["certificate"]);
    assert_eq!(stdout(&pem), agent.read("machine-client.pem"));
    let spki = agent.cli(&["certificate", "--spki"]);
    assert_eq!(stdout(&spki), agent.read("spki.hex"));

    let request = stdout(&agent.cli(&["certificate", "--request"]));
    assert!(
        request.contains(&format!("\nidentity: {IDENTITY}\n")),
        "{request}"
    );
    assert!(request.contains(&format!("\nspki: {}\n", agent.spki())));
    // The whole text is a certificate file to those who read PEM.
    let leaf = sidecar::certificate::read(request.as_bytes()).unwrap();
    assert_eq!(leaf.identity.as_str(), IDENTITY);
    assert_eq!(leaf.spki.to_hex(), agent.spki());

    assert_eq!(
        failure(&agent.cli(&["certificate", "--spki", "--request"])).0,
        64
    );
    assert_eq!(failure(&Agent::bare().cli(&["certificate"])).0, 66);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_the_running_sidecar_and_never_its_token() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run_with(&gateway, &["--max-tunnels", "7"]);
    let _open = tunnel(sidecar.proxy, "echo:443").await;
    let token = agent
        .read("proxy.url")
        .split([':', '@'])
        .nth(2)
        .unwrap()
        .to_owned();

    let shown = tokio::task::block_in_place(|| agent.cli(&["status", "--json"]));
    assert!(shown.status.success(), "{shown:?}");
    let mut status = json(&shown);
    let handshake = status["live"]["last_handshake"].take();
    assert!(handshake.as_u64().unwrap() > 1_700_000_000);
    assert_eq!(
        status,
        json!({
            "identity": IDENTITY,
            "spki": agent.spki(),
            "tcti": agent.tpm.tcti(),
            "handle": "0x81010004",
            "next": null,
            "retired": null,
            "certificate_file": agent.file("machine-client.pem"),
            "running": true,
            "proxy": sidecar.proxy.address.to_string(),
            "url_file": agent.file("proxy.url"),
            "live": {
                "spki": agent.spki(),
                "gateways": [gateway.address.to_string()],
                "connections": 1,
                "tunnels": 1,
                "max_tunnels": 7,
                "last_handshake": null,
                "last_failure": null,
            },
        })
    );
    let text = tokio::task::block_in_place(|| agent.cli(&["status"]));
    let text = stdout(&text);
    assert!(text.contains("\ntunnels         1 of 7\n"), "{text}");
    assert!(text.contains("\nlast handshake  20"), "{text}");
    assert!(!stdout(&shown).contains(&token) && !text.contains(&token));
    // It is no business of the gateway's.
    assert_eq!(gateway.seen().requests.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_of_a_gateway_that_is_down_and_of_a_sidecar_that_is() {
    let (agent, mut gateway) = (Agent::initialised(), Gateway::start().await);
    gateway.stop().await;
    let mut sidecar = agent.run(&gateway);
    sidecar.process.wait_for_log("not connected").unwrap();
    crate::client::refused(sidecar.proxy, "echo:443").await;
    let live = json(&agent.cli(&["status", "--json"]))["live"].clone();
    assert_eq!(live["connections"], 0);
    assert_eq!(live["last_handshake"], Value::Null);
    let error = live["last_failure"]["error"].as_str().unwrap();
    assert!(error.starts_with("the gateway can't be reached"), "{error}");

    sidecar.process.terminate().unwrap();
    let shown = agent.cli(&["status", "--json"]);
    let (code, told) = failure(&shown);
    assert_eq!(code, 69);
    assert!(told.starts_with("error: no sidecar runs for "), "{told}");
    assert_eq!(json(&shown)["running"], false);
    assert_eq!(json(&shown)["spki"], agent.spki());
    assert_eq!(failure(&Agent::bare().cli(&["status"])).0, 66);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_needs_the_token() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let ask = async |token: &str| {
        let request = format!("GET /status HTTP/1.1\r\nHost: sidecar\r\n{token}\r\n");
        crate::client::ask(sidecar.proxy, request.as_bytes())
            .await
            .status
    };
    assert_eq!(ask("").await, 407);
    assert_eq!(ask(sidecar.proxy.authorization).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tries_everything_when_no_sidecar_runs() {
    let (mut agent, mut gateway) = (Agent::initialised(), Gateway::start().await);
    let (address, ca) = (gateway.address.to_string(), gateway.pki.ca_file());
    let ca = ca.to_str().unwrap();
    let with = |destination: &'static str| {
        [
            "--json",
            "--gateway",
            &address,
            "--ca",
            ca,
            "--destination",
            destination,
        ]
        .map(str::to_owned)
    };
    let run = |agent: &Agent, arguments: &[String]| {
        doctor(
            agent,
            &arguments.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    };
    let good = [
        ("state", "ok"),
        ("clock", "ok"),
        ("tpm", "ok"),
        ("handle", "ok"),
        ("key", "ok"),
    ];
    let reached = [&good[..], &[("gateway", "ok"), ("ca", "ok")]].concat();

    let healthy = run(&agent, &with("echo:443"));
    assert!(healthy.status.success(), "{healthy:?}");
    assert_eq!(
        verdicts(&healthy).0,
        expected(&[&reached[..], &[("connect", "ok")]].concat())
    );
    assert_eq!(gateway.seen().requests.len(), 1);

    let denied = run(&agent, &with("deny:443"));
    let (code, told) = failure(&denied);
    assert_eq!((code, told.as_str()), (69, "error: 1 of 8 checks failed\n"));
    let (checks, detail, hint) = verdicts(&denied);
    assert_eq!(
        checks,
        expected(&[&reached[..], &[("connect", "failed")]].concat())
    );
    assert_eq!(detail, "deny:443: 403 no_permission: denied");
    assert!(hint.contains("a principal grants it"), "{hint}");

    let other_ca = GatewayPki::generate().unwrap();
    let untrusted = [
        &with("echo:443")[..3],
        &["--ca".to_owned(), other_ca.ca_file().display().to_string()],
    ]
    .concat();
    let (checks, detail, hint) = verdicts(&run(&agent, &untrusted));
    let found = [
        &good[..],
        &[("gateway", "ok"), ("ca", "failed"), ("connect", "skipped")],
    ]
    .concat();
    assert_eq!(checks, expected(&found), "{detail} {hint}");

    gateway.stop().await;
    let (checks, ..) = verdicts(&run(&agent, &with("echo:443")));
    let found = [&good[..], &[("gateway", "failed"), ("connect", "skipped")]].concat();
    assert_eq!(checks, expected(&found));

    agent.tpm.stop().unwrap();
    let (checks, ..) = verdicts(&run(&agent, &with("echo:443")));
    let found = [
        ("state", "ok"),
        ("clock", "ok"),
        ("tpm", "failed"),
        ("connect", "skipped"),
    ];
    assert_eq!(checks, expected(&found));
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_a_key_that_is_not_the_certificates() {
    let (agent, other, gateway) = (
        Agent::initialised(),
        Agent::initialised(),
        Gateway::start().await,
    );
    let (address, ca) = (gateway.address.to_string(), gateway.pki.ca_file());
    let arguments = [
        "--json",
        "--gateway",
        &address,
        "--ca",
        ca.to_str().unwrap(),
    ];
    let settings = agent.read("sidecar.json");
    for (from, to, found) in [
        (
            agent.tpm.tcti(),
            other.tpm.tcti(),
            &[("handle", "ok"), ("key", "failed")][..],
        ),
        (
            "0x81010004".to_owned(),
            "0x81010009".to_owned(),
            &[("handle", "failed")],
        ),
    ] {
        std::fs::write(agent.file("sidecar.json"), settings.replace(&from, &to)).unwrap();
        let start = [("state", "ok"), ("clock", "ok"), ("tpm", "ok")];
        let found = [&start[..], found, &[("connect", "skipped")]].concat();
        assert_eq!(verdicts(&doctor(&agent, &arguments)).0, expected(&found));
    }
    assert!(gateway.seen().keys.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_asks_the_sidecar_that_runs() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let idle = doctor(&agent, &[]);
    let (code, told) = failure(&idle);
    assert_eq!(code, 64);
    assert!(
        told.contains("so --gateway and --ca are needed\nhint: "),
        "{told}"
    );

    let mut sidecar = agent.run(&gateway);
    sidecar.process.wait_for_log("connected").unwrap();
    let healthy = doctor(&agent, &["--json", "--destination", "echo:443"]);
    assert!(healthy.status.success(), "{healthy:?}");
    let found = ["state", "clock", "sidecar", "gateway", "connect"].map(|check| (check, "ok"));
    assert_eq!(verdicts(&healthy).0, expected(&found));
    let denied = doctor(&agent, &["--destination", "deny:443"]);
    assert_eq!(failure(&denied).0, 69);
    let text = stdout(&denied);
    assert!(
        text.contains("FAILED   connect  deny:443: 403 no_permission: denied\n"),
        "{text}"
    );
    // The sidecar's one connection carried both.
    assert_eq!(gateway.seen().keys.len(), 1);
    for destination in ["echo", "a b:1", "user@echo:1", "echo:1\r\nX: y"] {
        assert_eq!(
            failure(&doctor(&agent, &["--destination", destination])).0,
            64
        );
    }
}
