//! Agents' keys for proofs of context as rows: verified, shown, carried from registry to registry.

use std::fs;

use poca::SecretKey;
use serde_json::{Value, json};
use testbed::rows::{PocaKeyRow, Principal, Times};

use crate::office::{AGENT, KEY, Office, openssl, strs, text};

const DAY: i64 = 86_400;

/// Exit status and the lines of JSON of `verify`.
fn verify(office: &Office) -> (i32, Vec<Value>) {
    let output = office.cli(&["verify", "--json"]);
    let told = String::from_utf8(output.stdout).unwrap();
    let lines = told.lines().map(|line| serde_json::from_str(line).unwrap());
    (output.status.code().unwrap(), lines.collect())
}

fn bad(id: &str, fault: &str) -> Value {
    json!({"table": "PoCA key", "id": id, "fault": fault})
}

#[tokio::test]
async fn verify_names_each_bad_row_and_no_other() {
    let office = Office::new().await;
    let alice = Principal::registered(&office.database, &["echo:443"]).unwrap();
    for (id, times) in [
        ("good", Times::from_now(-3600, 30 * DAY)),
        ("good-expired", Times::from_now(-90 * DAY, -80 * DAY)),
        ("good-future", Times::from_now(DAY, 2 * DAY)),
        ("good-revoked", Times::from_now(-90 * DAY, 90 * DAY)),
        // It counts until the scope ends.
        ("good-long", Times::from_now(-3600, 900 * DAY)),
        ("bad-agent", Times::default()),
        ("bad-ended", Times::from_now(-90 * DAY, -80 * DAY)),
        ("bad-key", Times::default()),
        ("bad-late", Times::from_now(800 * DAY, 900 * DAY)),
        ("bad-stretched", Times::default()),
        ("bad-year", Times::default()),
    ] {
        let key = office.poca_key().to_bytes();
        let row = PocaKeyRow {
            times,
            ..PocaKeyRow::new(id, AGENT, key)
        };
        alice.grant_poca_key(&office.database, &row).unwrap();
    }
    // Signed, but anybody could sign with it.
    let weak = PocaKeyRow::new("bad-weak", AGENT, [0; 32]);
    alice.grant_poca_key(&office.database, &weak).unwrap();
    let other = SecretKey::from_seed(&[9; 32]).public_key().to_bytes();
    let other = hex::encode(other);
    let set = "UPDATE poca_keys SET";
    let change = format!(
        "{set} revoked_at = now() WHERE poca_key_id = 'good-revoked';
         {set} subject_identity = 'agent-beta' WHERE poca_key_id = 'bad-agent';
         {set} signature = '\\x00' WHERE poca_key_id = 'bad-ended';
         {set} ed25519_public_key = '\\x{other}' WHERE poca_key_id = 'bad-key';
         {set} not_after = not_after + interval '1 us' WHERE poca_key_id = 'bad-stretched';
         {set} not_after = '20000-01-01' WHERE poca_key_id = 'bad-year'"
    );
    office.database.execute(&change).unwrap();
    let (status, lines) = verify(&office);
    assert_eq!(
        lines,
        [
            bad("bad-agent", "signature_invalid"),
            bad("bad-ended", "signature_invalid"),
            bad("bad-key", "signature_invalid"),
            bad("bad-late", "signing_key_inactive"),
            bad("bad-stretched", "signature_invalid"),
            bad("bad-weak", "unusable ed25519_public_key"),
            bad("bad-year", "unusable not_before"),
            json!({"checked": 14, "bad": 7}),
        ]
    );
    assert_eq!(status, 1);

    let change = "DELETE FROM poca_keys WHERE poca_key_id LIKE 'bad%'";
    office.database.execute(change).unwrap();
    assert_eq!(verify(&office), (0, vec![json!({"checked": 7, "bad": 0})]));
    office.done(&["revoke-scope", "org-alice", "echo", "--yes"]);
    let named: Vec<_> = ["good", "good-future", "good-long"]
        .map(|id| bad(id, "scope_missing"))
        .into();
    assert_eq!(verify(&office).1[..3], named);
    office.done(&["revoke-key", "org-alice", "--yes"]);
    assert_eq!(verify(&office).1[0], bad("good", "signing_key_inactive"));
}

#[tokio::test]
async fn verify_goes_through_more_rows_than_it_holds_at_a_time() {
    let office = Office::with_scopes(&["echo"]).await;
    office.grant_poca_key(&[("--id", "poca-1")]);
    // Copies under other ids: none of them is what was signed.
    let copies = "INSERT INTO poca_keys SELECT 'copy-' || n, signing_key_id, subject_identity,
            ed25519_public_key, not_before, not_after, NULL, signature
        FROM poca_keys, generate_series(1, 4500) n";
    office.database.execute(copies).unwrap();
    let (status, lines) = verify(&office);
    assert_eq!(lines.last(), Some(&json!({"checked": 4503, "bad": 4500})));
    assert_eq!((status, lines.len()), (1, 4501));
}

#[tokio::test]
async fn show_tells_all_about_a_key() {
    let office = Office::with_scopes(&["echo", "todos"]).await;
    office.grant_poca_key(&[("--id", "poca-1")]);
    let shown = office.done(&["show", "poca-1"]);
    assert_eq!(shown["identity"], AGENT);
    assert_eq!(shown["public_key"], office.poca_key().to_string());
    assert_eq!(shown["key_id"], KEY);
    assert_eq!(shown["signature_verifies"], true);
    assert_eq!(shown["verdict"], "counts");
    assert_eq!(shown["destinations"], json!(["echo:443", "todos:443"]));
    office.done(&["revoke-scope", KEY, "todos", "--yes"]);
    let shown = office.done(&["show", "poca-1"]);
    assert_eq!(shown["destinations"], json!(["echo:443"]));
    office.done(&["revoke-poca-key", "--id", "poca-1", "--yes"]);
    let shown = office.done(&["show", "poca-1"]);
    assert_eq!(
        (&shown["verdict"], &shown["revoked"], &shown["destinations"]),
        (&json!("permission_revoked"), &json!(true), &json!([]))
    );
    let set = "UPDATE poca_keys SET ed25519_public_key = decode(repeat('00', 32), 'hex')";
    office.database.execute(set).unwrap();
    let shown = office.done(&["show", "poca-1"]);
    assert_eq!(shown["unusable_column"], "ed25519_public_key");
}

/// What an offline grant writes.
fn offline(office: &Office, changed: &[(&str, &str)]) -> String {
    let arguments = office.poca_arguments(changed);
    let mut command = office.command(&[&strs(&arguments)[..], &["--offline"]].concat());
    command.env_remove("AGENT_GATEWAY_DATABASE_URL");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn offline_grant_is_imported_where_the_registry_is() {
    let office = Office::with_scopes(&["echo"]).await;
    let line = offline(&office, &[("--id", "poca-1")]);
    assert_eq!(office.count("poca_keys"), 0);
    let file = office.file("signed.jsonl", &line);
    let imported = office.done(&["import", &file]);
    assert_eq!(imported, json!({"imported": 1, "unchanged": 0}));
    assert_eq!(office.proving("echo").await, [office.poca_key()]);
    let again = office.done(&["import", &file]);
    assert_eq!(again, json!({"imported": 0, "unchanged": 1}));
    let exported = office.cli(&["export", "--id", "poca-1"]);
    assert_eq!(String::from_utf8(exported.stdout).unwrap(), line);
    // As it is there, also revoked.
    office.done(&["revoke-poca-key", "--id", "poca-1", "--yes"]);
    office.done(&["import", &file]);
    assert_eq!(office.proving("echo").await, []);
}

#[tokio::test]
async fn line_that_is_bad_in_any_way_is_imported_not_at_all() {
    let office = Office::with_scopes(&["echo"]).await;
    let good = offline(&office, &[("--id", "poca-1")]);
    office.grant_poca_key(&[("--id", "taken")]);
    let bob = text(&office.path("bob.pem"));
    office.done(&["register-key", "org-bob", "--key-file", &bob]);
    let of_bob = [("--key", "org-bob"), ("--key-file", &*bob)];
    let unscoped = offline(&office, &of_bob);
    let unknown = offline(&office, &[("--key", "org-carol")]);
    let taken = offline(&office, &[("--id", "taken")]);
    let hex = hex::encode(office.poca_key().to_bytes());
    let changed = |from: &str, to: &str| {
        let changed = good.replace(from, to);
        assert_ne!(changed, good, "{from}");
        changed
    };
    let zero = "00".repeat(32);
    for (line, status, expected) in [
        (
            changed(AGENT, "agent-beta"),
            65,
            "PoCA key poca-1: signature_invalid",
        ),
        (
            changed("poca-1", "poca-2"),
            65,
            "PoCA key poca-2: signature_invalid",
        ),
        (
            changed(&hex, &zero),
            65,
            "line 2: unusable ed25519_public_key",
        ),
        (
            changed(&hex, "00"),
            65,
            "line 2: unusable ed25519_public_key",
        ),
        (
            changed("poca-key-v1", "poca-key-v9"),
            65,
            "version agent-gateway-poca-key-v9 is not",
        ),
        (
            changed("poca-key-v1", "permission-v1"),
            65,
            "line 2: not a line that",
        ),
        (
            changed("\"identity\"", "\"destination\":\"echo:443\",\"identity\""),
            65,
            "line 2: not a",
        ),
        (good.trim().to_owned(), 65, "line 2 is cut off"),
        (unscoped, 65, "scope_missing"),
        (unknown, 65, "signing_key_unknown"),
        (
            taken,
            73,
            "PoCA key taken is there already, and another one",
        ),
    ] {
        let first = offline(&office, &[("--id", "first")]);
        let file = office.file("bad.jsonl", format!("{first}{line}"));
        let (found, said) = office.refused(&["import", &file]);
        assert_eq!(found, status, "{said}");
        assert!(said.contains(expected), "{expected}: {said}");
    }
    // A forged signature over what is there already.
    let file = office.file("good.jsonl", &good);
    office.done(&["import", &file]);
    let mut forged: Value = serde_json::from_str(&good).unwrap();
    forged["signature"] =
        serde_json::from_str::<Value>(&offline(&office, &[])).unwrap()["signature"].clone();
    let file = office.file("forged.jsonl", format!("{forged}\n"));
    let (status, said) = office.refused(&["import", &file]);
    assert_eq!(status, 65);
    assert!(
        said.contains("PoCA key poca-1: signature_invalid"),
        "{said}"
    );
}

#[tokio::test]
async fn rows_travel_with_keys_and_scopes_and_permissions() {
    let office = Office::with_scopes(&["echo"]).await;
    office.grant(&[("--id", "perm-1"), ("--destination", "echo")]);
    office.grant_poca_key(&[("--id", "poca-1")]);
    office.grant_poca_key(&[("--id", "poca-2"), ("--identity", "agent-beta")]);
    office.done(&["revoke-poca-key", "--id", "poca-2", "--yes"]);
    let exported = |arguments: &[&str]| {
        let output = office.cli(&[&["export"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let ids = |lines: &str| -> Vec<String> {
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        let id = |line: Value| ["permission_id", "poca_key_id"].map(|name| line[name].clone());
        let named = lines.flat_map(id).filter(|id| !id.is_null());
        named.map(|id| id.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&exported(&[])), ["perm-1", "poca-1", "poca-2"]);
    assert_eq!(ids(&exported(&["--identity", "agent-beta"])), ["poca-2"]);
    assert_eq!(ids(&exported(&["--destination", "echo"])), ["perm-1"]);
    assert_eq!(ids(&exported(&["--spki", &office.spki()])), ["perm-1"]);
    assert_eq!(ids(&exported(&["--id", "poca-1"])), ["poca-1"]);

    let all = exported(&["--keys"]);
    // The others rest on keys and scopes, also where these come after them.
    let mut lines: Vec<_> = all.lines().collect();
    lines.rotate_left(2);
    let lines = lines.join("\n") + "\n";
    let other = Office::new().await;
    let file = other.file("all.jsonl", lines);
    assert_eq!(other.done(&["import", &file])["imported"], 5);
    assert_eq!(other.proving("echo").await, [office.poca_key()]);
    let output = other.cli(&["export"]);
    let exported = String::from_utf8(output.stdout).unwrap();
    assert!(all.ends_with(&exported), "{exported}");
    assert_eq!(verify(&other), (0, vec![json!({"checked": 5, "bad": 0})]));
}

/// Made by openssl alone, from the documented lines.
#[tokio::test]
async fn row_signed_by_openssl_is_imported() {
    let office = Office::with_scopes(&["echo"]).await;
    let times = Times::from_now(0, DAY);
    let key = hex::encode(office.poca_key().to_bytes());
    let signed = [
        "agent-gateway-poca-key-v1",
        "poca_key_id=poca-1",
        "signing_key_id=org-alice",
        "subject_identity=agent-alpha",
        &format!("ed25519_public_key={key}"),
        &format!("not_before={}", times.not_before),
        &format!("not_after={}", times.not_after),
        "",
    ]
    .join("\n");
    let signed = office.file("signed", signed);
    let signature = text(&office.path("signature"));
    openssl(&[
        "dgst",
        "-sha256",
        "-sign",
        &office.key_file(),
        "-out",
        &signature,
        &signed,
    ]);
    let line = json!({
        "version": "agent-gateway-poca-key-v1",
        "poca_key_id": "poca-1",
        "key_id": KEY,
        "identity": AGENT,
        "ed25519_public_key": key,
        "not_before": times.not_before,
        "not_after": times.not_after,
        "revoked_at": null,
        "signature": hex::encode(fs::read(&signature).unwrap()),
    });
    let file = office.file("signed.jsonl", format!("{line}\n"));
    assert_eq!(office.done(&["import", &file])["imported"], 1);
    assert_eq!(office.proving("echo").await, [office.poca_key()]);
}

#[tokio::test]
async fn new_key_of_the_principal_signs_them_again() {
    let office = Office::with_scopes(&["echo"]).await;
    office.grant_poca_key(&[("--id", "poca-1")]);
    office.grant_poca_key(&[("--id", "revoked")]);
    office.done(&["revoke-poca-key", "--id", "revoked", "--yes"]);
    office.grant_poca_key(&[("--id", "tampered")]);
    let set = "UPDATE poca_keys SET subject_identity = 'agent-beta' WHERE poca_key_id = 'tampered'";
    office.database.execute(set).unwrap();
    let next = text(&office.path("next.pem"));
    let rotate = [
        "rotate-key",
        KEY,
        "org-alice-2",
        "--key-file",
        &next,
        "--yes",
        "--json",
    ];
    let output = office.cli(&rotate);
    assert!(output.status.success(), "{output:?}");
    let plan = String::from_utf8(output.stderr).unwrap();
    let line = format!("\nsign again  poca-1  agent-alpha  {}\n", office.poca_key());
    assert!(plan.contains(&line), "{plan}");
    assert!(
        plan.contains("\nleave       tampered, which nobody can use\n"),
        "{plan}"
    );
    assert!(!plan.contains("revoked"), "{plan}");
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(done["poca_keys"].as_array().unwrap().len(), 1);
    assert_eq!(done["poca_keys"][0]["old"], "poca-1");
    assert_eq!(office.proving("echo").await, [office.poca_key(); 2]);

    // The old key's end is not theirs.
    office.done(&["revoke-key", KEY, "--yes"]);
    assert_eq!(office.proving("echo").await, [office.poca_key()]);
    let new = done["poca_keys"][0]["new"].as_str().unwrap();
    let (old, new) = (
        office.done(&["show", "poca-1"]),
        office.done(&["show", new]),
    );
    assert_eq!(old["verdict"], "signing_key_inactive");
    assert_eq!(
        (&new["verdict"], &new["key_id"]),
        (&json!("counts"), &json!("org-alice-2"))
    );
    assert_eq!(new["not_after"], old["not_after"]);
    assert_eq!(new["public_key"], old["public_key"]);
}

#[tokio::test]
async fn impact_tells_which_proofs_would_count_no_longer() {
    let office = Office::with_scopes(&["echo", "todos"]).await;
    let bob = text(&office.path("bob.pem"));
    office.done(&["register-key", "org-bob", "--key-file", &bob]);
    office.done(&["grant-scope", "org-bob", "echo"]);
    office.grant_poca_key(&[("--id", "a")]);
    office.grant_poca_key(&[("--id", "b"), ("--key", "org-bob"), ("--key-file", &bob)]);
    // Another key of the agent's keeps no calls that this one proves.
    let next = SecretKey::from_seed(&[9; 32]).public_key().to_string();
    office.grant_poca_key(&[("--id", "next"), ("--public-key", &next)]);
    let before = office.rows();
    let outcome = |arguments: &[&str]| {
        let told = office.done(&[&["impact"], arguments].concat());
        ["loses", "keeps"].map(|what| -> Vec<String> {
            let rows = told["proofs"][what].as_array().unwrap().iter();
            let field = |row: &Value, name: &str| row[name].as_str().unwrap_or("-").to_owned();
            rows.map(|row| ["destination", "poca_key_id", "then_by"].map(|name| field(row, name)))
                .map(|fields| fields.join(" "))
                .collect()
        })
    };
    assert_eq!(
        outcome(&["--revoke-key", KEY]),
        [
            vec!["todos:443 a -", "echo:443 next -", "todos:443 next -"],
            vec!["echo:443 a b"]
        ]
    );
    assert_eq!(
        outcome(&["--revoke-key", "org-bob"]),
        [vec![], vec!["echo:443 b a"]]
    );
    assert_eq!(
        outcome(&["--revoke-scope", KEY, "echo"]),
        [vec!["echo:443 next -"], vec!["echo:443 a b"]]
    );
    assert_eq!(
        outcome(&["--revoke-poca-key", "a"]),
        [vec!["todos:443 a -"], vec!["echo:443 a b"]]
    );
    let none: [Vec<&str>; 2] = [vec![], vec![]];
    assert_eq!(outcome(&["--revoke-poca-key", "c"]), none);
    assert_eq!(outcome(&["--revoke", "--identity", AGENT]), none);
    assert_eq!(office.rows(), before);
    let told = office.cli(&["impact", "--revoke-poca-key", "c"]);
    assert_eq!(told.stdout, b"nobody loses anything\n");
    office.done(&["revoke-poca-key", "--id", "a", "--yes"]);
    assert_eq!(outcome(&["--revoke-poca-key", "a"]), none);
}
