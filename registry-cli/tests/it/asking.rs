//! `can-i`, `why` and `show`: the answers of the gateway, without asking it.

use serde_json::{Value, json};
use testbed::rows::{Grant, Principal, Times};

use crate::office::{AGENT, KEY, Office, refusal};

const DAY: i64 = 86_400;

fn arguments<'a>(command: &'a str, spki: &'a str, destination: &'a str) -> Vec<&'a str> {
    let request = ["--identity", AGENT, "--spki", spki, "--destination"];
    [&[command][..], &request, &[destination]].concat()
}

/// Exit status and JSON of a command that says something on stdout and nothing on stderr.
fn answer(office: &Office, arguments: &[&str]) -> (i32, Value) {
    let output = office.cli(&[arguments, &["--json"]].concat());
    assert_eq!(output.stderr, b"", "{output:?}");
    let json = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code().unwrap(), json)
}

#[tokio::test]
async fn can_i_says_yes_and_no_as_the_gateway_would() {
    let office = Office::with_scopes(&["docstore"]).await;
    let granted = office.grant(&[]);
    let id = granted["permissions"][0]["permission_id"].as_str().unwrap();
    let spki = office.spki();
    let output = office.cli(&arguments("can-i", &spki, "DocStore"));
    let said = String::from_utf8(output.stdout).unwrap();
    let begin = format!("yes - {id}; a tunnel ends 20");
    assert!(said.starts_with(&begin), "{said}");
    assert!(
        said.ends_with("(in 23 h)\n") || said.ends_with("(in 1 d)\n"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(0));

    let output = office.cli(&arguments("can-i", &spki, "messaging"));
    assert_eq!(output.stdout, b"no - no_permission\n");
    assert_eq!((output.status.code(), output.stderr), (Some(1), vec![]));

    let spki = office.spki();
    let docstore = arguments("can-i", &spki, "docstore");
    let table = "UPDATE permission_registry SET";
    for (change, undo, reason) in [
        (
            format!("{table} revoked_at = now()"),
            format!("{table} revoked_at = NULL"),
            "permission_revoked",
        ),
        (
            "UPDATE principal_signing_keys SET revoked_at = now()".to_owned(),
            "UPDATE principal_signing_keys SET revoked_at = NULL".to_owned(),
            "signing_key_inactive",
        ),
        (
            "UPDATE principal_key_permissions SET revoked_at = now()".to_owned(),
            "UPDATE principal_key_permissions SET revoked_at = NULL".to_owned(),
            "scope_missing",
        ),
        (
            format!("{table} not_after = not_after + '1 s'"),
            format!("{table} not_after = not_after - interval '1 s'"),
            "signature_invalid",
        ),
    ] {
        office.database.execute(&change).unwrap();
        let (status, said) = answer(&office, &docstore);
        assert_eq!(
            (status, &said["allowed"], &said["reason"]),
            (1, &json!(false), &json!(reason))
        );
        office.database.execute(&undo).unwrap();
        let (status, said) = answer(&office, &docstore);
        assert_eq!((status, &said["permission_id"]), (0, &json!(id)), "{said}");
    }
}

#[tokio::test]
async fn can_i_looks_at_another_time_if_told_so() {
    let office = Office::with_scopes(&["docstore"]).await;
    let granted = office.grant(&[]);
    let end = granted["not_after"].as_str().unwrap();
    let spki = office.spki();
    let asked = |at: &str| {
        let request = arguments("can-i", &spki, "docstore");
        answer(&office, &[&request[..], &["--at", at]].concat())
    };
    let (status, said) = asked(end);
    assert_eq!((status, &said["reason"]), (1, &json!("permission_expired")));
    assert_eq!(said["at"], end);
    let (status, said) = asked("2020-01-01T00:00:00Z");
    assert_eq!(
        (status, &said["reason"]),
        (1, &json!("permission_not_yet_valid"))
    );
    assert_eq!(asked(granted["not_before"].as_str().unwrap()).0, 0);

    let output = office.cli(
        &[
            &arguments("can-i", &spki, "docstore")[..],
            &["--at", "tomorrow"],
        ]
        .concat(),
    );
    assert_eq!(output.status.code(), Some(64));
}

#[tokio::test]
async fn why_names_the_check_at_which_each_row_fell() {
    let office = Office::new().await;
    let alice = Principal::registered(&office.database, &["docstore:443"]).unwrap();
    let spki = office.agent.spki_der();
    for (id, times) in [
        ("1-allows", Times::from_now(-3600, 30 * DAY)),
        ("2-revoked", Times::from_now(-3600, 20 * DAY)),
        ("3-expired", Times::from_now(-7000, -3600)),
        ("4-tampered", Times::from_now(-3600, 10 * DAY)),
        ("5-too-long", Times::from_now(-3600, 90 * DAY)),
    ] {
        let mut grant = Grant::new(AGENT, spki, "docstore:443").during(times);
        id.clone_into(&mut grant.permission_id);
        alice.grant(&office.database, &grant).unwrap();
    }
    let change =
        "UPDATE permission_registry SET revoked_at = now() WHERE permission_id = '2-revoked';
        UPDATE permission_registry SET signature = '\\x00' WHERE permission_id = '4-tampered';
        INSERT INTO permission_registry SELECT E'6\\x07', signing_key_id, subject_identity,
            subject_public_key_spki_der, destination, not_before, not_after, NULL, signature
            FROM permission_registry WHERE permission_id = '1-allows'";
    office.database.execute(change).unwrap();

    let spki = office.spki();
    let (status, said) = answer(&office, &arguments("why", &spki, "docstore"));
    assert_eq!(status, 0);
    let mut fell: Vec<_> = said["candidates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            (
                row["permission_id"].as_str().unwrap(),
                row["reason"].as_str(),
            )
        })
        .collect();
    fell.sort_unstable();
    assert_eq!(
        fell,
        [
            ("1-allows", None),
            ("2-revoked", Some("permission_revoked")),
            ("3-expired", Some("permission_expired")),
            ("4-tampered", Some("signature_invalid")),
            ("5-too-long", Some("scope_missing")),
            ("6\u{7}", Some("signature_invalid")),
        ]
    );
    let output = office.cli(&arguments("why", &spki, "docstore"));
    let told = String::from_utf8(output.stdout).unwrap();
    let line = |id: &str| {
        told.lines()
            .find(|line| line.starts_with(id))
            .unwrap()
            .to_owned()
    };
    assert!(
        told.starts_with("PERMISSION ID  KEY ID     VERDICT "),
        "{told}"
    );
    assert!(line("1-allows ").contains(" org-alice  allows "), "{told}");
    assert!(
        line("6\\u{7} ").contains(" signature_invalid: unusable permission_id"),
        "{told}"
    );

    let output = office.cli(&arguments("why", &spki, "messaging"));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "no permission for agent-alpha with this key to messaging:443\n"
    );
}

#[tokio::test]
async fn show_tells_all_about_a_permission_and_a_key() {
    let office = Office::with_scopes(&["docstore"]).await;
    let granted = office.grant(&[]);
    let id = granted["permissions"][0]["permission_id"].as_str().unwrap();
    let shown = office.done(&["show", id]);
    assert_eq!(
        shown,
        json!({
            "permission_id": id,
            "identity": AGENT,
            "spki": office.spki(),
            "destination": "docstore:443",
            "key_id": KEY,
            "signature_verifies": true,
            "not_before": granted["not_before"],
            "not_after": granted["not_after"],
            "revoked": false,
            "verdict": "allows",
        })
    );
    office
        .database
        .execute("UPDATE permission_registry SET destination = 'messaging:443'")
        .unwrap();
    let told = String::from_utf8(office.cli(&["show", id]).stdout).unwrap();
    assert!(told.contains("\nsignature   does not verify\n"), "{told}");
    assert!(
        told.ends_with("\nverdict     signature_invalid\n"),
        "{told}"
    );

    let key = office.done(&["show", KEY]);
    assert_eq!(
        (&key["key_id"], &key["state"]),
        (&json!(KEY), &json!("active"))
    );
    assert_eq!(key["scopes"][0]["destination"], "docstore:443");
    let (status, said) = refusal(&office.cli(&["show", "org-bob"]));
    assert_eq!(status, 1);
    assert!(
        said.starts_with("error: no permission, PoCA key or key has the id org-bob\n"),
        "{said}"
    );
}

#[tokio::test]
async fn lists_are_narrowed_by_filters_and_others_refused() {
    let office = Office::with_scopes(&["docstore", "messaging"]).await;
    office.grant(&[("--destination", "docstore")]);
    office.grant(&[("--destination", "messaging")]);
    let destinations = |arguments: &[&str]| -> Vec<String> {
        let listed = office.done(&[&["list"], arguments].concat());
        let rows = listed.as_array().unwrap();
        rows.iter()
            .map(|row| row["destination"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        destinations(&["--destination", "Messaging"]),
        ["messaging:443"]
    );
    assert_eq!(destinations(&["--identity", "agent-beta"]), [""; 0]);
    assert_eq!(
        destinations(&["--key", KEY]),
        ["docstore:443", "messaging:443"]
    );
    assert_eq!(
        destinations(&["--spki", &office.spki()]),
        ["docstore:443", "messaging:443"]
    );
    assert_eq!(destinations(&["--state", "revoked"]), [""; 0]);
    assert_eq!(
        destinations(&["scopes", "--destination", "docstore"]),
        ["docstore:443"]
    );
    assert_eq!(
        office.done(&["list", "keys", "--key", "org-bob"]),
        json!([])
    );
    let (status, said) = refusal(&office.cli(&["list", "keys", "--identity", AGENT]));
    assert_eq!(status, 64);
    assert!(
        said.starts_with("error: --identity does not apply to what is listed\n"),
        "{said}"
    );
}
