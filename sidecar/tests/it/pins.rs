//! Keys in the TPM that have a PIN: from the environment, or typed.

use std::process::{Command, Output};

use crate::agent::{Agent, IDENTITY, failure};
use crate::client::tunnel;
use crate::gateway::Gateway;
use crate::user::User;

const USER_PIN: &str = "AGENT_GATEWAY_TPM_USER_PIN";
const OWNER_PIN: &str = "AGENT_GATEWAY_TPM_SO_PIN";

fn with(agent: &Agent, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = agent.command(arguments);
    command
        .env("AGENT_GATEWAY_TCTI", agent.tpm.tcti())
        .env("AGENT_GATEWAY_IDENTITY", IDENTITY)
        .stdin(std::process::Stdio::null())
        .envs(variables.iter().copied());
    tokio::task::block_in_place(|| command.output().unwrap())
}

/// Whose key has the PIN hunter2.
fn agent_with_pin() -> Agent {
    let agent = Agent::bare();
    let done = with(&agent, &[(USER_PIN, "hunter2")], &["init"]);
    assert!(done.status.success(), "{done:?}");
    agent
}

fn refused(agent: &Agent, gateway: &Gateway, pin: Option<&str>) -> (i32, String) {
    let mut command = agent.run_command(gateway, &[]);
    if let Some(pin) = pin {
        command.env(USER_PIN, pin);
    }
    let mut process = testbed::Process::start("sidecar", &command).unwrap();
    let status = process.wait(testbed::process::PATIENCE).unwrap();
    (status.code().unwrap(), process.log())
}

#[tokio::test(flavor = "multi_thread")]
async fn protected_key_is_used_by_who_has_its_pin_in_the_environment() {
    let (agent, gateway) = (agent_with_pin(), Gateway::start().await);
    let mut command = agent.run_command(&gateway, &[]);
    command.env(USER_PIN, "hunter2").env("RUST_LOG", "trace");
    let sidecar = agent.start(&command);
    tunnel(sidecar.proxy, "echo:443").await;
    assert_eq!(gateway.seen().keys, [agent.spki()]);
    assert!(!sidecar.process.log().contains("hunter2"));
    drop(sidecar);

    let (code, told) = refused(&agent, &gateway, None);
    assert_eq!(code, 67);
    assert!(
        told.contains("\nhint: set AGENT_GATEWAY_TPM_USER_PIN"),
        "{told}"
    );
    let (code, told) = refused(&agent, &gateway, Some("wrong-1"));
    assert_eq!(code, 67);
    assert!(
        told.contains("error: wrong PIN for the TPM key 0x81010004"),
        "{told}"
    );
    assert!(!told.contains("wrong-1"), "{told}");
    assert!(!agent.file("proxy.url").exists());
    let (code, told) = refused(&agent, &gateway, Some(&"x".repeat(33)));
    assert_eq!(code, 64);
    assert!(
        told.contains("error: AGENT_GATEWAY_TPM_USER_PIN: a PIN has at most"),
        "{told}"
    );
    assert!(!told.contains("xxx"), "{told}");

    let mut code = 67;
    for attempt in 0..40 {
        (code, _) = failure(&with(
            &agent,
            &[(USER_PIN, &format!("wrong{attempt}"))],
            &["init"],
        ));
        if code != 67 {
            break;
        }
    }
    assert_eq!(code, 68);
    // Right or wrong.
    let (code, told) = refused(&agent, &gateway, Some("hunter2"));
    assert_eq!(code, 68);
    assert!(
        told.contains("is locked after too many wrong PINs"),
        "{told}"
    );
    assert!(told.contains("tpm2_dictionarylockout -c"), "{told}");
    let doctor = ["doctor", "--gateway", "127.0.0.1:1", "--ca"];
    let ca = gateway.pki.ca_file();
    let doctor = [&doctor[..], &[ca.to_str().unwrap()]].concat();
    let told = String::from_utf8(with(&agent, &[(USER_PIN, "hunter2")], &doctor).stdout).unwrap();
    assert!(told.contains("FAILED   pin "), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pin_is_typed_unseen_and_an_interruption_changes_nothing() {
    let agent = Agent::bare();
    let init = ["init", "--identity", IDENTITY, "--pin"];
    let mut user = User::runs(&agent, &init);
    user.is_asked("new PIN for the key 0x81010004 at ");
    user.types("\u{3}");
    let (status, seen) = user.leaves();
    assert_eq!(status, 130, "{seen}");
    assert!(
        seen.contains("error: interrupted\r\nhint: nothing was changed"),
        "{seen}"
    );
    assert!(!agent.file("sidecar.json").exists());

    let mut user = User::runs(&agent, &init);
    user.is_asked("PIN for the key 0x81010004 at ");
    user.types("hunter2\n");
    user.is_asked("the same again: ");
    user.types("hunter3\n");
    let (status, seen) = user.leaves();
    assert_eq!(status, 64, "{seen}");
    assert!(
        seen.contains("error: that is not the same PIN twice"),
        "{seen}"
    );
    assert!(!agent.file("sidecar.json").exists());

    let mut user = User::runs(&agent, &init);
    user.is_asked("PIN for the key 0x81010004 at ");
    user.types("hunterx\u{7f}2\n");
    user.is_asked("the same again: ");
    user.types("oops\u{15}hunter2\n");
    let (status, seen) = user.leaves();
    assert_eq!(status, 0, "{seen}");
    assert!(!seen.contains("hunter"), "{seen}");

    let mut user = User::runs(&agent, &init);
    user.is_asked("PIN of the key 0x81010004 at ");
    user.types("hunter2\n");
    let (status, seen) = user.leaves();
    assert_eq!(status, 0, "{seen}");
    assert!(seen.contains("(found)"), "{seen}");

    let (code, told) = failure(&with(&Agent::bare(), &[], &["init", "--pin"]));
    assert_eq!(code, 64);
    assert!(
        told.starts_with("error: the key is to have a PIN, and none was given"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rotated_key_has_a_pin_if_the_old_one_had_and_the_sidecar_takes_it_over() {
    let (agent, gateway) = (agent_with_pin(), Gateway::start().await);
    let pin = [(USER_PIN, "hunter2")];
    let mut command = agent.run_command(&gateway, &[]);
    command.env(USER_PIN, "hunter2");
    let sidecar = agent.start(&command);
    let (code, told) = failure(&with(&agent, &[], &["rotate"]));
    assert_eq!(code, 64, "{told}");
    assert!(with(&agent, &pin, &["rotate"]).status.success());
    let finish = [
        "rotate",
        "--finish",
        "--destination",
        "echo:443",
        "--gateway",
    ];
    let (address, ca) = (gateway.address.to_string(), gateway.pki.ca_file());
    let finish = [&finish[..], &[&address, "--ca", ca.to_str().unwrap()]].concat();
    assert_eq!(failure(&with(&agent, &[], &finish)).0, 67);
    let done = with(&agent, &pin, &finish);
    assert!(done.status.success(), "{done:?}");
    tunnel(sidecar.proxy, "echo:443").await;
    assert_eq!(gateway.seen().keys.last(), Some(&agent.spki()));
    drop(sidecar);
    assert_eq!(refused(&agent, &gateway, None).0, 67);
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecar_that_lacks_the_new_keys_pin_keeps_the_old_key() {
    let (agent, gateway) = (agent_with_pin(), Gateway::start().await);
    let mut command = agent.run_command(&gateway, &[]);
    command.env(USER_PIN, "hunter2");
    let sidecar = agent.start(&command);
    let (old, other) = (agent.spki(), [(USER_PIN, "swordfish")]);
    assert!(with(&agent, &other, &["rotate"]).status.success());
    let finish = ["rotate", "--finish", "--granted"];
    let (code, told) = failure(&with(&agent, &other, &finish));
    assert_eq!(code, 75);
    assert!(
        told.contains("the running sidecar still uses the old one: 503 wrong PIN"),
        "{told}"
    );
    tunnel(sidecar.proxy, "echo:443").await;
    assert_eq!(gateway.seen().keys.last(), Some(&old));

    // Restarted, it uses the new one, and then the old one can go.
    drop(sidecar);
    command.env(USER_PIN, "swordfish");
    let sidecar = agent.start(&command);
    tunnel(sidecar.proxy, "echo:443").await;
    assert_ne!(gateway.seen().keys.last(), Some(&old));
    assert!(with(&agent, &other, &finish).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_of_the_tpm_decides_who_makes_and_removes_keys() {
    let agent = Agent::bare();
    let done = Command::new("tpm2_changeauth")
        .args(["-c", "owner", "landlord"])
        .env("TPM2TOOLS_TCTI", agent.tpm.tcti())
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let owner = [(OWNER_PIN, "landlord")];
    for wrong in [&[][..], &[(OWNER_PIN, "tenant")]] {
        let (code, told) = failure(&with(&agent, wrong, &["init"]));
        assert_eq!(code, 67);
        assert!(
            told.contains("\nhint: set AGENT_GATEWAY_TPM_SO_PIN"),
            "{told}"
        );
        assert!(!told.contains("tenant"), "{told}");
        assert!(!agent.file("sidecar.json").exists());
    }
    assert!(with(&agent, &owner, &["init"]).status.success());
    assert!(with(&agent, &owner, &["rotate"]).status.success());
    // The switch is made; the old key waits for somebody who may remove it.
    let finish = ["rotate", "--finish", "--granted"];
    let (code, told) = failure(&with(&agent, &[], &finish));
    assert_eq!(code, 67, "{told}");
    let shown = String::from_utf8(with(&agent, &[], &["status"]).stdout).unwrap();
    assert!(shown.contains("\nold key         0x81010004"), "{shown}");
    assert!(with(&agent, &owner, &finish).status.success());
    let shown = String::from_utf8(with(&agent, &[], &["status"]).stdout).unwrap();
    assert!(!shown.contains("old key"), "{shown}");
}
