//! What is made of the command line itself: completions and manual pages; and readers that leave.

use std::fs;
use std::process::{Command, Stdio};

use crate::agent::{Agent, failure};

fn sidecar(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-gateway-sidecar"));
    command.args(arguments);
    command
}

#[test]
fn completions_are_scripts_that_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = sidecar(&["completions", shell]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        let script = String::from_utf8(done.stdout).unwrap();
        for word in ["agent-gateway-sidecar", "rotate", "max-tunnels"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    let done = sidecar(&["completions", "bash"]).output().unwrap();
    fs::write(&script, done.stdout).unwrap();
    // Bash itself completes by it.
    let line = format!(
        "source {}; COMP_WORDS=(agent-gateway-sidecar rot); COMP_CWORD=1; \
         $(complete -p agent-gateway-sidecar | sed 's/.*-F \\([^ ]*\\).*/\\1/') agent-gateway-sidecar rot agent-gateway-sidecar; \
         echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let completed = Command::new("bash").args(["-c", &line]).output().unwrap();
    assert_eq!(String::from_utf8(completed.stdout).unwrap(), "rotate\n");
    assert_eq!(
        failure(&sidecar(&["completions", "tcsh"]).output().unwrap()).0,
        64
    );
}

#[test]
fn every_command_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    let done = sidecar(&["man-pages", pages.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let mut names: Vec<_> = fs::read_dir(&pages)
        .unwrap()
        .map(|page| page.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let commands = [
        "certificate",
        "completions",
        "doctor",
        "exec",
        "init",
        "rotate",
        "run",
        "status",
    ];
    for command in commands {
        assert!(
            names.contains(&format!("agent-gateway-sidecar-{command}.1")),
            "{names:?}"
        );
    }
    assert!(names.contains(&"agent-gateway-sidecar.1".to_owned()));
    assert!(!names.iter().any(|name| name.contains("man-pages")));
    let page = fs::read_to_string(pages.join("agent-gateway-sidecar-run.1")).unwrap();
    assert!(
        page.contains(".TH") && page.contains("AGENT_GATEWAY_MAX_TUNNELS"),
        "{page}"
    );

    let (code, told) = failure(&sidecar(&["man-pages", "/dev/null/x"]).output().unwrap());
    assert_eq!(code, 73);
    assert!(
        told.starts_with("error: can't write to /dev/null/x"),
        "{told}"
    );
}

#[test]
fn reader_that_leaves_is_a_failure_and_no_panic() {
    let agent = Agent::initialised();
    for arguments in [
        &["completions", "bash"][..],
        &["certificate"],
        &["certificate", "--request"],
        &["status"],
        &["status", "--json"],
        &["rotate"],
        &[
            "init",
            "--identity",
            crate::agent::IDENTITY,
            "--tcti",
            &agent.tpm.tcti(),
        ],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let done = agent
            .command(arguments)
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let (code, told) = failure(&done);
        assert_eq!(code, 74, "{arguments:?}: {told}");
        assert!(!told.contains("panicked"), "{told}");
    }
    // What was done is done.
    assert_eq!(agent.spki().len(), 182);
}
