//! TPMs that are missing, full, crowded, taken, or go away in the middle of it.

use std::process::{Command, Output, Stdio};

use serde_json::Value;
use testbed::{FragileTpm, Swtpm};

use crate::agent::{Agent, failure};

fn init_at(agent: &Agent, tcti: &str) -> (i32, String) {
    let told = failure(&agent.init(&["--tcti", tcti]));
    assert_eq!(told.1.lines().count(), 2, "{}", told.1);
    told
}

#[test]
fn missing_tpm_of_each_kind_is_told_and_no_other_key_takes_its_place() {
    let agent = Agent::bare();
    for tcti in [
        "device:/dev/no-such-tpm",
        // A device that is no TPM.
        "device:/dev/null",
        "swtpm:host=127.0.0.1,port=1",
        "mssim:host=127.0.0.1,port=1",
        // There is no such bus name, or no bus, or no library for it.
        "tabrmd:bus_name=agent.gateway.NoSuchName,bus_type=session",
    ] {
        let (code, told) = init_at(&agent, tcti);
        assert_eq!(code, 69, "{tcti}: {told}");
        assert!(told.starts_with("error: cannot reach the TPM"), "{told}");
        assert!(told.contains("\nhint: check that the TPM runs"), "{told}");
        let left = std::fs::read_dir(agent.state()).unwrap();
        assert_eq!(left.count(), 0, "{tcti}");
    }
}

fn tpm2(tpm: &Swtpm, tool: &str, arguments: &[&str]) {
    let output = Command::new(tool)
        .args(arguments)
        .env("TPM2TOOLS_TCTI", tpm.tcti())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn handle_that_holds_something_else_is_left_alone() {
    let agent = Agent::bare();
    let context = agent.beside("primary.ctx");
    let context = context.to_str().unwrap();
    tpm2(
        &agent.tpm,
        "tpm2_createprimary",
        &["-C", "o", "-G", "ecc", "-c", context],
    );
    tpm2(
        &agent.tpm,
        "tpm2_evictcontrol",
        &["-C", "o", "-c", context, "0x81010004"],
    );
    tpm2(&agent.tpm, "tpm2_flushcontext", &["-t"]);
    let (code, told) = failure(&agent.init(&[]));
    assert_eq!(code, 65);
    assert!(told.starts_with("error: TPM handle 0x81010004"), "{told}");
    assert!(
        told.contains("is taken: its key isn't a signing key\nhint: choose another"),
        "{told}"
    );
    assert!(!agent.file("sidecar.json").exists());
    tpm2(&agent.tpm, "tpm2_readpublic", &["-c", "0x81010004"]);
}

#[test]
fn full_tpm_is_told_with_what_to_do_and_a_rotation_waits_for_room() {
    let agent = Agent::initialised();
    let fill = |number: u32| {
        let state = agent.beside(&format!("state-{number}"));
        let handle = format!("{:#010x}", 0x8101_0010 + number);
        agent.init(&["--state", state.to_str().unwrap(), "--handle", &handle])
    };
    let output = (0..100).map(fill).find(|output| !output.status.success());
    let (code, told) = failure(&output.unwrap());
    assert_eq!(code, 73);
    assert!(
        told.starts_with("error: the TPM has no room for another key"),
        "{told}"
    );
    assert!(told.contains("`tpm2_evictcontrol -c HANDLE`"), "{told}");

    assert_eq!(failure(&agent.cli(&["rotate"])).0, 73);
    assert_eq!(
        failure(&agent.cli(&["rotate", "--finish", "--granted"])).0,
        65
    );
    tpm2(
        &agent.tpm,
        "tpm2_evictcontrol",
        &["-C", "o", "-c", "0x81010010"],
    );
    assert!(agent.cli(&["rotate"]).status.success());
    assert!(agent.cli(&["rotate", "--cancel"]).status.success());
}

fn at_once(commands: Vec<Command>) -> Vec<Output> {
    let started: Vec<_> = commands
        .into_iter()
        .map(|mut command| {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let ended = started.into_iter();
    ended
        .map(|child| child.wait_with_output().unwrap())
        .collect()
}

#[test]
fn commands_at_once_on_one_tpm_and_one_state_all_succeed() {
    let agent = Agent::bare();
    let tcti = FragileTpm::before(&agent.tpm).unwrap().tcti();
    let init = |state: &str, handle: &str| {
        let mut command = agent.command(&["init", "--identity", "agent-alpha", "--tcti", &tcti]);
        command.args(["--handle", handle]);
        if !state.is_empty() {
            command.arg("--state").arg(agent.beside(state));
        }
        command
    };
    for output in at_once(vec![
        init("", "0x81010004"),
        init("", "0x81010004"),
        init("second", "0x81010006"),
    ]) {
        assert!(output.status.success(), "{output:?}");
    }
    let spki = agent.spki();
    let leaf = sidecar::certificate::read(agent.read("machine-client.pem").as_bytes()).unwrap();
    assert_eq!(leaf.spki.to_hex(), spki);

    let rotate = || agent.command(&["rotate"]);
    let requests = at_once(vec![rotate(), rotate()]);
    assert!(
        requests.iter().all(|output| output.status.success()),
        "{requests:?}"
    );
    assert_eq!(requests[0].stdout, requests[1].stdout);
}

#[test]
fn tpm_that_goes_away_at_any_point_of_a_rotation_costs_no_key() {
    let agent = Agent::bare();
    let fragile = FragileTpm::before(&agent.tpm).unwrap();
    let tcti = fragile.tcti();
    assert!(agent.init(&["--tcti", &tcti]).status.success());
    let old = agent.spki();
    for step in [&["rotate"][..], &["rotate", "--finish", "--granted"]] {
        let mut failed = 0;
        for commands in 0.. {
            fragile.breaks_after(commands);
            let output = agent.cli(step);
            fragile.heals();
            // A TPM without a resource manager keeps what a broken connection left in its slots.
            tpm2(&agent.tpm, "tpm2_flushcontext", &["-t"]);
            // The key in use is there: `init` finds it, and makes none.
            let state: Value = serde_json::from_str(&agent.read("sidecar.json")).unwrap();
            let handle = state["handle"].as_str().unwrap();
            let found = agent.init(&["--tcti", &tcti, "--handle", handle]);
            assert!(found.status.success(), "{found:?}");
            if output.status.success() {
                break;
            }
            let (code, told) = failure(&output);
            assert_eq!(code, 69, "{told}");
            assert!(told.starts_with("error: "), "{told}");
            failed += 1;
        }
        assert!(failed > 3, "{step:?}: {failed}");
    }
    assert_ne!(agent.spki(), old);
    // Nothing is left of the old one, nor of attempts.
    let listed = Command::new("tpm2_getcap")
        .arg("handles-persistent")
        .env("TPM2TOOLS_TCTI", agent.tpm.tcti())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(listed.stdout).unwrap(), "- 0x81010005\n");
}

#[test]
fn identities_that_could_forge_a_line_or_are_too_long_are_refused() {
    let agent = Agent::bare();
    let long = "a".repeat(10_000);
    for (identity, expected) in [
        ("agent\nalpha", "control"),
        ("agent\u{1b}[2J", "control"),
        (long.as_str(), "256"),
    ] {
        let (code, told) = failure(&agent.init(&["--identity", identity]));
        assert_eq!(code, 64, "{told}");
        assert!(
            told.starts_with("error: ") && told.contains(expected),
            "{told}"
        );
        // Not even in the message may it steer the terminal, or flood it.
        assert!(
            !told.contains('\u{1b}') && told.len() < 1000,
            "{}",
            told.len()
        );
        assert!(!agent.state().exists());
    }
}
