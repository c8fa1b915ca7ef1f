//! A registry that is slow for as long as a test wants.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testbed::Database;

/// Holds a table, so that every query of it waits. Let go when dropped.
pub(crate) struct TableLock(Child);

impl TableLock {
    pub(crate) fn of_permissions(database: &Database) -> Self {
        let mut psql = Command::new("psql")
            .args(["-X", "-q", "-t", "-v", "ON_ERROR_STOP=1"])
            .arg(database.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lock = b"BEGIN; LOCK permission_registry; \n\\echo locked\n";
        psql.stdin.as_mut().unwrap().write_all(lock).unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(psql.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "locked");
        Self(psql)
    }
}

impl Drop for TableLock {
    fn drop(&mut self) {
        // The transaction ends with its connection.
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
