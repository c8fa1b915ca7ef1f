//! `audit verify` and `audit head`.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use ::audit::{Chain, Draft, Event, Head, Outcome, Record};
use permission::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::office::{refusal, text};

/// So many lines of a chain.
fn lines(count: usize) -> Vec<String> {
    let mut chain = Chain::after(Head::START);
    let deny = Record::new(Timestamp::MIN, Event::Decision(Outcome::Deny, 403));
    let seal = |_| {
        let mut line = Vec::new();
        chain.seal(&Draft::new(&deny, "gw-1"), &mut line);
        String::from_utf8(line).unwrap()
    };
    (0..count).map(seal).collect()
}

/// Runs the command, without any registry.
fn audit(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_agent-gateway-registry"))
        .arg("audit")
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("DATABASE_URL")
        .env_remove("AGENT_GATEWAY_DATABASE_URL")
        .output()
        .unwrap()
}

/// Status and stdout.
fn said(arguments: &[&str]) -> (i32, String) {
    let output = audit(arguments);
    let said = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), said)
}

fn file(folder: &TempDir, name: &str, lines: &[String]) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, lines.concat()).unwrap();
    text(&path)
}

fn head(path: &str) -> String {
    let (status, head) = said(&["head", path]);
    assert_eq!(status, 0);
    head.trim().to_owned()
}

#[test]
fn a_chain_over_several_files_is_verified_and_its_first_bad_record_named() {
    let folder = tempfile::tempdir().unwrap();
    let lines = lines(9);
    let old = file(&folder, "audit-0000000000000001.jsonl", &lines[..4]);
    let new = file(&folder, "audit.jsonl", &lines[4..]);
    let at = head(&new);
    assert!(at.starts_with("9:"), "{at}");
    let expected = (0, format!("9 records verified, the last one {at}\n"));
    assert_eq!(said(&["verify", &old, &new]), expected);

    let swapped = [&lines[4..6], &lines[7..8], &lines[6..7], &lines[8..]].concat();
    let mut edited = lines[4..].to_vec();
    edited[2] = edited[2].replace("deny", "allow");
    let unlinked = [&lines[5..], &lines[4..5]].concat();
    for (tampered, line, after, what) in [
        (
            edited,
            3,
            6,
            "edited: its record_hash is not the hash of what it says",
        ),
        (swapped, 3, 6, "records are missing before it: 7 to 7"),
        (unlinked, 1, 4, "records are missing before it: 5 to 5"),
        (
            [&lines[4..5], &lines[4..]].concat(),
            2,
            5,
            "repeated or moved: record 6 belongs here",
        ),
        (
            vec!["{}\n".to_owned()],
            1,
            4,
            "not a record as the gateway writes it",
        ),
    ] {
        let bad = file(&folder, "bad.jsonl", &tampered);
        let (status, told) = said(&["verify", &old, &bad]);
        let expected = format!("bad {bad}:{line}: after record {after}: {what}\n");
        assert_eq!((status, told.starts_with(&expected)), (1, true), "{told}");
        let (status, told) = said(&["verify", "--json", &old, &bad]);
        let told: Value = serde_json::from_str(&told).unwrap();
        let expected = json!({"file": bad, "line": line, "after": after, "fault": what});
        assert_eq!((status, &told["bad"]), (1, &expected));
        assert_eq!(told["verified"], after);
    }
    // In another order it is another chain.
    assert_eq!(said(&["verify", &new, &old]).0, 1);
}

#[test]
fn a_head_that_was_kept_elsewhere_shows_what_the_chain_alone_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let lines = lines(5);
    let whole = file(&folder, "audit.jsonl", &lines);
    let at = head(&whole);
    let cut = file(&folder, "cut.jsonl", &lines[..3]);
    assert_eq!(said(&["verify", &cut]).0, 0);
    let (status, told) = said(&["verify", "--head", &at, &cut]);
    let expected = format!("bad {cut}: after record 3: records are missing at the end: 4 to 5\n");
    assert_eq!((status, told.starts_with(&expected)), (1, true), "{told}");
    assert_eq!(said(&["verify", "--head", &at, &whole]).0, 0);
    // Since then more was recorded; and another chain has another record there.
    assert_eq!(said(&["verify", "--head", &head(&cut), &whole]).0, 0);
    let other = format!("3:{}", "0".repeat(64));
    let (status, told) = said(&["verify", "--head", &other, &whole]);
    assert_eq!(status, 1);
    assert!(
        told.contains(":3: after record 2: another record than the one expected"),
        "{told}"
    );

    let rest = file(&folder, "rest.jsonl", &lines[3..]);
    assert_eq!(said(&["verify", &rest]).0, 1);
    assert_eq!(said(&["verify", "--after", &head(&cut), &rest]).0, 0);
    assert_eq!(said(&["verify", "--after", &other, &rest]).0, 1);
}

#[test]
fn a_line_that_is_being_written_is_no_fault_and_anything_behind_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let lines = lines(3);
    let torn = [&lines[..2], &[lines[2][..50].to_owned()]].concat();
    let torn = file(&folder, "audit.jsonl", &torn);
    let (status, told) = said(&["verify", "--json", &torn]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (status, &told["verified"], &told["unfinished_line"]),
        (0, &json!(2), &json!(true))
    );
    assert!(head(&torn).starts_with("2:"));
    let next = file(&folder, "next.jsonl", &lines[2..]);
    let (status, told) = said(&["verify", &torn, &next]);
    assert_eq!(status, 1);
    assert!(
        told.contains("follows a line that was not completed"),
        "{told}"
    );
}

#[test]
fn what_cannot_be_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = text(&folder.path().join("missing"));
    for arguments in [["verify", missing.as_str()], ["head", &missing]] {
        assert_eq!(refusal(&audit(&arguments)).0, 66);
    }
    let foreign = file(&folder, "foreign", &["hello\n".to_owned()]);
    assert_eq!(refusal(&audit(&["head", &foreign])).0, 65);
    assert_eq!(audit(&["verify"]).status.code(), Some(64));
    assert_eq!(
        audit(&["verify", "--head", "5", &foreign]).status.code(),
        Some(64)
    );
    assert!(Path::new(&foreign).exists());
}

#[test]
fn who_watches_sees_how_far_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "audit.jsonl", &lines(20_001));
    let command = format!(
        "{} audit verify {path}",
        env!("CARGO_BIN_EXE_agent-gateway-registry")
    );
    let output = Command::new("timeout")
        .args(["60", "script", "-qec", &command, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let screen = String::from_utf8(output.stdout).unwrap();
    let expected = format!(
        "\r10000 records verified, 49 %\r20000 records verified, 99 %\r\u{1b}[K\
         20001 records verified, the last one {}\r\n",
        head(&path)
    );
    assert_eq!((output.status.code(), &*screen), (Some(0), &*expected));
    // Where nobody does, nothing but the outcome is said.
    let output = audit(&["verify", &path]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
