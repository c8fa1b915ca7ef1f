//! Rotations and imports where there is a root.

use serde_json::{Value, json};
use testbed::authz;

use super::Rooted;
use crate::office::{KEY, refusal, strs, text};

#[tokio::test]
async fn a_rotation_needs_the_root_and_leaves_both_keys_signed() {
    let it = Rooted::signed().await;
    it.done(&strs(&it.grant()));
    let new_file = text(&it.office.path("new.pem"));
    let rotate = [
        "rotate-key",
        KEY,
        "org-alice-2",
        "--key-file",
        &new_file,
        "--yes",
    ];
    let (status, said) = it.refused(&rotate);
    assert_eq!(status, 64);
    assert!(said.starts_with("error: no root's key given"), "{said}");
    // Also where nobody says so: the old key's signature would be lost.
    assert_eq!(it.office.refused(&rotate).0, 64);
    it.done(&it.with_root(&rotate));
    assert_eq!(it.done(&["root", "show"])["unsigned"], json!([]));
    let verified = it.office.cli(&it.trusting(&["verify"]));
    assert!(verified.status.success(), "{verified:?}");
    it.done(&["revoke-key", KEY, "--yes"]);
    assert_eq!(it.denial().await, None);
}

#[tokio::test]
async fn a_whole_registry_moves_with_its_id_and_to_no_other() {
    let it = Rooted::signed().await;
    it.done(&strs(&it.grant()));
    let all = it.office.cli(&["export", "--keys"]).stdout;
    assert_eq!(String::from_utf8(all.clone()).unwrap().lines().count(), 3);
    let database = testbed::database().await.unwrap();
    authz::migrate(&database.url()).unwrap();
    let file = it.office.file("all.jsonl", &all);
    let import = |arguments: &[&str]| {
        let mut command = it.office.command(arguments);
        command
            .env("AGENT_GATEWAY_DATABASE_URL", database.url())
            .output()
            .unwrap()
    };
    let (status, said) = refusal(&import(&it.trusting(&["import", &file])));
    assert_eq!(status, 65);
    assert!(said.starts_with("error: this is registry "), "{said}");
    let other = database
        .query("SELECT registry_id FROM registry_identity")
        .unwrap();
    let judged = [
        "import",
        &file,
        "--trust-root",
        &it.root,
        "--registry-id",
        &other,
    ];
    let (status, said) = refusal(&import(&judged));
    assert_eq!(status, 65);
    assert!(
        said.contains("no trust root made its signature, or not for this registry"),
        "{said}"
    );
    assert_eq!(
        database
            .query("SELECT count(*) FROM principal_signing_keys")
            .unwrap(),
        "0"
    );
    let rename = format!(
        "UPDATE registry_identity SET registry_id = '{}'",
        it.registry_id
    );
    database.execute(&rename).unwrap();
    let taken = import(&it.trusting(&["import", &file, "--json"]));
    let taken: Value = serde_json::from_slice(&taken.stdout).unwrap();
    assert_eq!(taken, json!({"imported": 3, "unchanged": 0}));
    assert!(import(&it.trusting(&["verify"])).status.success());
}

#[tokio::test]
async fn of_lines_with_one_id_the_first_is_imported_and_another_named() {
    let rooted = Rooted::signed().await;
    rooted.done(&rooted.with_root(&["grant-scope", KEY, "messaging"]));
    let offline = |destination: &str| {
        let arguments = rooted
            .office
            .grant_arguments(&[("--destination", destination), ("--id", "perm-1")]);
        let output = rooted
            .office
            .cli(&[&strs(&arguments)[..], &["--offline"]].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let (docstore, messaging) = (offline("docstore"), offline("messaging"));
    let unsigned = docstore.replace("docstore:443", "elsewhere:443");
    for (lines, status, expected) in [
        (
            [&docstore, &messaging],
            73,
            "line 2: permission perm-1 is there already",
        ),
        (
            [&messaging, &docstore],
            73,
            "line 2: permission perm-1 is there already",
        ),
        ([&unsigned, &docstore], 65, "line 1: permission perm-1: "),
    ] {
        let file = rooted
            .office
            .file("twice.jsonl", lines.map(String::as_str).concat());
        let (found, said) = rooted.refused(&["import", &file]);
        assert_eq!(found, status, "{said}");
        assert!(said.contains(expected), "{said}");
        assert_eq!(rooted.office.count("permission_registry"), 0);
    }
    let file = rooted.office.file("twice.jsonl", docstore.repeat(2));
    assert_eq!(
        rooted.done(&["import", &file]),
        json!({"imported": 1, "unchanged": 1})
    );
    assert_eq!(rooted.denial().await, None);
}
