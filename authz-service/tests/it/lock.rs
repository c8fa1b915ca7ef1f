//! A registry that is slow for as long as a test wants.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testbed::Database;

/// Holds what its statements took, so that every query of it waits. Lets go when dropped.
pub(crate) struct Session(Child);

impl Session {
    pub(crate) fn holding(database: &Database, statements: &str) -> Self {
        let mut psql = Command::new("psql")
            .args(["-X", "-q", "-t", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"])
            .arg(database.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let held = format!("{statements}\n\\echo held\n");
        let input = psql.stdin.as_mut().unwrap();
        input.write_all(held.as_bytes()).unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(psql.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "held");
        Self(psql)
    }

    /// Makes what was written since its `BEGIN` count.
    pub(crate) fn commit(mut self) {
        let input = self.0.stdin.as_mut().unwrap();
        input.write_all(b"COMMIT;\n").unwrap();
    }

    pub(crate) fn locking_permissions(database: &Database) -> Self {
        Self::holding(database, "BEGIN; LOCK permission_registry;")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // All it holds ends with its connection.
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// Waits until so many queries wait for a lock.
pub(crate) async fn wait_for_blocked(database: &Database, queries: usize) {
    let deadline = Instant::now() + testbed::process::PATIENCE;
    let blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = \
                   (SELECT oid FROM pg_database WHERE datname = current_database())";
    while database.query(blocked).unwrap() != queries.to_string() {
        assert!(Instant::now() < deadline, "no {queries} queries wait");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Time-outs that no test reaches.
pub(crate) const PATIENT: [(&str, &str); 4] = [
    ("AGENT_GATEWAY__SERVER__CHECK_TIMEOUT_MS", "60000"),
    ("AGENT_GATEWAY__SERVER__SHUTDOWN_TIMEOUT_MS", "60000"),
    ("AGENT_GATEWAY__POLICY__POOL_ACQUIRE_TIMEOUT_MS", "60000"),
    ("AGENT_GATEWAY__POLICY__QUERY_TIMEOUT_MS", "60000"),
];
