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
