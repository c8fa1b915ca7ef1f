//! Child processes.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use testbed::{Process, free_port};

fn shell(script: &str) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", script]).env("COLOUR", "green");
    Process::start("shell", &command).unwrap()
}

#[test]
fn output_and_exit_status_are_kept() {
    let mut process = shell("echo $COLOUR; echo oops >&2; exit 3");
    let status = process.wait(Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(3));
    assert_eq!(process.log(), "green\noops\n");
}

#[test]
fn terminated_process_may_clean_up() {
    let mut process = shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done");
    process.wait_for_log("up").unwrap();
    assert_eq!(process.terminate().unwrap().code(), Some(0));
    assert_eq!(process.log(), "up\nbye\n");
}

#[test]
fn dropped_process_is_killed() {
    let process = shell("sleep 1000");
    let entry = format!("/proc/{}", process.id());
    assert!(Path::new(&entry).exists());
    drop(process);
    assert!(!Path::new(&entry).exists());
}

#[test]
fn process_outlives_the_thread_that_started_it() {
    let mut process = std::thread::spawn(|| shell("sleep 1000")).join().unwrap();
    assert!(
        process.wait(Duration::from_millis(200)).is_err(),
        "it should still run"
    );
}

#[test]
fn early_end_is_told_with_the_log() {
    let mut process = shell("echo no config; exit 64");
    let port = free_port().unwrap();
    let error = process
        .wait_for_port(([127, 0, 0, 1], port).into())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("exit status: 64") && error.contains("no config"),
        "{error}"
    );
}

#[test]
fn free_ports_do_not_repeat() {
    let ports: HashSet<u16> = (0..200).map(|_| free_port().unwrap()).collect();
    assert_eq!(ports.len(), 200);
}
