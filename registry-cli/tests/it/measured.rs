//! `verify` at the size it is meant for. Takes minutes, so it runs only when it is asked for:
//! `cargo test --release -p registry-cli --test it measured -- --ignored --nocapture`, which also
//! prints the time.

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use testbed::Bulk;
use testbed::rows::{Grant, Principal};

use crate::office::{AGENT, Office};

const ROWS: u32 = 1_000_000;
const MOST_KIB: u64 = 64 * 1024;

#[tokio::test]
#[ignore = "takes minutes"]
async fn a_million_rows_are_verified_in_bounded_memory() {
    let office = Office::new().await;
    let alice = Principal::registered(&office.database, &["docstore:443"]).unwrap();
    let begun = Instant::now();
    thread::scope(|scope| {
        for part in 0..2 {
            let (office, alice) = (&office, &alice);
            scope.spawn(move || {
                let mut rows = Bulk::begin(&office.database, alice).unwrap();
                for number in (part..ROWS).step_by(2) {
                    let mut grant = Grant::new(AGENT, office.agent.spki_der(), "docstore:443");
                    grant.permission_id = format!("perm-{number}");
                    rows.grant(&grant).unwrap();
                }
                rows.finish().unwrap();
            });
        }
    });
    office
        .database
        .execute("ANALYZE permission_registry")
        .unwrap();
    println!("{ROWS} rows signed and written in {:?}", begun.elapsed());

    let mut command = office.command(&["verify", "--json"]);
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0;
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(size) = line.and_then(|line| line.trim().strip_suffix(" kB")) {
            peak_kib = size.parse().unwrap();
        }
        thread::sleep(Duration::from_millis(20));
    }
    println!(
        "verified in {:?}, with {peak_kib} KiB at most",
        begun.elapsed()
    );
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let expected = format!("{{\"bad\":0,\"checked\":{}}}\n", ROWS + 2);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert!(peak_kib < MOST_KIB, "{peak_kib} KiB");
}
