//! `list`: states, alignment, and nothing that moves a terminal's cursor.

use std::fs::File;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use testbed::rows::{Grant, Principal, Times};

use crate::office::{AGENT, KEY, Office};

const DAY: i64 = 86_400;

/// One permission, scope and key in each state.
async fn states() -> Office {
    let office = Office::new().await;
    let alice = Principal::registered(&office.database, &["active"]).unwrap();
    for (name, times) in [
        ("active", Times::from_now(-3 * 3600 - 60, 30 * DAY + 60)),
        ("future", Times::from_now(2 * DAY + 60, 3 * DAY)),
        ("expired", Times::from_now(-3 * DAY, -2 * DAY - 60)),
        ("revoked", Times::from_now(-3600, DAY)),
    ] {
        let grant = Grant::new(AGENT, office.agent.spki_der(), name).during(times.clone());
        alice.grant(&office.database, &grant).unwrap();
        if name != "active" {
            alice.scope(&office.database, name, &times).unwrap();
        }
    }
    for table in ["permission_registry", "principal_key_permissions"] {
        let sql = format!(
            "UPDATE {table} SET revoked_at = now() - interval '5 minutes'
             WHERE destination = 'revoked'"
        );
        office.database.execute(&sql).unwrap();
    }
    office
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stderr, b"");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test]
async fn permissions_are_listed_with_their_states() {
    let office = states().await;
    let listed = stdout(&office.cli(&["list"]));
    assert_eq!(listed, stdout(&office.cli(&["list", "permissions"])));
    let lines: Vec<&str> = listed.lines().collect();
    let columns: Vec<Vec<&str>> = lines
        .iter()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .collect()
        })
        .collect();
    assert_eq!(
        columns[0],
        [
            "PERMISSION ID",
            "IDENTITY",
            "DESTINATION",
            "KEY ID",
            "SPKI",
            "STATE",
            "NOT BEFORE",
            "NOT AFTER"
        ]
    );
    let states: Vec<_> = columns[1..]
        .iter()
        .map(|cells| (cells[2], cells[5]))
        .collect();
    assert_eq!(
        states,
        [
            ("active", "active"),
            ("expired", "expired"),
            ("future", "not yet valid"),
            ("revoked", "revoked 5 min ago"),
        ]
    );
    let spki = office.spki();
    assert_eq!(columns[1][4], format!("…{}", &spki[spki.len() - 16..]));
    for (row, cell, expected) in [
        (1, 6, " (3 h ago)"),
        (1, 7, " (in 30 d)"),
        (2, 7, " (2 d ago)"),
        (3, 6, " (in 2 d)"),
    ] {
        let (time, relative) = columns[row][cell].split_at(20);
        assert_eq!(relative, expected);
        time.parse::<permission::Timestamp>().unwrap();
    }
    // Aligned, though not all characters are one byte: every state begins in the same column.
    let at = lines[0].find("STATE").unwrap();
    let starts = |line: &&str| line.char_indices().nth(at).unwrap().0;
    for (line, (_, state)) in lines[1..].iter().zip(states) {
        assert!(line[starts(line)..].starts_with(state), "{listed}");
    }
}

#[tokio::test]
async fn json_holds_everything_exactly() {
    let office = states().await;
    let listed = office.done(&["list"]);
    let rows = listed.as_array().unwrap();
    let states: Vec<_> = rows
        .iter()
        .map(|row| row["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["active", "expired", "not yet valid", "revoked"]);
    let stored = office
        .database
        .query(
            "SELECT to_char(not_before AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
                    to_char(not_after AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')
             FROM permission_registry WHERE destination = 'active'",
        )
        .unwrap();
    let (not_before, not_after) = stored.split_once('|').unwrap();
    assert_eq!(
        rows[0],
        json!({
            "permission_id": "agent-alpha-active",
            "identity": AGENT,
            "destination": "active",
            "key_id": KEY,
            "spki": office.spki(),
            "state": "active",
            "not_before": not_before,
            "not_after": not_after,
            "revoked_at": null,
        })
    );
    assert!(rows[3]["revoked_at"].is_string());

    let scopes = office.done(&["list", "scopes"]);
    let scopes = scopes.as_array().unwrap();
    let scopes: Vec<_> = scopes
        .iter()
        .map(|row| {
            (
                row["destination"].as_str().unwrap(),
                row["state"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        scopes,
        [
            ("active", "active"),
            ("expired", "expired"),
            ("future", "not yet valid"),
            ("revoked", "revoked"),
        ]
    );
    let keys = office.done(&["list", "keys"]);
    assert_eq!(keys[0]["key_id"], KEY);
    assert_eq!(keys[0]["state"], "active");
    assert_eq!(keys.as_array().unwrap().len(), 1);
    let spki = Principal::new(KEY, 7).unwrap().spki();
    assert_eq!(keys[0]["spki"], hex::encode(spki));
}

#[tokio::test]
async fn empty_registry_lists_headings_alone() {
    let office = Office::new().await;
    assert_eq!(
        stdout(&office.cli(&["list", "keys"])),
        "KEY ID  SPKI  STATE  NOT BEFORE  NOT AFTER\n"
    );
    assert_eq!(office.done(&["list", "scopes"]), json!([]));
}

#[tokio::test]
async fn text_from_the_registry_cannot_move_the_terminal() {
    let office = states().await;
    let evil = "agent\u{202e}ahpla\u{1b}[2J\u{9b}\u{2066}\u{200f}\u{61c}\n\u{7f}Ω";
    let sql = format!(
        "UPDATE permission_registry SET subject_identity = '{evil}', permission_id = '{evil}'
         WHERE destination = 'active'"
    );
    office.database.execute(&sql).unwrap();
    let shown = "agent\\u{202e}ahpla\\u{1b}[2J\\u{9b}\\u{2066}\\u{200f}\\u{61c}\\u{a}\\u{7f}Ω";
    let table = stdout(&office.cli(&["list"]));
    assert!(
        table.contains(&format!("\n{shown}  {shown}  active ")),
        "{table}"
    );
    assert_eq!(table.lines().count(), 5);

    let json = stdout(&office.cli(&["list", "--json"]));
    for text in [&table, &json] {
        let moves = |c| evil.contains(c) && !matches!(c, '\n' | ' '..='~' | 'Ω');
        assert!(!text.contains(moves), "{text:?}");
    }
    let json: Value = serde_json::from_str(&json).unwrap();
    let rows = json.as_array().unwrap();
    assert!(rows.iter().any(|row| row["identity"] == evil), "{json}");
}

#[tokio::test]
async fn reader_that_has_seen_enough_is_no_failure() {
    let office = states().await;
    for (arguments, status) in [
        (&["list"][..], 0),
        (&["list", "--json"], 0),
        (&["show", KEY], 0),
        (&["export"], 0),
        (&["--help"], 0),
        // What it found stays its result.
        (&["verify"], 1),
    ] {
        let mut command = office.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments:?}: {output:?}"
        );
        assert_eq!(output.stderr, b"", "{arguments:?}");
    }
}

#[tokio::test]
async fn result_that_cannot_be_written_is_a_failure() {
    let office = states().await;
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = office.command(&["list"]).stdout(full).output().unwrap();
    let (status, said) = crate::office::refusal(&output);
    assert_eq!(status, 74);
    assert!(
        said.starts_with("error: done, but the result can't be written"),
        "{said}"
    );
}
