//! `exec`: a command whose clients use the sidecar.

use std::path::Path;
use std::process::Output;

use testbed::process::Signal;

use crate::agent::{Agent, failure};
use crate::gateway::Gateway;

fn exec(agent: &Agent, command: &[&str]) -> Output {
    let mut exec = agent.command(&["exec", "--"]);
    exec.args(command)
        .env("NO_PROXY", "*")
        .env("no_proxy", "docstore");
    exec.env("HTTPS_PROXY", "http://elsewhere:1")
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn command_gets_the_proxy_and_no_way_around_it() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let _sidecar = agent.run(&gateway);
    let done = exec(&agent, &["env"]);
    assert!(done.status.success(), "{done:?}");
    let variables = String::from_utf8(done.stdout).unwrap();
    let mut proxies: Vec<&str> = variables
        .lines()
        .filter(|line| {
            line.split('=')
                .next()
                .unwrap()
                .to_lowercase()
                .ends_with("_proxy")
        })
        .collect();
    proxies.sort_unstable();
    let url = agent.read("proxy.url");
    let expected = ["ALL", "HTTPS", "HTTP", "all", "https", "http"].map(|name| {
        let suffix = if name.chars().all(char::is_uppercase) {
            "_PROXY"
        } else {
            "_proxy"
        };
        format!("{name}{suffix}={}", url.trim_end())
    });
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(proxies, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn process_becomes_the_command() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let _sidecar = agent.run(&gateway);
    assert_eq!(exec(&agent, &["sh", "-c", "exit 7"]).status.code(), Some(7));
    let done = exec(&agent, &["sh", "-c", "echo \"$1\"", "sh", "--state $HOME"]);
    assert_eq!(done.stdout, b"--state $HOME\n");

    let (code, told) = failure(&exec(&agent, &["no-such-command"]));
    assert_eq!(code, 127);
    assert!(
        told.starts_with("error: can't run no-such-command"),
        "{told}"
    );
    assert_eq!(
        failure(&exec(&agent, &[agent.file("spki.hex").to_str().unwrap()])).0,
        126
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_run_without_a_sidecar() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let witness = agent.file("witness");
    let assert_not_run = || {
        let (code, told) = failure(&exec(&agent, &["touch", witness.to_str().unwrap()]));
        assert_eq!(code, 69);
        assert!(told.starts_with("error: no sidecar runs for "), "{told}");
        assert!(told.contains("\nhint: start it with"), "{told}");
        assert!(!Path::new(&witness).exists());
    };
    assert_not_run();
    let mut sidecar = agent.run(&gateway);
    assert!(exec(&agent, &["true"]).status.success());
    // Killed, it leaves its URL behind, which may be anybody's now.
    sidecar.process.signal(Signal::KILL).unwrap();
    sidecar.process.wait(testbed::process::PATIENCE).unwrap();
    assert!(agent.file("proxy.url").exists());
    assert_not_run();
}

#[test]
fn missing_state_is_missing_input() {
    let agent = Agent::bare();
    let (code, told) = failure(&exec(&agent, &["true"]));
    assert_eq!(code, 66);
    assert!(told.contains("\nhint: make it with"), "{told}");
}

const CA_VARIABLES: [&str; 3] = ["CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"];

/// Of the variables that name authorities, those that the command sees.
fn ca_variables(agent: &Agent, options: &[&str]) -> Vec<String> {
    let mut command = agent.command(&["exec"]);
    command.args(options).args(["--", "env"]);
    for name in CA_VARIABLES {
        command.env_remove(name);
    }
    let done = command.env("SSL_CERT_FILE", "/mine").output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let variables = String::from_utf8(done.stdout).unwrap();
    let named = |line: &&str| CA_VARIABLES.iter().any(|name| line.starts_with(name));
    let mut found: Vec<String> = variables.lines().filter(named).map(str::to_owned).collect();
    found.sort_unstable();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_are_the_commands_only_if_asked_for() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let _sidecar = agent.run(&gateway);
    assert_eq!(ca_variables(&agent, &[]), ["SSL_CERT_FILE=/mine"]);
    let file = gateway.pki.ca_file().display().to_string();
    assert_eq!(
        ca_variables(&agent, &["--ca-bundle", &file]),
        CA_VARIABLES.map(|name| format!("{name}={file}"))
    );

    let empty = agent.file("empty.pem");
    std::fs::write(&empty, "nothing").unwrap();
    for (file, expected) in [("/no/such/file", 66), (empty.to_str().unwrap(), 65)] {
        let (code, told) = failure(&agent.cli(&["exec", "--ca-bundle", file, "--", "true"]));
        assert_eq!(code, expected, "{told}");
        assert!(
            told.starts_with(&format!("error: {file} holds no certificates")),
            "{told}"
        );
        assert!(told.contains("\nhint: give certificates in PEM"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_the_command_and_its_end_by_one_is_told() {
    let (agent, gateway) = (Agent::initialised(), Gateway::start().await);
    let _sidecar = agent.run(&gateway);
    for (signal, expected) in [(Signal::TERM, Some(143)), (Signal::INT, Some(130))] {
        let mut command = agent.command(&["exec", "--"]);
        command.args([
            "sh",
            "-c",
            "trap 'exit 143' TERM; trap 'exit 130' INT; echo ready; while :; do sleep 0.05; done",
        ]);
        let mut process = testbed::Process::start("exec", &command).unwrap();
        process.wait_for_log("ready").unwrap();
        assert_eq!(process.stop_by(signal).unwrap().code(), expected);
    }
    // Untrapped, it ends as the command does: a shell makes 128 + 15 of it.
    let killed = exec(&agent, &["sh", "-c", "kill -TERM $$"]);
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&killed.status),
        Some(15)
    );
}
