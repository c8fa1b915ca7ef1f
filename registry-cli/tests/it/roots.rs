//! Roots of trust: what they sign, and how the commands judge by them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use permission::{Decision, Reason, RootKey, TrustRoots, decide};
use serde_json::{Value, json};
use testbed::{Swtpm, authz};

use crate::office::{AGENT, KEY, Office, now, openssl, refusal, strs, text};

/// An office whose gateway has a root of trust.
struct Rooted {
    office: Office,
    registry_id: String,
    root_file: String,
    root: String,
}

impl Rooted {
    /// Nothing is registered; the root's key is in a file.
    async fn new() -> Self {
        let office = Office::new().await;
        let root_file = text(&office.path("root.pem"));
        let made = office.done(&["root", "init", "--root-key-file", &root_file]);
        assert_eq!(made["key"], "made");
        let id = "SELECT registry_id FROM registry_identity";
        Self {
            registry_id: office.database.query(id).unwrap(),
            root: made["spki"].as_str().unwrap().to_owned(),
            root_file,
            office,
        }
    }

    /// With a key and a scope that the root has signed.
    async fn signed() -> Self {
        let rooted = Self::new().await;
        let key_file = rooted.office.key_file();
        rooted.done(&rooted.with_root(&["register-key", KEY, "--key-file", &key_file]));
        rooted.done(&rooted.with_root(&["grant-scope", KEY, "docstore"]));
        rooted
    }

    fn with_root<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [arguments, &["--root-key-file", &self.root_file]].concat()
    }

    /// As a gateway with this root judges.
    fn trusting<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let trust = [
            "--trust-root",
            &self.root,
            "--registry-id",
            &self.registry_id,
        ];
        [arguments, &trust].concat()
    }

    fn done(&self, arguments: &[&str]) -> Value {
        self.office.done(&self.trusting(arguments))
    }

    fn refused(&self, arguments: &[&str]) -> (i32, String) {
        self.office.refused(&self.trusting(arguments))
    }

    fn grant(&self) -> Vec<String> {
        self.office.grant_arguments(&[])
    }

    /// The reason for which the agent is denied, or `None`.
    async fn denial(&self) -> Option<Reason> {
        let root = RootKey::parse(self.root.as_bytes()).unwrap();
        let registry_id = permission::Id::parse(&self.registry_id).unwrap();
        let roots = TrustRoots::new(registry_id, vec![root]).unwrap();
        let request = self.office.request("docstore");
        let facts = self.office.facts_under(&request, Some(roots)).await;
        match decide(&facts, &request, now()) {
            Decision::Allow(_) => None,
            Decision::Deny(reason) => Some(reason),
        }
    }
}

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
