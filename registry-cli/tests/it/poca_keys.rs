//! Agents' keys for proofs of context: granted, listed, taken back.

use permission::PocaKey;
use serde_json::{Value, json};
use testbed::Swtpm;
use testbed::rows::Times;

use crate::office::{AGENT, KEY, Office, openssl, strs, text};
use crate::user::User;

impl Office {
    /// `grant-poca-key` with the usual arguments, but for those in `changed`.
    pub(crate) fn poca_arguments(&self, changed: &[(&str, &str)]) -> Vec<String> {
        let (key_file, public_key) = (self.key_file(), self.poca_key().to_string());
        let usual = [
            ("--key", KEY),
            ("--identity", AGENT),
            ("--public-key", &public_key),
            ("--key-file", &key_file),
        ];
        let kept = usual
            .iter()
            .filter(|(name, _)| changed.iter().all(|(other, _)| name != other));
        let mut arguments = vec!["grant-poca-key".to_owned()];
        for (name, value) in kept.chain(changed) {
            arguments.push(format!("{name}={value}"));
        }
        arguments
    }

    pub(crate) fn grant_poca_key(&self, changed: &[(&str, &str)]) -> Value {
        self.done(&strs(&self.poca_arguments(changed)))
    }

    fn refused_poca_key(&self, changed: &[(&str, &str)]) -> (i32, String) {
        self.refused(&strs(&self.poca_arguments(changed)))
    }
}

#[tokio::test]
async fn key_signed_in_the_tpm_counts_for_the_tools_of_its_principal_alone() {
    let office = Office::new().await;
    let tpm = Swtpm::start().unwrap();
    let tcti = tpm.tcti();
    office.done(&["register-key", KEY, "--tcti", &tcti]);
    office.done(&["grant-scope", KEY, "echo:8081", "todos:8082"]);
    let public_key = office.file("poca.pub", format!("{}\n", office.poca_key()));
    let granted = office.done(&[
        "grant-poca-key",
        "--key",
        KEY,
        "--identity",
        AGENT,
        "--public-key",
        &public_key,
        "--tcti",
        &tcti,
    ]);
    let key = &granted["poca_keys"][0];
    assert_eq!(key["public_key"], office.poca_key().to_string());
    assert_eq!(key["destinations"], json!(["echo:8081", "todos:8082"]));
    for to in ["echo:8081", "todos:8082"] {
        assert_eq!(office.proving(to).await, [office.poca_key()], "{to}");
    }
    assert_eq!(office.proving("elsewhere").await, []);

    let listed = office.done(&["list", "poca-keys"]);
    assert_eq!(listed[0]["poca_key_id"], key["poca_key_id"]);
    let id = key["poca_key_id"].as_str().unwrap();
    let revoked = office.done(&["revoke-poca-key", "--yes", "--id", id]);
    assert_eq!(revoked["revoked"], json!([id]));
    assert_eq!(office.proving("echo:8081").await, []);
}

/// Text and verdict are those of psql and openssl: a second implementation.
#[tokio::test]
async fn signature_verifies_with_openssl_over_text_made_from_the_row() {
    let office = Office::with_scopes(&["echo"]).await;
    office.grant_poca_key(&[("--id", "poca-1")]);
    let time = |column| {
        format!("to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
    };
    let signed = office.database.query(&format!(
        "SELECT concat('agent-gateway-poca-key-v1', E'\\n',
             'poca_key_id=', poca_key_id, E'\\n',
             'signing_key_id=', signing_key_id, E'\\n',
             'subject_identity=', subject_identity, E'\\n',
             'ed25519_public_key=', encode(ed25519_public_key, 'hex'), E'\\n',
             'not_before=', {}, E'\\n', 'not_after=', {})
         FROM poca_keys",
        time("not_before"),
        time("not_after")
    ));
    let signed = signed.unwrap() + "\n";
    assert!(signed.contains("poca_key_id=poca-1\nsigning_key_id=org-alice\n"));

    let bytes = |sql: &str| hex::decode(office.database.query(sql).unwrap()).unwrap();
    let signature = bytes("SELECT encode(signature, 'hex') FROM poca_keys");
    let key = bytes("SELECT encode(public_key_spki_der, 'hex') FROM principal_signing_keys");
    let (key, pem) = (office.file("key.der", key), text(&office.path("key.pem")));
    openssl(&[
        "pkey", "-pubin", "-inform", "DER", "-in", &key, "-out", &pem,
    ]);
    let signature = office.file("signature", signature);
    let signed = office.file("signed", signed);
    let verdict = openssl(&[
        "dgst",
        "-sha256",
        "-verify",
        &pem,
        "-signature",
        &signature,
        &signed,
    ]);
    assert_eq!(verdict, "Verified OK\n");
}

#[tokio::test]
async fn text_of_a_dry_run_signed_by_openssl_is_granted() {
    let office = Office::with_scopes(&["echo"]).await;
    let arguments = office.poca_arguments(&[("--id", "poca-1"), ("--destination", "echo")]);
    let before = office.rows();
    let output = office.cli(&[&strs(&arguments)[..], &["--dry-run"]].concat());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(office.rows(), before);
    let key = PocaKey::from_canonical(&output.stdout).unwrap();
    assert_eq!(key.ed25519_public_key, office.poca_key().to_bytes());

    let canonical = office.file("poca.txt", &output.stdout);
    let signature = text(&office.path("poca.sig"));
    let sign = |canonical: &str| {
        let key = office.key_file();
        openssl(&[
            "dgst", "-sha256", "-sign", &key, "-out", &signature, canonical,
        ]);
    };
    let take = [
        "grant-poca-key",
        "--text",
        &canonical,
        "--signature",
        &signature,
    ];
    let other = String::from_utf8(output.stdout).unwrap();
    sign(&office.file("other.txt", other.replace("poca-1", "poca-2")));
    let (status, said) = office.refused(&take);
    assert_eq!(status, 65);
    let denied = "the signed PoCA key would be denied: signature_invalid";
    assert!(said.contains(denied), "{said}");
    let permission = ["grant", "--text", &canonical, "--signature", &signature];
    let (status, said) = office.refused(&permission);
    assert_eq!(status, 65);
    assert!(
        said.contains("line 1 is not what an agent-gateway-permission-v1 text"),
        "{said}"
    );

    sign(&canonical);
    let granted = office.done(&take);
    assert_eq!(granted["poca_keys"][0]["destinations"], json!(["echo:443"]));
    assert_eq!(office.proving("echo").await, [office.poca_key()]);
    assert_eq!(office.refused(&take).0, 73);
}

#[tokio::test]
async fn an_id_is_granted_again_only_if_told_so() {
    let office = Office::with_scopes(&["echo"]).await;
    office.grant_poca_key(&[("--id", "poca-1")]);
    office.done(&["revoke-poca-key", "--yes", "--id", "poca-1"]);
    let (status, said) = office.refused_poca_key(&[("--id", "poca-1")]);
    assert_eq!(status, 73);
    assert!(
        said.starts_with("error: PoCA key id is already registered\n"),
        "{said}"
    );
    assert!(said.contains("--replace"), "{said}");
    assert_eq!(office.proving("echo").await, []);
    let again = office.poca_arguments(&[("--id", "poca-1")]);
    office.done(&[&strs(&again)[..], &["--replace"]].concat());
    assert_eq!(office.proving("echo").await, [office.poca_key()]);
    assert_eq!(office.count("poca_keys"), 1);
}

#[tokio::test]
async fn what_could_never_count_is_refused() {
    let office = Office::with_scopes(&[]).await;
    let (status, said) = office.refused_poca_key(&[]);
    assert_eq!(status, 65);
    assert!(
        said.starts_with("error: org-alice has no scope\n"),
        "{said}"
    );
    assert!(said.contains("grant-scope org-alice DEST"), "{said}");

    office.done(&["grant-scope", KEY, "echo", "--valid", "10d"]);
    let (status, said) = office.refused_poca_key(&[]);
    assert_eq!(status, 65);
    assert!(
        said.contains("the scope of org-alice for echo:443 ends at "),
        "{said}"
    );
    assert!(said.contains("a shorter --valid, such as 9d"), "{said}");
    let (status, said) = office.refused_poca_key(&[("--destination", "todos"), ("--valid", "9d")]);
    assert_eq!(status, 65);
    assert!(
        said.contains("the scope of org-alice for todos:443 is missing"),
        "{said}"
    );
    office.grant_poca_key(&[("--destination", "echo"), ("--valid", "9d")]);

    // One scope is enough, but not for what it isn't for.
    office.done(&["grant-scope", KEY, "docstore"]);
    assert_eq!(office.refused_poca_key(&[("--destination", "echo")]).0, 65);
    let granted = office.grant_poca_key(&[]);
    let destinations = &granted["poca_keys"][0]["destinations"];
    assert_eq!(*destinations, json!(["docstore:443", "echo:443"]));
    office.done(&["revoke-scope", KEY, "docstore", "--yes"]);
    assert_eq!(office.refused_poca_key(&[]).0, 65);

    let (status, said) = office.refused_poca_key(&[("--key", "org-bob")]);
    assert_eq!(status, 65);
    assert!(said.contains("no key org-bob is registered"), "{said}");
    office.done(&[
        "register-key",
        "org-bob",
        "--key-file",
        &text(&office.path("bob.pem")),
    ]);
    office.done(&["grant-scope", "org-bob", "echo"]);
    let (status, said) = office.refused_poca_key(&[("--key", "org-bob")]);
    assert_eq!(status, 65);
    assert!(
        said.contains("is not the one registered as org-bob"),
        "{said}"
    );
    let nowhere = text(&office.path("nowhere.pem"));
    assert_eq!(
        office
            .refused_poca_key(&[("--key-file", &nowhere), ("--valid", "1d")])
            .0,
        66
    );
    office.done(&["revoke-key", KEY, "--yes"]);
    let (status, said) = office.refused_poca_key(&[("--valid", "1d")]);
    assert_eq!(status, 65);
    assert!(said.contains("key org-alice was revoked"), "{said}");
}

#[tokio::test]
async fn bad_input_is_refused() {
    let office = Office::with_scopes(&["echo"]).await;
    let long = "x".repeat(10_000);
    let spki = office.file("spki.hex", office.spki());
    let large = office.file("large", "A".repeat(20_000));
    let secret = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let secret = office.file("secret.pem", secret);
    // 32 zero bytes: a point of small order, under which anybody could sign.
    let weak = "A".repeat(43);
    for (option, value, expected) in [
        ("--identity", "agent\nalpha", 65),
        ("--identity", "", 65),
        ("--identity", &long, 65),
        ("--id", "poca\u{7}1", 65),
        ("--id", "", 65),
        ("--public-key", "/nowhere", 66),
        ("--public-key", "", 66),
        ("--public-key", &weak, 65),
        ("--public-key", &spki, 65),
        ("--public-key", &large, 65),
        ("--public-key", &secret, 65),
        ("--destination", "echo/x", 65),
        ("--key", "org\nalice", 65),
    ] {
        let (status, said) = office.refused_poca_key(&[(option, value)]);
        assert_eq!(status, expected, "{option} {value:?}: {said}");
        assert!(!said.contains("AAAA"), "{said}");
    }
    let (usual, public_key) = (office.poca_arguments(&[]), office.poca_key().to_string());
    for extra in [
        vec!["--valid", "0d"],
        vec!["--replace"],
        vec!["--offline", "--destination", "echo"],
        vec!["--spki", "00"],
        vec!["--text", "t", "--signature", "s"],
    ] {
        let output = office.cli(&[&strs(&usual)[..], &extra].concat());
        assert_eq!(output.status.code(), Some(64), "{extra:?}: {output:?}");
    }
    let nobody = ["grant-poca-key", "--key", KEY, "--public-key", &public_key];
    assert_eq!(office.cli(&nobody).status.code(), Some(64));
    assert_eq!(office.count("poca_keys"), 0);
}

/// Keys of two agents, by two principals.
async fn several() -> Office {
    let office = Office::with_scopes(&["echo"]).await;
    let bob = text(&office.path("bob.pem"));
    office.done(&["register-key", "org-bob", "--key-file", &bob]);
    office.done(&["grant-scope", "org-bob", "echo"]);
    office.grant_poca_key(&[("--id", "a-1")]);
    office.grant_poca_key(&[("--id", "a-2"), ("--key", "org-bob"), ("--key-file", &bob)]);
    office.grant_poca_key(&[("--id", "b-1"), ("--identity", "agent-beta")]);
    let next = poca::SecretKey::from_seed(&[9; 32])
        .public_key()
        .to_string();
    office.grant_poca_key(&[
        ("--id", "b-2"),
        ("--identity", "agent-beta"),
        ("--public-key", &next),
    ]);
    office
}

fn ids(listed: &Value) -> Vec<&str> {
    let rows = listed.as_array().unwrap().iter();
    rows.map(|row| row["poca_key_id"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn keys_are_listed_with_filters_and_states() {
    let office = several().await;
    let key = office.poca_key().to_string();
    let past = Times::from_now(-7200, -3600);
    office
        .database
        .execute(&format!(
            "UPDATE poca_keys SET not_before = '{}', not_after = '{}' WHERE poca_key_id = 'b-1'",
            past.not_before, past.not_after
        ))
        .unwrap();
    for (filter, expected) in [
        (vec![], vec!["a-1", "a-2", "b-1", "b-2"]),
        (vec!["--id", "a-2"], vec!["a-2"]),
        (vec!["--identity", "agent-beta"], vec!["b-1", "b-2"]),
        (vec!["--key", "org-bob"], vec!["a-2"]),
        (vec!["--public-key", &key], vec!["a-1", "a-2", "b-1"]),
        (vec!["--public-key", &key, "--key", KEY], vec!["a-1", "b-1"]),
        (vec!["--state", "expired"], vec!["b-1"]),
        (
            vec!["--state", "active", "--identity", "agent-beta"],
            vec!["b-2"],
        ),
        (vec!["--id", "c"], vec![]),
    ] {
        let listed = office.done(&[&["list", "poca-keys"][..], &filter].concat());
        assert_eq!(ids(&listed), expected, "{filter:?}");
    }
    for (what, filter) in [
        ("poca-keys", ["--destination", "echo"]),
        ("poca-keys", ["--spki", "00"]),
        ("permissions", ["--public-key", &key]),
        ("keys", ["--public-key", &key]),
        ("scopes", ["--public-key", &key]),
    ] {
        let (status, said) = office.refused(&["list", what, filter[0], filter[1]]);
        assert_eq!(status, 64, "{said}");
    }
}

#[tokio::test]
async fn all_that_is_given_must_match_and_nothing_given_is_nothing() {
    let office = several().await;
    let key = office.poca_key().to_string();
    let revoke = |arguments: &[&str]| {
        let revoked = office.done(&[&["revoke-poca-key", "--yes"], arguments].concat());
        revoked["revoked"].clone()
    };
    assert_eq!(office.refused(&["revoke-poca-key", "--yes"]).0, 64);
    let two = ["--identity", AGENT, "--public-key", &key];
    let (status, said) = office.refused(&[&["revoke-poca-key", "--yes"], &two[..]].concat());
    assert_eq!(status, 64);
    assert!(said.contains("a PoCA key must match"), "{said}");
    let none = ["revoke-poca-key", "--yes", "--id", "c"];
    let (status, said) = office.refused(&none);
    assert_eq!(status, 1);
    assert!(said.contains("no PoCA key matches"), "{said}");
    // A permission's id is none of theirs.
    office.grant(&[("--id", "perm-1"), ("--destination", "echo")]);
    assert_eq!(
        office
            .refused(&["revoke-poca-key", "--yes", "--id", "perm-1"])
            .0,
        1
    );
    assert_eq!(office.refused(&["revoke", "--yes", "--id", "a-1"]).0, 1);

    let alices = ["--all-of", "--key", KEY, "--identity", AGENT];
    assert_eq!(revoke(&alices), json!(["a-1"]));
    assert_eq!(revoke(&["--public-key", &key]), json!(["a-2", "b-1"]));
    assert_eq!(
        ids(&office.done(&["list", "poca-keys", "--state", "active"])),
        ["b-2"]
    );
}

#[tokio::test]
async fn user_sees_what_matches_and_is_asked() {
    let office = several().await;
    office.grant(&[("--id", "perm-1"), ("--destination", "echo")]);
    for (command, question) in [
        (
            &["revoke-poca-key", "--identity", AGENT][..],
            "revoke 2 PoCA keys?",
        ),
        (
            &["revoke-key", KEY],
            "revoke the key org-alice, which signed 1 permission and 3 PoCA keys?",
        ),
        (
            &["revoke-scope", KEY, "echo"],
            "revoke the scope of org-alice for echo:443, on which 1 permission and 3 PoCA keys \
             may rest?",
        ),
    ] {
        let before = office.rows();
        let mut user = User::runs(&office, command).sits_down();
        user.is_asked(&format!("{question} [y/N] "));
        user.types("n\n");
        let (status, seen) = user.leaves();
        assert_eq!(status, 1, "{seen}");
        assert!(seen.contains("a-1          agent-alpha"), "{seen}");
        assert!(seen.contains(&office.poca_key().to_string()), "{seen}");
        assert_eq!(office.rows(), before);
    }
    let mut user = User::runs(&office, &["revoke-poca-key", "--identity", AGENT]).sits_down();
    user.is_asked("[y/N] ");
    // Granted meanwhile: not what was agreed to.
    office.grant_poca_key(&[("--id", "a-3")]);
    user.types("y\n");
    let (status, seen) = user.leaves();
    assert_eq!(status, 0, "{seen}");
    let active = office.done(&[
        "list",
        "poca-keys",
        "--identity",
        AGENT,
        "--state",
        "active",
    ]);
    assert_eq!(ids(&active), ["a-3"]);
}
