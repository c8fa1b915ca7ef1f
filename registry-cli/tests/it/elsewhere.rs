//! Permissions signed elsewhere or offline, and carried in files.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use permission::{Decision, Permission, decide};
use serde_json::{Value, json};
use testbed::Swtpm;

use crate::office::{AGENT, KEY, Office, now, openssl, refusal, strs, text};

async fn is_allowed(office: &Office, destination: &str) -> bool {
    let request = office.request(destination);
    let facts = office.facts(&request).await;
    matches!(decide(&facts, &request, now()), Decision::Allow(_))
}

/// A file with what an offline grant writes.
fn offline(office: &Office, name: &str, changed: &[(&str, &str)]) -> (String, String) {
    let arguments = office.grant_arguments(changed);
    let mut command = office.command(&[&strs(&arguments)[..], &["--offline"]].concat());
    let output = command
        .env_remove("AGENT_GATEWAY_DATABASE_URL")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    (office.file(name, &lines), lines)
}

#[tokio::test]
async fn text_of_a_dry_run_signed_by_openssl_is_granted() {
    let office = Office::new().await;
    let (key, public) = (text(&office.path("hsm.pem")), text(&office.path("hsm.pub")));
    openssl(&[
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        &key,
    ]);
    openssl(&["pkey", "-in", &key, "-pubout", "-out", &public]);
    let registered = office.done(&["register-key", KEY, "--public-key", &public]);
    assert_eq!(
        (&registered["key"], &registered["place"]),
        (&json!("elsewhere"), &Value::Null)
    );
    office.done(&["grant-scope", KEY, "docstore"]);

    let spki = office.spki();
    let grant = [
        "grant",
        "--key",
        KEY,
        "--identity",
        AGENT,
        "--spki",
        &spki,
        "--destination",
        "docstore",
    ];
    let before = office.rows();
    let output = office.cli(&[&grant[..], &["--id", "perm-1", "--dry-run"]].concat());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(office.rows(), before);
    let permission = Permission::from_canonical(&output.stdout).unwrap();
    assert_eq!(permission.permission_id.as_str(), "perm-1");
    let canonical = office.file("permission.txt", &output.stdout);
    let signature = text(&office.path("permission.sig"));
    openssl(&[
        "dgst", "-sha256", "-sign", &key, "-out", &signature, &canonical,
    ]);

    let sign = ["grant", "--text", &canonical, "--signature", &signature];
    let changed = office.file(
        "changed.txt",
        String::from_utf8(output.stdout)
            .unwrap()
            .replace("docstore", "docstorf"),
    );
    for (text, status, expected) in [
        (&changed, 65, "changed.txt: the signed permission"),
        (
            &signature,
            65,
            "permission.sig: line 1 is not what an agent-gateway-permission-v1 text",
        ),
        (
            &"/nowhere".to_owned(),
            66,
            "/nowhere: can't be read: No such file",
        ),
    ] {
        let (found, said) = office.refused(&["grant", "--text", text, "--signature", &signature]);
        assert_eq!(found, status, "{said}");
        assert!(
            said.contains(expected) || said.contains("would be denied"),
            "{said}"
        );
    }
    let granted = office.done(&sign);
    assert_eq!(granted["permissions"][0]["permission_id"], "perm-1");
    assert!(is_allowed(&office, "docstore").await);
    let (status, said) = office.refused(&sign);
    assert_eq!(status, 73);
    assert!(
        said.starts_with("error: permission id is already registered\n"),
        "{said}"
    );
    assert_eq!(office.misused(&["grant", "--text", &canonical]), 64);
}

impl Office {
    /// A command that clap refuses, in its own words.
    fn misused(&self, arguments: &[&str]) -> i32 {
        let output = self.cli(arguments);
        assert_eq!(output.stdout, b"", "{output:?}");
        output.status.code().unwrap()
    }
}

/// What a signature made elsewhere can be over, but no window of ours can be.
#[tokio::test]
async fn times_that_are_past_or_reversed_are_refused() {
    let office = Office::with_scopes(&["docstore"]).await;
    let key = office.key_file();
    let arguments = office.grant_arguments(&[("--id", "perm-1")]);
    let output = office.cli(&[&strs(&arguments)[..], &["--dry-run"]].concat());
    let canonical = String::from_utf8(output.stdout).unwrap();
    let (fields, _) = canonical.split_once("not_before=").unwrap();
    let (_, line) = offline(&office, "good.jsonl", &[("--id", "perm-1")]);
    let good: Value = serde_json::from_str(&line).unwrap();
    for (not_before, not_after, expected) in [
        (
            "2020-01-01T00:00:00.000000Z",
            "2020-02-01T00:00:00.000000Z",
            "would be denied: permission_expired",
        ),
        (
            "2090-02-01T00:00:00.000000Z",
            "2090-01-01T00:00:00.000000Z",
            "",
        ),
        (
            "2090-01-01T00:00:00.000000Z",
            "2090-01-01T00:00:00.000000Z",
            "",
        ),
        ("2090-01-01T00:00:00Z", "2091-01-01T00:00:00Z", ""),
        (
            "2090-01-01T01:00:00.000000+01:00",
            "2091-01-01T00:00:00.000000Z",
            "",
        ),
        (
            "2090-13-01T00:00:00.000000Z",
            "2091-01-01T00:00:00.000000Z",
            "",
        ),
    ] {
        let text = format!("{fields}not_before={not_before}\nnot_after={not_after}\n");
        let text = office.file("times.txt", text);
        let signature = crate::office::text(&office.path("times.sig"));
        openssl(&["dgst", "-sha256", "-sign", &key, "-out", &signature, &text]);
        let (status, said) = office.refused(&["grant", "--text", &text, "--signature", &signature]);
        assert_eq!(status, 65, "{not_before}: {said}");
        assert!(said.contains(expected), "{said}");

        let mut bad = good.clone();
        bad["not_before"] = not_before.into();
        bad["not_after"] = not_after.into();
        let file = office.file("times.jsonl", format!("{bad}\n"));
        assert_eq!(office.refused(&["import", &file]).0, 65, "{not_before}");
    }
    assert_eq!(office.count("permission_registry"), 0);
    let spki = office.spki();
    let asked = [
        "can-i",
        "--identity",
        AGENT,
        "--spki",
        &spki,
        "--destination",
        "docstore",
    ];
    for at in ["yesterday", "2026-02-30T00:00:00Z", "2026-01-01", ""] {
        assert_eq!(
            office.misused(&[&asked[..], &["--at", at]].concat()),
            64,
            "{at}"
        );
    }
}

#[tokio::test]
async fn dry_run_refuses_what_a_grant_would_refuse() {
    let office = Office::with_scopes(&["docstore"]).await;
    let dry = ("--destination", "messaging");
    let arguments = office.grant_arguments(&[dry]);
    let (status, said) = office.refused(&[&strs(&arguments)[..], &["--dry-run"]].concat());
    assert_eq!(status, 65);
    assert!(said.contains("for messaging:443 is missing"), "{said}");
}

#[tokio::test]
async fn an_id_is_granted_again_only_if_told_so() {
    let office = Office::with_scopes(&["docstore"]).await;
    office.grant(&[("--id", "perm-1")]);
    office.done(&["revoke", "--yes", "--id", "perm-1"]);
    let (status, said) = office.refused_grant(&[("--id", "perm-1")]);
    assert_eq!(status, 73);
    assert!(said.contains("--replace"), "{said}");
    assert!(!is_allowed(&office, "docstore").await);
    let again = office.grant_arguments(&[("--id", "perm-1")]);
    office.done(&[&strs(&again)[..], &["--replace"]].concat());
    assert!(is_allowed(&office, "docstore").await);
    assert_eq!(office.count("permission_registry"), 1);

    let two = [
        ("--id", "x"),
        ("--destination", "docstore"),
        ("--destination", "messaging"),
    ];
    let (status, said) = office.refused_grant(&two);
    assert_eq!(status, 64);
    assert!(
        said.starts_with("error: one id can't name 2 permissions\n"),
        "{said}"
    );
    assert_eq!(
        office.misused(&[&strs(&office.grant_arguments(&[]))[..], &["--replace"]].concat()),
        64
    );
}

#[tokio::test]
async fn offline_grant_is_imported_where_the_registry_is() {
    let office = Office::new().await;
    let tpm = Swtpm::start().unwrap();
    let tcti = tpm.tcti();
    office.done(&["register-key", KEY, "--tcti", &tcti]);
    office.done(&["grant-scope", KEY, "docstore", "messaging"]);
    let spki = office.spki();
    let output = office
        .command(&[
            "grant",
            "--offline",
            "--key",
            KEY,
            "--identity",
            AGENT,
            "--spki",
            &spki,
            "--destination",
            "docstore",
            "messaging",
            "--tcti",
            &tcti,
        ])
        .env_remove("AGENT_GATEWAY_DATABASE_URL")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(office.count("permission_registry"), 0);
    let file = office.file("signed.jsonl", &output.stdout);
    assert_eq!(
        office.done(&["import", &file]),
        json!({"imported": 2, "unchanged": 0})
    );
    assert!(is_allowed(&office, "docstore").await && is_allowed(&office, "messaging").await);
    assert_eq!(
        office.done(&["import", &file]),
        json!({"imported": 0, "unchanged": 2})
    );
}

#[tokio::test]
async fn what_is_exported_can_be_imported_elsewhere_and_stays_revoked() {
    let office = Office::with_scopes(&["docstore", "messaging"]).await;
    office.grant(&[("--destination", "docstore"), ("--id", "a")]);
    office.grant(&[("--destination", "messaging"), ("--id", "b")]);
    office.done(&["revoke", "--yes", "--id", "b"]);
    let exported = office.cli(&["export"]);
    assert!(exported.status.success(), "{exported:?}");
    let before = office.rows();
    let file = office.file("all.jsonl", &exported.stdout);
    assert_eq!(
        office.done(&["import", &file]),
        json!({"imported": 0, "unchanged": 2})
    );
    assert_eq!(office.rows(), before);
    let one = office.cli(&["export", "--destination", "docstore"]).stdout;
    assert_eq!(String::from_utf8(one).unwrap().lines().count(), 1);

    office
        .database
        .execute("DELETE FROM permission_registry")
        .unwrap();
    let mut child = office
        .command(&["import", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(&exported.stdout)
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said, json!({"imported": 2, "unchanged": 0}));
    assert!(is_allowed(&office, "docstore").await);
    assert!(!is_allowed(&office, "messaging").await);
    assert_eq!(office.cli(&["export"]).stdout, exported.stdout);
}

/// Over the permission that the line says, by the principal's key, in hex.
fn signature_by_openssl(office: &Office, line: &Value) -> String {
    let field = |name: &str| line[name].as_str().unwrap();
    let canonical = format!(
        "agent-gateway-permission-v1\npermission_id={}\nsigning_key_id={}\nsubject_identity={}\n\
         subject_public_key_spki_der={}\ndestination={}\nnot_before={}\nnot_after={}\n",
        field("permission_id"),
        field("key_id"),
        field("identity"),
        field("spki"),
        field("destination"),
        field("not_before"),
        field("not_after"),
    );
    let (canonical, key) = (office.file("canonical.txt", canonical), office.key_file());
    let signature = text(&office.path("canonical.sig"));
    openssl(&[
        "dgst", "-sha256", "-sign", &key, "-out", &signature, &canonical,
    ]);
    hex::encode(fs::read(signature).unwrap())
}

#[tokio::test]
async fn line_is_verified_though_its_permission_is_there() {
    let office = Office::with_scopes(&["docstore"]).await;
    let id = [("--id", "a")];
    let (file, line) = offline(&office, "first.jsonl", &id);
    office.done(&["import", &file]);
    let mut changed: Value = serde_json::from_str(&line).unwrap();
    let (_, other) = offline(&office, "other.jsonl", &[("--id", "b")]);
    let other: Value = serde_json::from_str(&other).unwrap();
    changed["signature"] = other["signature"].clone();
    let forged = office.file("forged.jsonl", format!("{changed}\n"));
    // Another signature of the same text is as good.
    changed["signature"] = json!(signature_by_openssl(&office, &changed));
    assert_ne!(format!("{changed}\n"), line);
    let again = office.file("again.jsonl", format!("{changed}\n"));
    for revoked in [false, true] {
        if revoked {
            office.done(&["revoke", "--yes", "--id", "a"]);
        }
        let (status, said) = office.refused(&["import", &forged]);
        assert_eq!(status, 65, "{said}");
        assert!(
            said.contains("line 1: permission a: signature_invalid"),
            "{said}"
        );
        let before = office.rows();
        for file in [&file, &again] {
            assert_eq!(
                office.done(&["import", file]),
                json!({"imported": 0, "unchanged": 1})
            );
        }
        assert_eq!(office.rows(), before);
    }
}

#[tokio::test]
async fn file_with_one_bad_line_is_imported_not_at_all() {
    let office = Office::with_scopes(&["docstore", "messaging"]).await;
    let (_, good) = offline(
        &office,
        "good.jsonl",
        &[("--destination", "docstore"), ("--id", "a")],
    );
    let (_, other) = offline(
        &office,
        "other.jsonl",
        &[("--destination", "messaging"), ("--id", "b")],
    );
    let (_, unscoped) = offline(&office, "unscoped.jsonl", &[("--destination", "elsewhere")]);
    let (_, stranger) = offline(&office, "stranger.jsonl", &[("--key", "org-bob")]);
    let (_, taken) = offline(
        &office,
        "taken.jsonl",
        &[("--destination", "messaging"), ("--id", "a")],
    );
    for (bad, status, expected) in [
        (
            other.replace("messaging:443", "docstore:443"),
            65,
            "line 2: permission b: signature_invalid",
        ),
        (
            other.replace("permission-v1", "permission-v2"),
            65,
            "line 2: version agent-gateway-permission-v2 is not",
        ),
        (
            other.replace("messaging:443", "Messaging:443"),
            65,
            "line 2: unusable destination",
        ),
        (
            other.replace("\"key_id\"", "\"key\""),
            65,
            "line 2: not a line that `export`",
        ),
        (
            other[..other.len() - 20].to_owned(),
            65,
            "line 2 is cut off",
        ),
        (other.trim_end().to_owned(), 65, "line 2 is cut off"),
        ("\n".to_owned(), 65, "line 2: not a line"),
        (
            format!("{{\"version\":\"{}\"}}\n", "x".repeat(40_000)),
            65,
            "line 2 is cut off, or over",
        ),
        (unscoped, 65, ": scope_missing"),
        (stranger, 65, ": signing_key_unknown"),
        (taken, 73, "line 2: permission a is there already"),
    ] {
        let file = office.file("bad.jsonl", format!("{good}{bad}"));
        let (found, said) = office.refused(&["import", &file]);
        assert_eq!(found, status, "{said}");
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(office.count("permission_registry"), 0);
    let missing = text(&office.path("missing.jsonl"));
    assert_eq!(office.refused(&["import", &missing]).0, 66);
    fs::write(office.path("latin1"), b"\xff\n").unwrap();
    assert_eq!(
        office.refused(&["import", &text(&office.path("latin1"))]).0,
        65
    );
}

#[tokio::test]
async fn keys_of_other_holders_are_checked_too() {
    let office = Office::new().await;
    let rsa = text(&office.path("rsa.pem"));
    openssl(&["genpkey", "-algorithm", "RSA", "-out", &rsa]);
    let public = openssl(&["pkey", "-in", &rsa, "-pubout"]);
    let public = office.file("rsa.pub", public);
    let (status, said) = office.refused(&["register-key", KEY, "--public-key", &public]);
    assert_eq!(status, 65);
    assert!(
        said.starts_with("error: public key is not a P-256 key\n"),
        "{said}"
    );
    let (status, _) = office.refused(&["register-key", KEY, "--public-key", &rsa]);
    assert_eq!(status, 65);
    let spki = office.spki();
    office.done(&["register-key", KEY, "--public-key", &spki]);
    let (status, said) = refusal(&office.cli(&["register-key", "org-bob", "--public-key", &spki]));
    assert_eq!(status, 73);
    assert!(said.contains("already registered as org-alice"), "{said}");
    let both = [
        "register-key",
        "x",
        "--public-key",
        &spki,
        "--key-file",
        "y",
    ];
    assert_eq!(office.misused(&both), 64);
}

#[tokio::test]
async fn international_destination_is_told_in_its_normal_form() {
    let office = Office::with_scopes(&[]).await;
    let output = office.cli(&["grant-scope", KEY, "Bücher.example"]);
    assert!(output.status.success(), "{output:?}");
    let (told, said) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(
        told.starts_with("org-alice may delegate xn--bcher-kva.example:443 until "),
        "{told}"
    );
    assert_eq!(said, "note: Bücher.example is xn--bcher-kva.example:443\n");
}
