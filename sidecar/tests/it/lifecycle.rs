//! Start and stop of `run`.

use std::fs;

use testbed::process::Signal;

use crate::agent::Agent;
use crate::client::{send, tunnel};
use crate::gateway::Gateway;

#[tokio::test(flavor = "multi_thread")]
async fn both_signals_end_it_cleanly() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    for signal in [Signal::TERM, Signal::INT] {
        let mut sidecar = agent.run(&gateway);
        drop(tunnel(sidecar.proxy, "echo:443").await);
        let _silent = send(sidecar.proxy, b"").await;
        assert_eq!(sidecar.process.stop_by(signal).unwrap().code(), Some(0));
        assert!(!agent.file("proxy.url").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn second_sidecar_for_one_state_is_refused() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let mut first = agent.run(&gateway);
    let url = agent.read("proxy.url");
    let (code, told) = agent.refused_run(&gateway, &[]);
    assert_eq!(code, 69);
    assert!(
        told.contains("error: a sidecar already runs for "),
        "{told}"
    );
    // The first one's URL is still there, and after its violent end a next one starts.
    assert_eq!(agent.read("proxy.url"), url);
    first.process.kill();
    tunnel(agent.run(&gateway).proxy, "echo:443").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_together_is_refused_at_the_start() {
    let (mut agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let other = Agent::initialised();
    let settings = agent.read("sidecar.json");
    let refused = |agent: &Agent, more: &[&str]| agent.refused_run(&gateway, more);

    // Another TPM with a key of its own at the handle, then one without.
    let moved = settings.replace(&agent.tpm.tcti(), &other.tpm.tcti());
    fs::write(agent.file("sidecar.json"), &moved).unwrap();
    let (code, told) = refused(&agent, &[]);
    assert_eq!(code, 65);
    assert!(
        told.contains("error: the state does not fit the TPM"),
        "{told}"
    );
    fs::write(
        agent.file("sidecar.json"),
        settings.replace("0x81010004", "0x81010009"),
    )
    .unwrap();
    let (code, told) = refused(&agent, &[]);
    assert_eq!(code, 65);
    assert!(told.contains("error: there is no key 0x81010009"), "{told}");
    fs::write(
        agent.file("sidecar.json"),
        settings.replace("BEGIN CERTIFICATE", "BEGIN"),
    )
    .unwrap();
    assert_eq!(refused(&agent, &[]).0, 65);
    fs::write(agent.file("sidecar.json"), &settings).unwrap();

    let empty = agent.file("empty.pem");
    fs::write(&empty, "").unwrap();
    assert_eq!(refused(&agent, &["--ca", empty.to_str().unwrap()]).0, 65);
    assert_eq!(refused(&agent, &["--ca", "/no/such/file"]).0, 66);
    assert_eq!(refused(&agent, &["--state", "/no/such/folder"]).0, 66);
    assert_eq!(
        refused(&agent, &["--listen", &gateway.address.to_string()]).0,
        69
    );
    agent.tpm.stop().unwrap();
    assert_eq!(refused(&agent, &[]).0, 69);
    assert!(!agent.file("proxy.url").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_beyond_loopback_is_warned_of() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let here = agent.run(&gateway);
    assert!(!here.process.log().contains("beyond loopback"));
    drop(here);
    let mut exposed = agent.run_with(&gateway, &["--listen", "0.0.0.0:0"]);
    exposed
        .process
        .wait_for_log("listening beyond loopback")
        .unwrap();
    // `exec` leads to where it can be reached.
    let shown = agent
        .command(&["exec", "--", "printenv", "https_proxy"])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert_eq!(shown, agent.read("proxy.url"));
    assert!(shown.contains("@127.0.0.1:"), "{shown}");
    tunnel(exposed.proxy, "echo:443").await;
}
