//! What people see of every command: its help, its success, its failures. Compared with the files in
//! `tests/transcripts`, which are written anew with `UPDATE_TRANSCRIPTS=1`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;

use crate::agent::{Agent, IDENTITY};
use crate::gateway::Gateway;

/// What was typed and shown so far, with a word in the place of what differs from run to run.
struct Transcript<'a> {
    agent: &'a Agent,
    text: String,
    /// What to replace, and by which word; longer ones first.
    words: Vec<(String, &'static str)>,
}

impl<'a> Transcript<'a> {
    fn of(agent: &'a Agent) -> Self {
        let words = vec![
            (agent.state().display().to_string(), "STATE"),
            (agent.tpm.tcti(), "TCTI"),
        ];
        Self {
            agent,
            text: String::new(),
            words,
        }
    }

    fn with_gateway(mut self, gateway: &Gateway) -> Self {
        let ca = gateway.pki.ca_file().display().to_string();
        self.words.push((ca, "CA"));
        self.words.push((gateway.address.to_string(), "GATEWAY"));
        self
    }

    /// Runs a command, and writes down what it shows.
    fn run(&mut self, arguments: &[&str]) {
        let mut command = self.agent.command(arguments);
        command
            .env("AGENT_GATEWAY_TCTI", self.agent.tpm.tcti())
            .env("RUST_LOG", "error")
            .stdin(Stdio::null());
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        let line = arguments.join(" ");
        let _ = writeln!(self.text, "$ agent-gateway-sidecar {line}");
        for (stream, mark) in [(&output.stdout, ""), (&output.stderr, "! ")] {
            for line in String::from_utf8(stream.clone()).unwrap().lines() {
                let _ = writeln!(self.text, "{}", format!("{mark}{line}").trim_end());
            }
        }
        let _ = writeln!(self.text, "[{}]\n", output.status.code().unwrap());
    }

    fn must_equal(mut self, name: &str) {
        self.words.push((self.agent.spki(), "SPKI"));
        self.compare(name);
    }

    fn compare(mut self, name: &str) {
        for (found, word) in &self.words {
            self.text = self.text.replace(found, word);
        }
        let text: String = self.text.lines().map(steady).collect();
        let text = without_pem(&text);
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/transcripts")
            .join(name);
        if std::env::var_os("UPDATE_TRANSCRIPTS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap();
        for (number, (seen, expected)) in text.lines().zip(expected.lines()).enumerate() {
            assert_eq!(seen, expected, "line {} of {name}", number + 1);
        }
        assert_eq!(
            text.lines().count(),
            expected.lines().count(),
            "lines of {name}"
        );
    }
}

/// A line without its time, ended.
fn steady(line: &str) -> String {
    let year = |word: &str| word.len() >= 20 && word.starts_with("20") && word.ends_with('Z');
    let words: Vec<&str> = line
        .split(' ')
        .map(|word| if year(word) { "TIME" } else { word })
        .collect();
    let line = words.join(" ");
    match line.split_once("TIME (") {
        Some((before, _)) => format!("{before}TIME (AGO)\n"),
        None => format!("{line}\n"),
    }
}

fn without_pem(text: &str) -> String {
    let mut inside = false;
    let mut kept = String::new();
    for line in text.lines() {
        if line == "-----BEGIN CERTIFICATE-----" {
            inside = true;
            kept.push_str("PEM\n");
        }
        if !inside {
            kept.push_str(line);
            kept.push('\n');
        }
        inside = inside && line != "-----END CERTIFICATE-----";
    }
    kept
}

#[tokio::test(flavor = "multi_thread")]
async fn help_of_every_command() {
    let agent = Agent::bare();
    let mut transcript = Transcript::of(&agent);
    for command in [
        "",
        "init",
        "run",
        "exec",
        "certificate",
        "rotate",
        "status",
        "doctor",
        "completions",
    ] {
        let arguments: Vec<&str> = [command, "--help"]
            .into_iter()
            .filter(|word| !word.is_empty())
            .collect();
        transcript.run(&arguments);
    }
    transcript.compare("help.txt");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_life() {
    let (agent, gateway) = (Agent::bare(), Gateway::start().await);
    let (address, ca) = (gateway.address.to_string(), gateway.pki.ca_file());
    let ca = ca.to_str().unwrap().to_owned();
    let mut transcript = Transcript::of(&agent).with_gateway(&gateway);
    transcript.run(&["init", "--identity", IDENTITY]);
    let first = agent.spki();
    transcript.words.push((first, "SPKI-1"));
    transcript.run(&["init", "--identity", IDENTITY]);
    transcript.run(&["certificate", "--request"]);
    transcript.run(&["certificate"]);
    transcript.run(&["status"]);
    let destination = [
        "--gateway",
        &address,
        "--ca",
        &ca,
        "--destination",
        "echo:443",
    ];
    transcript.run(&[&["doctor"], &destination[..]].concat());

    let mut sidecar = agent.run(&gateway);
    sidecar.process.wait_for_log(" connected ").unwrap();
    transcript
        .words
        .push((sidecar.proxy.address.to_string(), "PROXY"));
    transcript.run(&["status"]);
    transcript.run(&["exec", "--", "sh", "-c", "exit 3"]);
    transcript.run(&["doctor", "--destination", "deny:443"]);
    transcript.run(&[&["rotate"], &destination[..4]].concat());
    transcript.run(&["status"]);
    transcript.run(&[&["rotate", "--finish"], &destination[..]].concat());
    transcript.run(&["certificate", "--spki"]);
    transcript.run(&["rotate"]);
    let next = agent.cli(&["certificate", "--next", "--spki"]);
    let next = String::from_utf8(next.stdout)
        .unwrap()
        .trim_end()
        .to_owned();
    transcript.words.push((next, "SPKI-3"));
    transcript.run(&["rotate", "--cancel"]);
    transcript.words.push((agent.spki(), "SPKI-2"));
    transcript.compare("life.txt");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_every_command() {
    let (agent, gateway) = (Agent::bare(), Gateway::start().await);
    let ca = gateway.pki.ca_file().display().to_string();
    let mut transcript = Transcript::of(&agent).with_gateway(&gateway);
    transcript.run(&[]);
    transcript.run(&["frobnicate"]);
    transcript.run(&["status", "--config", "/no/such/file"]);
    transcript.run(&["init"]);
    transcript.run(&["init", "--identity", ""]);
    transcript.run(&["init", "--identity", IDENTITY, "--tcti", "swtmp:"]);
    transcript.run(&["init", "--identity", IDENTITY, "--handle", "0x80000000"]);
    transcript.run(&[
        "init",
        "--identity",
        IDENTITY,
        "--tcti",
        "device:/dev/no-such-tpm",
    ]);
    transcript.run(&["init", "--identity", IDENTITY, "--pin"]);
    // What there is without a state: `init` made the folder.
    for command in [
        &["status"][..],
        &["certificate"],
        &["rotate"],
        &["doctor"],
        &["exec", "--", "true"],
        &["run", "--gateway", "gateway:8443", "--ca", &ca],
    ] {
        transcript.run(command);
    }
    assert!(agent.init(&[]).status.success());
    transcript.run(&["init", "--identity", "agent-beta"]);
    transcript.run(&["init", "--identity", IDENTITY, "--handle", "0x81010009"]);
    transcript.run(&["run", "--gateway", "gateway", "--ca", &ca]);
    transcript.run(&["run", "--gateway", "gateway:8443", "--ca", "/no/such/file"]);
    transcript.run(&["run", "--gateway", "gateway:8443", "--ca", "/dev/null"]);
    let exposed = ["--open-to-all", "--listen", "0.0.0.0:0"];
    transcript.run(
        &[
            &["run", "--gateway", "gateway:8443", "--ca", &ca],
            &exposed[..],
        ]
        .concat(),
    );
    transcript.run(&[
        "run",
        "--gateway",
        "gateway:8443",
        "--ca",
        &ca,
        "--listen",
        "127.0.0.1:0",
        "--socket",
        "/dev/null",
    ]);
    transcript.run(&["exec", "--", "true"]);
    transcript.run(&["exec", "--ca-bundle", "/no/such/file", "--", "true"]);
    transcript.run(&["status"]);
    transcript.run(&["doctor"]);
    transcript.run(&["doctor", "--destination", "echo"]);
    transcript.run(&["certificate", "--next"]);
    transcript.run(&["rotate", "--finish"]);
    transcript.run(&["rotate", "--finish", "--granted"]);
    transcript.run(&["rotate", "--cancel"]);
    transcript.run(&["rotate", "--new-handle", "0x81010004"]);
    transcript.run(&["completions", "tcsh"]);
    transcript.must_equal("failures.txt");
}
