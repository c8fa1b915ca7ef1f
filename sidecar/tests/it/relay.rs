//! `relay`: what is sent for a call, and how the command ends with each answer.

use std::fs;
use std::io::Write as _;
use std::process::{Output, Stdio};

use crate::agent::{Agent, failure};
use crate::gateway::Gateway;
use crate::poca::{check, keygen, stdout};

/// `relay` with a body.
fn relay(agent: &Agent, gateway: &Gateway, body: &[u8], more: &[&str]) -> Output {
    let file = agent.beside("body");
    fs::write(&file, body).unwrap();
    let (address, ca) = (gateway.address.to_string(), gateway.pki.ca_file());
    let mut command = agent.command(&["relay", "--gateway", &address, "--ca"]);
    command.arg(ca).arg("--body").arg(file).args(more);
    command.stdin(Stdio::null()).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_carries_its_proof_over_the_agents_own_connection() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let key = keygen(&agent);
    let options = [
        "--tool", "todos", "--intent", "plan", "--scope", "read", "--scope", "write",
    ];
    let output = relay(
        &agent,
        &gateway,
        b" {\"op\":\"create\",\"n\":1.0}\n",
        &options,
    );
    // The gateway of this test answers with what it got.
    let sent = stdout(&output);
    assert_eq!(
        sent,
        r#"{"tool":"todos","payload":{"op":"create","n":1.0}}"#
    );
    let seen = gateway.seen();
    assert_eq!(seen.keys, [agent.spki()]);
    let [(_, headers)] = seen.requests.as_slice() else {
        panic!("{seen:?}");
    };
    assert_eq!(headers["content-type"], "application/json");
    let proof = [
        headers["x-poca-manifest"].as_str(),
        &headers["x-poca-signature"],
    ];
    let proof = check(proof, "agent-alpha", "todos", sent.as_bytes(), key).unwrap();
    assert_eq!(proof.intent(), "plan");
    assert_eq!(proof.scopes(), ["read", "write"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_json_goes_to_echo_as_it_is_and_stdin_will_do() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    keygen(&agent);
    let large: Vec<u8> = (0..1_500_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let output = relay(&agent, &gateway, &large, &["--tool", "echo"]);
    assert!(output.status.success(), "{output:?}");
    assert!(
        output.stdout == large,
        "{} bytes came back",
        output.stdout.len()
    );
    let (address, ca) = (gateway.address.to_string(), gateway.pki.ca_file());
    let mut child = agent
        .command(&[
            "relay",
            "--tool",
            "echo",
            "--body",
            "-",
            "--gateway",
            &address,
            "--ca",
        ])
        .arg(ca)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"\"hello\"").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(stdout(&output), r#"{"tool":"echo","payload":"hello"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn how_it_ends_tells_what_was_wrong() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    keygen(&agent);
    let call = |behaviour: &str, more: &[&str]| {
        let options = [&["--tool", "echo", "--contract", behaviour], more].concat();
        relay(&agent, &gateway, b"{}", &options)
    };
    let denied = call("deny", &[]);
    let body = br#"{"error":"denied","reason":"no_permission"}"#;
    assert_eq!(denied.stdout, body, "{denied:?}");
    let expected = "error: the call was answered 403 Forbidden\nhint: the answer says why\n";
    assert_eq!(failure(&denied), (77, expected.to_owned()));
    let (code, said) = failure(&call("reset", &[]));
    assert_eq!(code, 69, "{said}");
    assert!(
        said.starts_with("error: the gateway reset the request"),
        "{said}"
    );
    let (code, said) = failure(&call("silent", &["--timeout", "2"]));
    assert_eq!(code, 69, "{said}");
    assert!(
        said.starts_with("error: the gateway did not answer within 2s"),
        "{said}"
    );
    let (code, said) = failure(&call("stall", &["--timeout", "2"]));
    assert_eq!(code, 69, "{said}");
    assert!(said.starts_with("error: the answer broke off"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_that_can_not_be_proved_or_carried() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let (code, said) = failure(&relay(&agent, &gateway, b"{}", &["--tool", "echo"]));
    assert_eq!(code, 66, "{said}");
    assert!(said.contains("hint: make one with"), "{said}");
    keygen(&agent);
    let (code, said) = failure(&relay(&agent, &gateway, b"hello", &["--tool", "todos"]));
    assert_eq!(code, 65, "{said}");
    assert!(
        said.contains("hint: only the tool echo takes other bodies"),
        "{said}"
    );
    let large = vec![b'x'; 2 * 1024 * 1024 + 1];
    let (code, said) = failure(&relay(&agent, &gateway, &large, &["--tool", "echo"]));
    assert_eq!(
        (code, said.as_str()),
        (65, "error: the body has more than 2097152 bytes\n")
    );
    let tool = format!("--tool={}", "x".repeat(300));
    let (code, said) = failure(&relay(&agent, &gateway, b"{}", &[&tool]));
    assert_eq!(code, 64, "{said}");
    assert!(gateway.seen().requests.is_empty(), "{:?}", gateway.seen());
}
