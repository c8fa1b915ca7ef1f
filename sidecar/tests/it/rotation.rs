//! `rotate`: the new key beside the old one, in its place, and every way to stop in between.

use std::fs;
use std::process::Output;

use serde_json::{Value, json};

use crate::agent::{Agent, failure};
use crate::client::{read, tunnel};
use crate::gateway::Gateway;
use tokio::io::AsyncWriteExt as _;

const OLD: &str = "0x81010004";
const NEW: &str = "0x81010005";

fn rotate(agent: &Agent, more: &[&str]) -> Output {
    let arguments = [&["rotate"], more].concat();
    tokio::task::block_in_place(|| agent.cli(&arguments))
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn finish(agent: &Agent, gateway: &Gateway, destination: &str) -> Output {
    let (address, ca) = (gateway.address.to_string(), gateway.pki.ca_file());
    let ca = ca.to_str().unwrap();
    let options = [
        "--finish",
        "--destination",
        destination,
        "--gateway",
        &address,
        "--ca",
        ca,
    ];
    rotate(agent, &options)
}

fn spki_of_next(agent: &Agent) -> String {
    let output = tokio::task::block_in_place(|| agent.cli(&["certificate", "--next", "--spki"]));
    done(&output).trim_end().to_owned()
}

fn status(agent: &Agent) -> Value {
    let output = tokio::task::block_in_place(|| agent.cli(&["status", "--json"]));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Whether there is a key at the handle, as one sees who knows nothing of this state.
fn key_at(agent: &Agent, handle: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let options = [
        "--state",
        state.to_str().unwrap(),
        "--handle",
        handle,
        "--json",
    ];
    let output = tokio::task::block_in_place(|| agent.init(&options));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    (shown["key"] == "found").then(|| shown["spki"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn new_key_takes_over_from_the_old_one_under_open_tunnels() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let mut open = tunnel(sidecar.proxy, "echo:443").await;
    let old = agent.spki();

    let request = done(&rotate(&agent, &[]));
    let new = spki_of_next(&agent);
    assert_ne!(new, old);
    assert!(request.contains(&format!("\nspki: {new}\n")), "{request}");
    let leaf = sidecar::certificate::read(request.as_bytes()).unwrap();
    assert_eq!(leaf.spki.to_hex(), new);
    // Again: the same key.
    assert_eq!(done(&rotate(&agent, &[])), request);

    // Nothing uses it yet.
    assert_eq!(agent.spki(), old);
    let shown = status(&agent);
    assert_eq!(shown["spki"], json!(old));
    assert_eq!(shown["live"]["spki"], json!(old));
    assert_eq!(
        shown["next"],
        json!({"tcti": agent.tpm.tcti(), "handle": NEW, "spki": new})
    );
    tunnel(sidecar.proxy, "echo:443").await;
    assert_eq!(gateway.seen().keys.as_slice(), std::slice::from_ref(&old));

    let refused = finish(&agent, &gateway, "deny:443");
    let (code, told) = failure(&refused);
    assert_eq!(code, 77, "{told}");
    assert!(
        told.starts_with("error: the gateway refuses deny:443 to the new key: 403 no_permission\n"),
        "{told}"
    );
    assert!(told.contains("hint: nothing has changed"), "{told}");
    assert_eq!(agent.spki(), old);
    assert_eq!(status(&agent)["live"]["spki"], json!(old));
    let untried = finish(&agent, &gateway, "reset:443");
    assert_eq!(failure(&untried).0, 69);
    assert_eq!(status(&agent)["next"]["spki"], json!(new));

    let told = done(&finish(&agent, &gateway, "listen:443"));
    assert!(told.contains(&new), "{told}");
    assert_eq!(agent.spki(), new);
    let leaf = sidecar::certificate::read(agent.read("machine-client.pem").as_bytes()).unwrap();
    assert_eq!(leaf.spki.to_hex(), new);
    let shown = status(&agent);
    assert_eq!(shown["live"]["spki"], json!(new));
    assert_eq!(
        (&shown["next"], &shown["retired"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(shown["handle"], NEW);

    // The tunnel that was open goes on; the next one proves the new key.
    open.write_all(b"still there").await.unwrap();
    assert_eq!(read(&mut open, 11).await, b"still there");
    tunnel(sidecar.proxy, "echo:443").await;
    assert_eq!(gateway.seen().keys.last(), Some(&new));
    assert_eq!(key_at(&agent, OLD), None);
    drop(sidecar);
    tunnel(agent.run(&gateway).proxy, "echo:443").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_sidecar_the_next_rotation_comes_back_to_the_first_handle() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    for handle in [NEW, OLD] {
        let shown: Value = serde_json::from_str(&done(&rotate(&agent, &["--json"]))).unwrap();
        assert_eq!(shown["handle"], handle);
        let shown = done(&rotate(&agent, &["--finish", "--granted", "--json"]));
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown["spki"], json!(agent.spki()));
    }
    assert_eq!(key_at(&agent, NEW), None);
    assert_eq!(key_at(&agent, OLD), Some(agent.spki()));
    tunnel(agent.run(&gateway).proxy, "echo:443").await;
}

/// The state's own file, and the one of the next key.
fn files(agent: &Agent) -> (Value, Option<Value>) {
    let parse = |text: String| serde_json::from_str(&text).unwrap();
    let next = fs::read_to_string(agent.file("next.json")).ok();
    (parse(agent.read("sidecar.json")), next.map(parse))
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_rotation_goes_on_where_it_was() {
    let agent = Agent::initialised();
    let old = agent.spki();

    // Before the key was made.
    let reserved = json!({"tcti": agent.tpm.tcti(), "handle": NEW});
    fs::write(agent.file("next.json"), reserved.to_string()).unwrap();
    assert_eq!(status(&agent)["next"]["spki"], Value::Null);
    assert_eq!(failure(&rotate(&agent, &["--finish", "--granted"])).0, 65);
    done(&rotate(&agent, &[]));
    let new = spki_of_next(&agent);

    // After it was made, before its certificate.
    fs::write(agent.file("next.json"), reserved.to_string()).unwrap();
    done(&rotate(&agent, &[]));
    assert_eq!(spki_of_next(&agent), new);

    // After the switch, before anything else.
    let (state, next) = files(&agent);
    let mut switched = next.unwrap();
    let retired = json!({"tcti": state["tcti"], "handle": state["handle"], "spki": old});
    switched["retired"] = retired.clone();
    fs::write(agent.file("sidecar.json"), switched.to_string()).unwrap();
    let shown = status(&agent);
    assert_eq!(shown["spki"], json!(new));
    assert_eq!(shown["retired"], retired);
    let told = tokio::task::block_in_place(|| agent.cli(&["status"])).stdout;
    assert!(
        String::from_utf8(told)
            .unwrap()
            .contains("\nold key         0x81010004")
    );
    assert_eq!(key_at(&agent, OLD), Some(old));
    assert_eq!(agent.cli(&["rotate", "--cancel"]).status.code(), Some(65));
    done(&rotate(&agent, &["--finish", "--granted"]));
    assert_eq!(agent.spki(), new);
    assert_eq!(files(&agent).1, None);
    assert_eq!(files(&agent).0.get("retired"), None);
    assert_eq!(key_at(&agent, OLD), None);

    // After the old key went, before that was written down; another key has its place by now.
    let (mut state, _) = files(&agent);
    state["retired"] = retired;
    fs::write(agent.file("sidecar.json"), state.to_string()).unwrap();
    let other = key_at(&agent, OLD).or_else(|| key_at(&agent, OLD));
    done(&rotate(&agent, &["--finish", "--granted"]));
    assert_eq!(key_at(&agent, OLD), other);
    let (code, told) = failure(&rotate(&agent, &["--finish", "--granted"]));
    assert_eq!(code, 65);
    assert!(
        told.starts_with("error: no rotation has begun\nhint: "),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn handle_of_somebody_elses_key_is_left_alone() {
    let agent = Agent::initialised();
    assert_eq!(key_at(&agent, NEW), None);
    let other = key_at(&agent, NEW).unwrap();
    let (code, told) = failure(&rotate(&agent, &[]));
    assert_eq!(code, 65);
    assert!(told.contains("there is a key 0x81010005"), "{told}");
    assert!(
        told.contains("\nhint: choose another --new-handle"),
        "{told}"
    );
    assert!(!agent.file("next.json").exists());
    assert_eq!(failure(&rotate(&agent, &["--new-handle", OLD])).0, 65);

    done(&rotate(&agent, &["--new-handle", "0x81010008"]));
    let (code, told) = failure(&rotate(&agent, &["--new-handle", "0x8101000a"]));
    assert_eq!(code, 65);
    assert!(told.contains("a rotation to the key 0x81010008"), "{told}");
    let told = done(&rotate(&agent, &["--cancel"]));
    assert!(told.starts_with("cancelled: "), "{told}");
    assert_eq!(key_at(&agent, "0x81010008"), None);
    assert_eq!(key_at(&agent, NEW), Some(other));
    assert_eq!(key_at(&agent, OLD), Some(agent.spki()));
    assert_eq!(failure(&rotate(&agent, &["--cancel"])).0, 65);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_given_orders_are_wrong_usage() {
    let agent = Agent::initialised();
    for wrong in [
        &["--finish"][..],
        &["--granted"],
        &["--finish", "--granted", "--destination", "echo:443"],
        &["--finish", "--granted", "--cancel"],
        &["--finish", "--granted", "--new-handle", NEW],
    ] {
        assert_eq!(failure(&rotate(&agent, wrong)).0, 64, "{wrong:?}");
    }
    done(&rotate(&agent, &[]));
    let (code, told) = failure(&rotate(&agent, &["--finish", "--destination", "echo:443"]));
    assert_eq!(code, 64);
    assert!(told.contains("--gateway and --ca"), "{told}");
    assert_eq!(failure(&Agent::bare().cli(&["rotate"])).0, 66);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tells_of_a_rotation_that_is_not_finished() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let _sidecar = agent.run(&gateway);
    done(&rotate(&agent, &[]));
    let output = tokio::task::block_in_place(|| agent.cli(&["doctor"]));
    let told = done(&output);
    assert!(
        told.contains("ok       rotation the new key 0x81010005"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn order_to_change_keys_needs_the_token() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let sidecar = agent.run(&gateway);
    let request = "POST /rekey HTTP/1.1\r\nHost: sidecar\r\nContent-Length: 0\r\n\r\n";
    let answer = crate::client::ask(sidecar.proxy, request.as_bytes()).await;
    assert_eq!(answer.status, 407);
}
