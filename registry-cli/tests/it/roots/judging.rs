//! How the commands judge by the roots that they are told.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use super::Rooted;
use crate::office::{AGENT, KEY, Office, strs, text};

#[tokio::test]
async fn every_command_judges_by_the_roots_and_names_what_they_did_not_sign() {
    let it = Rooted::signed().await;
    it.done(&strs(&it.grant()));
    let spki = it.office.spki();
    let request = [
        "--identity",
        AGENT,
        "--spki",
        &spki,
        "--destination",
        "docstore",
    ];
    let can_i = |office: &Office| {
        let arguments = [&["can-i", "--json"][..], &request].concat();
        let output = office.cli(&it.trusting(&arguments));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), said["reason"].clone())
    };
    assert_eq!(can_i(&it.office), (0, Value::Null));
    let keys = "UPDATE principal_signing_keys SET root_signature";
    let scopes = "UPDATE principal_key_permissions SET root_signature";
    let kept = it
        .office
        .database
        .query("SELECT encode(root_signature, 'hex') FROM principal_signing_keys");
    let put_back = format!("{keys} = '\\x{}'", kept.unwrap());
    for (change, undo, reason, listed, id) in [
        (
            format!("{keys} = (SELECT root_signature FROM principal_key_permissions)"),
            put_back.as_str(),
            "signing_key_untrusted",
            "keys",
            "bad key org-alice: signing_key_untrusted",
        ),
        (
            format!("{scopes} = NULL"),
            "",
            "scope_untrusted",
            "scopes",
            "bad scope org-alice for docstore:443: scope_untrusted",
        ),
    ] {
        it.office.database.execute(&change).unwrap();
        assert_eq!(can_i(&it.office), (1, json!(reason)));
        let why = it.done(&[&["why"][..], &request].concat());
        assert_eq!(why["candidates"][0]["reason"], reason);
        let verified = it.office.cli(&it.trusting(&["verify"]));
        assert_eq!(verified.status.code(), Some(1));
        let said = String::from_utf8(verified.stdout).unwrap();
        assert!(said.contains(id), "{said}");
        assert!(said.contains(&format!(": {reason}\n")), "{said}");
        let listed = it.done(&["list", listed, "--state", "untrusted"]);
        assert_eq!(listed.as_array().unwrap().len(), 1);
        let unsigned = it.done(&["root", "show"])["unsigned"].clone();
        assert_eq!(unsigned.as_array().unwrap().len(), 1);
        let key_file = it.office.key_file();
        let doctor = it.done(&["doctor", "--key-file", &key_file]);
        let roots = doctor
            .as_array()
            .unwrap()
            .iter()
            .find(|check| check["check"] == "roots");
        assert_eq!(roots.unwrap()["status"], "warning");
        // Who judges by no root sees nothing wrong.
        assert!(it.office.cli(&["verify"]).status.success());
        assert!(
            it.office
                .cli(&[&["can-i"][..], &request].concat())
                .status
                .success()
        );
        it.office.database.execute(undo).unwrap();
    }
    let shown = it.done(&["show", KEY]);
    assert_eq!(
        (&shown["state"], &shown["scopes"][0]["state"]),
        (&json!("active"), &json!("untrusted"))
    );
}

#[tokio::test]
async fn half_a_trust_and_the_wrong_root_are_refused() {
    let it = Rooted::signed().await;
    let other = text(&it.office.path("other.pem"));
    it.office.done(&["root", "init", "--root-key-file", &other]);
    let exists = it.office.file("exists.pub", "");
    let (root, id) = (it.root.as_str(), it.registry_id.as_str());
    let list = ["list", "keys"];
    for (arguments, status, expected) in [
        (
            [&list[..], &["--trust-root", root]].concat(),
            64,
            "error: no registry id",
        ),
        (
            [&list[..], &["--registry-id", "x"]].concat(),
            65,
            "error: this is registry ",
        ),
        (
            [
                &list[..],
                &["--registry-id", id, "--trust-root", &it.root_file],
            ]
            .concat(),
            65,
            ": public key is not a P-256 key",
        ),
        (
            [
                &list[..],
                &["--registry-id", id, "--trust-root", "/nowhere"],
            ]
            .concat(),
            66,
            "error: trust root /nowhere: can't be read",
        ),
        (
            [
                &list[..],
                &[
                    "--registry-id",
                    id,
                    "--trust-root",
                    root,
                    "--trust-root",
                    root,
                ],
            ]
            .concat(),
            64,
            "error: the same root key twice",
        ),
        (
            it.with_root(&["root", "sign", "--yes"]),
            64,
            "error: no registry id",
        ),
        (
            it.trusting(&["root", "sign", "--yes", "--root-key-file", &other]),
            65,
            "error: the root's key ",
        ),
        (
            it.trusting(&["grant-scope", KEY, "x", "--root-key-file", &other]),
            65,
            "error: the root's key ",
        ),
        (
            it.trusting(&["root", "sign", "--yes"]),
            64,
            "error: no root's key given",
        ),
        (
            it.trusting(&["root", "sign", "--yes", "--root-key-file", "/nowhere"]),
            66,
            "error: there is no root's key /nowhere",
        ),
        (
            it.with_root(&["root", "init", "--public", &exists]),
            73,
            "exists.pub: can't be written",
        ),
        (
            it.trusting(&["root", "sign", "nobody", "--dry-run"]),
            65,
            "error: no key nobody",
        ),
    ] {
        let (found, said) = it.office.refused(&arguments);
        assert_eq!(found, status, "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn trust_is_taken_from_the_environment_and_keys_are_ones_own() {
    let it = Rooted::signed().await;
    for (id, status) in [(it.registry_id.as_str(), 0), ("another", 65)] {
        let verified = it
            .office
            .command(&["verify"])
            .env("AGENT_GATEWAY_TRUST_ROOTS", &it.root)
            .env("AGENT_GATEWAY_REGISTRY_ID", id)
            .output()
            .unwrap();
        assert_eq!(verified.status.code(), Some(status), "{verified:?}");
    }
    let file = fs::metadata(&it.root_file).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn keys_for_proofs_count_only_under_what_a_root_signed() {
    let it = Rooted::signed().await;
    let grant = |changed: &[(&str, &str)]| it.office.poca_arguments(changed);
    it.office.done(&["grant-scope", KEY, "echo"]);
    let granted = it.done(&strs(&grant(&[("--id", "poca-1")])));
    let key = &granted["poca_keys"][0];
    assert_eq!(key["destinations"], json!(["docstore:443"]));
    let (status, said) = it.refused(&strs(&grant(&[("--destination", "echo")])));
    assert_eq!(status, 65);
    let gap = "the scope of org-alice for echo:443 is not signed by a trust root";
    assert!(said.contains(gap), "{said}");
    // Who judges by no root may grant it.
    it.office
        .grant_poca_key(&[("--id", "poca-2"), ("--destination", "echo")]);
    let verdict = |id: &str| it.done(&["show", id])["verdict"].clone();
    assert_eq!(
        (verdict("poca-1"), verdict("poca-2")),
        (json!("counts"), json!("counts"))
    );

    for (change, reason) in [
        (
            "UPDATE principal_key_permissions SET root_signature = NULL",
            "scope_untrusted",
        ),
        (
            "UPDATE principal_signing_keys SET root_signature = NULL",
            "signing_key_untrusted",
        ),
    ] {
        it.office.database.execute(change).unwrap();
        let (status, said) = it.refused(&strs(&grant(&[])));
        assert_eq!(status, 65);
        assert!(said.contains("is not signed by a trust root"), "{said}");
        assert_eq!(verdict("poca-1"), reason);
        let verified = it.office.cli(&it.trusting(&["verify"]));
        assert_eq!(verified.status.code(), Some(1));
        let said = String::from_utf8(verified.stdout).unwrap();
        assert!(
            said.contains(&format!("bad PoCA key poca-1: {reason}\n")),
            "{said}"
        );
        assert!(it.office.cli(&["verify"]).status.success());
    }
}
