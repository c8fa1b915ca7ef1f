//! A user at a terminal, who sees what is asked before answering.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::agent::Agent;

/// At the terminal, with a command running.
pub(crate) struct User {
    child: Child,
    keyboard: ChildStdin,
    screen: ChildStdout,
    seen: Vec<u8>,
}

impl User {
    /// Runs the sidecar's binary for this agent. When it has ended, the terminal tells whether it
    /// shows what is typed.
    pub(crate) fn runs(agent: &Agent, arguments: &[&str]) -> Self {
        let command = [&[env!("CARGO_BIN_EXE_agent-gateway-sidecar")], arguments].concat();
        let line = format!(
            "{}; s=$?; stty -a | grep -ow -- -echo; exit $s",
            command.join(" ")
        );
        let mut child = Command::new("timeout")
            .args(["60", "script", "-qec", &line, "/dev/null"])
            .env("AGENT_GATEWAY_STATE", agent.state())
            .env("AGENT_GATEWAY_TCTI", agent.tpm.tcti())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            keyboard: child.stdin.take().unwrap(),
            screen: child.stdout.take().unwrap(),
            child,
            seen: Vec::new(),
        }
    }

    /// Reads until the question is on the screen.
    pub(crate) fn is_asked(&mut self, question: &str) {
        let mut byte = [0];
        while !self.seen.ends_with(question.as_bytes()) {
            let more = self.screen.read(&mut byte).unwrap();
            let seen = String::from_utf8_lossy(&self.seen);
            assert_eq!(more, 1, "{question}: {seen}");
            self.seen.extend(byte);
        }
    }

    pub(crate) fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for the end; the exit status, and all that the screen has shown. The terminal must be
    /// as it was.
    pub(crate) fn leaves(mut self) -> (i32, String) {
        self.screen.read_to_end(&mut self.seen).unwrap();
        let status = self.child.wait().unwrap().code().unwrap();
        let seen = String::from_utf8(self.seen).unwrap();
        assert!(!seen.ends_with("-echo\r\n"), "{seen}");
        (status, seen)
    }
}
