//! What a root signs: at once, later, by another program, or on a machine without a network.

use serde_json::json;
use testbed::Swtpm;

use super::Rooted;
use crate::office::{KEY, openssl, strs, text};

#[tokio::test]
async fn with_the_root_at_hand_keys_and_scopes_are_signed_in_one_go() {
    let it = Rooted::signed().await;
    let grant = it.grant();
    it.done(&strs(&grant));
    assert_eq!(it.denial().await, None);
    let verified = it.office.cli(&it.trusting(&["verify"]));
    assert!(verified.status.success(), "{verified:?}");
    let shown = it.done(&["root", "show"]);
    assert_eq!(shown["registry_id"], json!(it.registry_id));
    assert_eq!(shown["roots"][0]["spki"], json!(it.root));
    assert_eq!(shown["unsigned"], json!([]));
    // Who sets a service up knows the root, and learns the id; both go into its configuration.
    let first = it.office.cli(&["root", "show", "--trust-root", &it.root]);
    let said = String::from_utf8(first.stdout).unwrap();
    let settings = format!(
        "[policy]\ntrust_roots = [\"{}\"]\nregistry_id = \"{}\"\n",
        it.root, it.registry_id
    );
    assert!(said.ends_with(&settings), "{said}");
}

#[tokio::test]
async fn what_is_registered_first_counts_once_the_root_has_signed_it() {
    let it = Rooted::new().await;
    let (key_file, grant) = (it.office.key_file(), it.grant());
    let registered = it
        .office
        .cli(&it.trusting(&["register-key", KEY, "--key-file", &key_file]));
    let said = String::from_utf8(registered.stderr).unwrap();
    assert!(
        said.contains("note: no trust root has signed org-alice yet"),
        "{said}"
    );
    it.done(&["grant-scope", KEY, "docstore"]);
    let (status, said) = it.refused(&strs(&grant));
    assert_eq!(status, 65);
    assert!(
        said.starts_with("error: key org-alice is not signed by a trust root\n"),
        "{said}"
    );
    assert!(
        said.contains("hint: have it signed with `agent-gateway-registry root sign org-alice`")
    );

    // Nobody to ask, so nothing is signed.
    let (status, _) = it.refused(&it.with_root(&["root", "sign", KEY]));
    assert_eq!(status, 64);
    let signed = it.done(&it.with_root(&["root", "sign", KEY, "--keys-only", "--yes"]));
    assert_eq!(signed["signed"].as_array().unwrap().len(), 1);
    let (status, said) = it.refused(&strs(&grant));
    assert_eq!(status, 65);
    assert!(
        said.starts_with(
            "error: the scope of org-alice for docstore:443 is not signed by a trust root\n"
        ),
        "{said}"
    );
    let signed = it.done(&it.with_root(&["root", "sign", "--yes"]));
    assert_eq!(signed["signed"][0]["destination"], "docstore:443");
    let again = it.done(&it.with_root(&["root", "sign", "--yes"]));
    assert_eq!(again["signed"], json!([]));
    it.done(&strs(&grant));
    assert_eq!(it.denial().await, None);
}

#[tokio::test]
async fn openssl_agrees_with_what_the_root_in_a_tpm_signed() {
    let it = Rooted::new().await;
    let tpm = Swtpm::start().unwrap();
    let tcti = tpm.tcti();
    let place = ["--root-tcti", &tcti, "--root-handle", "0x81010020"];
    let public = text(&it.office.path("root.pub"));
    let init = ["root", "init", "--public", &public];
    let made = it.office.done(&[&init[..], &place].concat());
    assert_eq!(made["key"], "made");
    let found = it.office.done(&[&["root", "init"][..], &place].concat());
    assert_eq!(
        (&found["key"], &found["spki"]),
        (&json!("found"), &made["spki"])
    );
    let (key_file, id) = (it.office.key_file(), it.registry_id.as_str());
    let trust = ["--trust-root", &public, "--registry-id", id];
    let register = ["register-key", KEY, "--key-file", &key_file];
    it.office.done(&[&register[..], &place, &trust].concat());
    let scope = ["grant-scope", KEY, "docstore", "Messaging:8443"];
    it.office.done(&[&scope[..], &place, &trust].concat());

    // Rebuilt by hand, from what psql says of the rows.
    let time = |column: &str| {
        format!("to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
    };
    let (from, to) = (time("s.not_before"), time("s.not_after"));
    let rows = format!(
        "SELECT key_id, encode(public_key_spki_der, 'hex'), '', {from}, {to},
                encode(root_signature, 'hex')
         FROM principal_signing_keys s
         UNION ALL
         SELECT signing_key_id, encode(public_key_spki_der, 'hex'), destination, {from}, {to},
                encode(s.root_signature, 'hex')
         FROM principal_key_permissions s JOIN principal_signing_keys ON key_id = signing_key_id"
    );
    let rows = it.office.database.query(&rows).unwrap();
    assert_eq!(rows.lines().count(), 3);
    for row in rows.lines() {
        let [key_id, spki, destination, from, to, signature] =
            row.split('|').collect::<Vec<_>>().try_into().unwrap();
        let canonical = if destination.is_empty() {
            format!(
                "agent-gateway-signing-key-v1\nregistry_id={id}\nkey_id={key_id}\n\
                 algorithm=ecdsa_p256_sha256\npublic_key_spki_der={spki}\n\
                 not_before={from}\nnot_after={to}\n"
            )
        } else {
            format!(
                "agent-gateway-scope-v1\nregistry_id={id}\nsigning_key_id={key_id}\n\
                 signing_key_spki_der={spki}\ndestination={destination}\n\
                 not_before={from}\nnot_after={to}\n"
            )
        };
        let canonical = it.office.file("canonical.txt", canonical);
        let signature = it
            .office
            .file("canonical.sig", hex::decode(signature).unwrap());
        let verify = [
            "dgst",
            "-sha256",
            "-verify",
            &public,
            "-signature",
            &signature,
            &canonical,
        ];
        assert_eq!(openssl(&verify), "Verified OK\n");
    }
}

#[tokio::test]
async fn a_text_that_openssl_signed_is_taken_and_any_other_refused() {
    let mut it = Rooted::new().await;
    let (token, public) = (
        text(&it.office.path("token.pem")),
        text(&it.office.path("token.pub")),
    );
    let curve = "ec_paramgen_curve:P-256";
    openssl(&[
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        curve,
        "-out",
        &token,
    ]);
    openssl(&["pkey", "-in", &token, "-pubout", "-out", &public]);
    it.root.clone_from(&public);
    let key_file = it.office.key_file();
    it.office
        .done(&["register-key", KEY, "--key-file", &key_file]);
    it.office.done(&["grant-scope", KEY, "docstore"]);
    let dry_run = |selection: &[&str]| {
        let arguments = [&["root", "sign", KEY, "--dry-run"][..], selection].concat();
        let output = it.office.cli(&it.trusting(&arguments));
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let signature = text(&it.office.path("text.sig"));
    let sign = |name: &str, bytes: &[u8]| {
        let file = it.office.file(name, bytes);
        openssl(&[
            "dgst", "-sha256", "-sign", &token, "-out", &signature, &file,
        ]);
        file
    };
    let key_text = dry_run(&["--keys-only"]);
    let scope_text = dry_run(&["--destination", "docstore"]);
    assert_eq!(dry_run(&[]), [&key_text[..], &scope_text].concat());

    let changed = String::from_utf8(scope_text.clone()).unwrap();
    let take =
        |file: &str| it.refused(&["root", "sign", "--text", file, "--signature", &signature]);
    let other = changed.replace(&it.registry_id, "another");
    let (status, said) = take(&sign("other.txt", other.as_bytes()));
    assert_eq!(status, 65);
    assert!(
        said.starts_with("error: this is registry another, not "),
        "{said}"
    );
    let elsewhere = changed.replace("docstore", "elsewhere");
    let (status, said) = take(&sign("elsewhere.txt", elsewhere.as_bytes()));
    assert_eq!(status, 65);
    assert!(
        said.contains("does not stand in the registry as it was signed"),
        "{said}"
    );
    let both = sign("both.txt", &[&key_text[..], &scope_text].concat());
    assert!(take(&both).1.contains("both.txt: line 8 is not what"));
    let right = sign("scope.txt", &scope_text);
    let (status, said) = take(&it.office.file("key.txt", &key_text));
    assert_eq!(status, 65);
    assert!(
        said.contains("no trust root made this signature over the text"),
        "{said}"
    );
    it.done(&["root", "sign", "--text", &right, "--signature", &signature]);
    let key = sign("key.txt", &key_text);
    it.done(&["root", "sign", "--text", &key, "--signature", &signature]);
    assert_eq!(it.done(&["root", "show"])["unsigned"], json!([]));
    // Who judges by no root can't tell what it is worth.
    let unjudged = ["root", "sign", "--text", &key, "--signature", &signature];
    let (status, said) = it.office.refused(&unjudged);
    assert_eq!(status, 64);
    assert!(said.starts_with("error: no trust root given"), "{said}");
}

#[tokio::test]
async fn a_root_without_a_network_signs_what_is_carried_to_it() {
    let it = Rooted::new().await;
    let key_file = it.office.key_file();
    it.done(&["register-key", KEY, "--key-file", &key_file]);
    it.done(&["grant-scope", KEY, "docstore"]);
    let texts = it
        .office
        .cli(&it.trusting(&["root", "sign", "--dry-run"]))
        .stdout;
    let texts = it.office.file("unsigned.txt", &texts);
    let sign = ["root", "sign", "--offline", &texts, "--yes"];
    let offline = |id: &str| {
        let arguments = [&it.with_root(&sign)[..], &["--registry-id", id]].concat();
        let mut command = it.office.command(&arguments);
        command
            .env_remove("AGENT_GATEWAY_DATABASE_URL")
            .output()
            .unwrap()
    };
    let refused = offline("another");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(65), "{said}");
    assert!(
        said.contains(&format!("this is registry {}, not another", it.registry_id)),
        "{said}"
    );
    let before = it.office.rows();
    let signed = offline(&it.registry_id);
    assert!(signed.status.success(), "{signed:?}");
    assert_eq!(it.office.rows(), before);
    let lines = String::from_utf8(signed.stdout).unwrap();
    let file = it.office.file("signed.jsonl", &lines);
    let (status, said) = it.office.refused(&["import", &file]);
    assert_eq!(status, 64);
    assert!(
        said.contains("no trust root is given to check it by"),
        "{said}"
    );
    for (from, to, expected) in [
        ("docstore", "elsewhere", "no trust root made its signature"),
        (
            it.registry_id.as_str(),
            "another",
            "no trust root made its signature",
        ),
        (
            "agent-gateway-scope-v1",
            "agent-gateway-scope-v2",
            "line 2: version agent-gateway-scope-v2",
        ),
        ("\"docstore:443\"", "null", "line 2: unusable destination"),
    ] {
        let bad = it.office.file("bad.jsonl", lines.replace(from, to));
        let (status, said) = it.refused(&["import", &bad]);
        assert_eq!(status, 65, "{said}");
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(
        it.done(&["import", &file]),
        json!({"imported": 2, "unchanged": 0})
    );
    assert_eq!(
        it.done(&["import", &file]),
        json!({"imported": 0, "unchanged": 2})
    );
    it.done(&strs(&it.grant()));
    assert_eq!(it.denial().await, None);
}
