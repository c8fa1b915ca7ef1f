//! `revoke`: exactly what matches, and the gateway sees it.

use permission::{Decision, Reason, decide};
use serde_json::json;
use testbed::{Authz, AuthzOptions};

use crate::office::{AGENT, KEY, Office, now, refusal};
use crate::user::User;

#[tokio::test]
async fn revoked_permission_is_denied_at_the_next_decision() {
    let office = Office::with_scopes(&["docstore"]).await;
    let granted = office.grant(&[]);
    let id = granted["permissions"][0]["permission_id"].as_str().unwrap();
    let request = office.request("docstore");
    let facts = office.facts(&request).await;
    assert!(matches!(
        decide(&facts, &request, now()),
        Decision::Allow(_)
    ));

    let output = office.cli(&["revoke", "--yes", "--id", id]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, format!("revoked {id}\n").into_bytes());
    let facts = office.facts(&request).await;
    assert_eq!(
        decide(&facts, &request, now()),
        Decision::Deny(Reason::PermissionRevoked)
    );

    let (status, said) = office.refused(&["revoke", "--yes", "--id", id]);
    assert_eq!(status, 1);
    assert!(said.starts_with("error: no permission matches"), "{said}");
}

#[tokio::test]
async fn all_that_is_given_must_match() {
    let office = Office::with_scopes(&["docstore", "messaging"]).await;
    let other = testbed::ClientCertificate::for_identity("agent-beta").unwrap();
    let other_spki = hex::encode(other.spki_der());
    let beta = [("--identity", "agent-beta"), ("--spki", &*other_spki)];
    let id = |granted: serde_json::Value| granted["permissions"][0]["permission_id"].clone();
    let to = |destination| ("--destination", destination);
    let alpha_docstore = id(office.grant(&[to("docstore")]));
    let alpha_messaging = id(office.grant(&[to("messaging")]));
    let beta_docstore = id(office.grant(&[beta[0], beta[1], to("docstore")]));
    let beta_messaging = id(office.grant(&[beta[0], beta[1], to("messaging")]));

    for nobody in [
        vec!["--identity", "agent-gamma"],
        vec!["--identity", "Agent-Alpha"],
        vec!["--identity", "agent-alpha", "--spki", &other_spki],
        vec![
            "--identity",
            "agent-alpha",
            "--destination",
            "docstore:8443",
        ],
        vec![
            "--id",
            alpha_docstore.as_str().unwrap(),
            "--destination",
            "messaging",
        ],
        vec!["--id", "%"],
    ] {
        let (status, said) =
            office.refused(&[&["revoke", "--yes", "--all-of"][..], &nobody].concat());
        assert_eq!(status, 1, "{nobody:?}: {said}");
    }

    let narrow = office.done(&[
        "revoke",
        "--yes",
        "--all-of",
        "--identity",
        "agent-alpha",
        "--destination",
        "DocStore",
    ]);
    assert_eq!(narrow, json!({ "revoked": [alpha_docstore] }));
    let certificate = office.file("beta.pem", other.pem());
    let mut both = [beta_docstore, beta_messaging];
    both.sort_unstable_by_key(ToString::to_string);
    let by_key = office.done(&["revoke", "--yes", "--spki", &certificate]);
    assert_eq!(by_key, json!({ "revoked": both }));
    let rest = office.done(&["revoke", "--yes", "--destination", "messaging"]);
    assert_eq!(rest, json!({ "revoked": [alpha_messaging] }));
}

#[tokio::test]
async fn nothing_given_never_means_everything() {
    let office = Office::with_scopes(&["docstore"]).await;
    office.grant(&[]);
    let (status, said) = office.refused(&["revoke"]);
    assert_eq!(status, 64);
    assert_eq!(
        said,
        "error: nothing given that a permission must match\n\
         hint: give --id, --key, --identity, --spki or --destination\n"
    );
    for empty in ["--id", "--identity", "--destination"] {
        let (status, _) = office.refused(&["revoke", empty, ""]);
        assert_eq!(status, 65, "{empty}");
    }
}

#[tokio::test]
async fn revoked_permission_can_be_granted_anew() {
    let office = Office::with_scopes(&["docstore"]).await;
    office.grant(&[]);
    office.done(&["revoke", "--yes", "--identity", "agent-alpha"]);
    office.grant(&[]);
    let request = office.request("docstore");
    let facts = office.facts(&request).await;
    assert!(matches!(
        decide(&facts, &request, now()),
        Decision::Allow(_)
    ));
}

#[tokio::test]
async fn ids_from_the_registry_are_escaped_when_revoked() {
    let office = Office::with_scopes(&["docstore"]).await;
    office.grant(&[]);
    let sql = "UPDATE permission_registry SET permission_id = E'a\\u202E\\x1b[2Jb'";
    office.database.execute(sql).unwrap();
    let output = office.cli(&["revoke", "--yes", "--destination", "docstore"]);
    assert_eq!(output.stdout, b"revoked a\\u{202e}\\u{1b}[2Jb\n");
    assert_eq!(
        refusal(&office.cli(&["revoke", "--yes", "--identity", KEY])).0,
        1
    );
}

#[tokio::test]
async fn without_a_yes_nothing_is_revoked() {
    let office = Office::with_scopes(&["docstore"]).await;
    office.grant(&[]);
    for arguments in [
        &["revoke", "--identity", AGENT][..],
        &["revoke-scope", KEY, "docstore"],
        &["revoke-key", KEY],
    ] {
        let (status, said) = office.refused(arguments);
        assert_eq!(status, 64);
        assert!(said.starts_with("error: not done without a yes"), "{said}");
    }
    let both = [
        "revoke",
        "--yes",
        "--identity",
        AGENT,
        "--destination",
        "docstore",
    ];
    let (status, said) = office.refused(&both);
    assert_eq!(status, 64);
    assert!(said.contains("\nhint: add --all-of"), "{said}");
}

/// What a user sees who is asked and types that, and the exit status.
fn typed(office: &Office, command: &[&str], keys: &str) -> (i32, String) {
    let mut user = User::runs(office, command).sits_down();
    user.is_asked("[y/N] ");
    user.types(keys);
    user.leaves()
}

#[tokio::test]
async fn user_sees_what_matches_and_is_asked() {
    let office = Office::with_scopes(&["docstore"]).await;
    office.grant(&[("--id", "perm-1")]);
    let before = office.rows();
    let revoke = ["revoke", "--identity", AGENT];
    for no in ["n\n", "\n", "yess\n", "\x04"] {
        let (status, seen) = typed(&office, &revoke, no);
        assert!(
            seen.contains("\nperm-1         agent-alpha  docstore:443  "),
            "{seen}"
        );
        assert!(seen.contains("revoke 1 permission? [y/N] "), "{seen}");
        assert_eq!(status, 1, "{seen}");
        assert_eq!(office.rows(), before, "{no:?}");
    }
    let nobody = ["revoke", "--identity", "agent-beta"];
    let (status, seen) = User::runs(&office, &nobody).sits_down().leaves();
    assert_eq!(status, 1);
    assert!(seen.contains("error: no permission matches"), "{seen}");
    let (status, seen) = typed(&office, &["revoke-key", KEY], "n\n");
    assert_eq!(status, 1);
    assert!(
        seen.contains("revoke the key org-alice, which signed 1 permission?"),
        "{seen}"
    );
    let (status, seen) = typed(&office, &revoke, "y\n");
    assert_eq!(status, 0);
    assert!(seen.contains("revoked perm-1"), "{seen}");
    assert_ne!(office.rows(), before);
}

#[tokio::test]
async fn scope_and_key_are_revoked_and_what_rests_on_them_counts_no_longer() {
    let office = Office::with_scopes(&["docstore", "messaging"]).await;
    for destination in ["docstore", "messaging"] {
        office.grant(&[("--destination", destination)]);
    }
    let reason = async |destination| {
        let request = office.request(destination);
        let facts = office.facts(&request).await;
        match decide(&facts, &request, now()) {
            Decision::Allow(_) => None,
            Decision::Deny(reason) => Some(reason),
        }
    };
    let revoked = office.done(&["revoke-scope", KEY, "Docstore", "--yes"]);
    assert_eq!(revoked, json!({ "revoked": ["docstore:443"] }));
    assert_eq!(reason("docstore").await, Some(Reason::ScopeMissing));
    assert_eq!(reason("messaging").await, None);
    let output = office.cli(&["revoke-key", KEY, "--yes"]);
    assert_eq!(output.stdout, b"revoked key org-alice\n");
    assert_eq!(reason("messaging").await, Some(Reason::SigningKeyInactive));
    for again in [
        &["revoke-scope", KEY, "docstore", "--yes"][..],
        &["revoke-key", KEY, "--yes"],
    ] {
        assert_eq!(office.refused(again).0, 1);
    }
}

#[tokio::test]
async fn impact_tells_who_loses_what_and_changes_nothing() {
    let office = Office::with_scopes(&["docstore", "messaging"]).await;
    let other = format!("{}", office.path("other.pem").display());
    office.done(&["register-key", "org-bob", "--key-file", &other]);
    office.done(&["grant-scope", "org-bob", "docstore"]);
    office.grant(&[("--id", "a")]);
    office.grant(&[("--id", "b"), ("--destination", "messaging")]);
    office.grant(&[
        ("--id", "c"),
        ("--key", "org-bob"),
        ("--key-file", &other),
        ("--valid", "1d"),
    ]);
    let before = office.rows();
    let outcome = |arguments: &[&str]| {
        let told = office.done(&[&["impact"], arguments].concat());
        let of = |what: &str, id: &str| -> Vec<String> {
            let rows = told[what].as_array().unwrap();
            rows.iter()
                .map(|row| format!("{}{}", row["destination"], row[id]))
                .collect()
        };
        (of("loses", "permission_id"), of("keeps", "then_by"))
    };
    let rows = |rows: &[(&str, &str)]| -> Vec<String> {
        rows.iter()
            .map(|(destination, id)| format!("\"{destination}:443\"\"{id}\""))
            .collect()
    };
    let (messaging, docstore) = (rows(&[("messaging", "b")]), rows(&[("docstore", "c")]));
    assert_eq!(
        outcome(&["--revoke-key", KEY]),
        (messaging.clone(), docstore.clone())
    );
    assert_eq!(
        outcome(&["--revoke-key", "org-bob"]),
        (vec![], rows(&[("docstore", "a")]))
    );
    assert_eq!(
        outcome(&["--revoke-scope", KEY, "docstore"]),
        (vec![], docstore.clone())
    );
    assert_eq!(
        outcome(&["--revoke", "--id", "b"]),
        (messaging.clone(), vec![])
    );
    let both = rows(&[("docstore", "a"), ("messaging", "b")]);
    assert_eq!(outcome(&["--revoke", "--identity", AGENT]), (both, vec![]));
    assert_eq!(outcome(&["--revoke", "--id", "a"]), (vec![], docstore));
    assert_eq!(
        outcome(&["--revoke", "--identity", "agent-beta"]),
        (vec![], vec![])
    );
    assert_eq!(office.rows(), before);
    assert_eq!(refusal(&office.cli(&["impact", "--revoke"])).0, 64);
    assert_eq!(office.cli(&["impact", "--id", "a"]).status.code(), Some(64));
    let told = office.cli(&["impact", "--revoke", "--identity", "agent-beta"]);
    assert_eq!(told.stdout, b"nobody loses anything\n");
}

#[tokio::test]
async fn revocation_waits_until_every_service_knows() {
    let office = Office::with_scopes(&["docstore"]).await;
    let service = || {
        Authz::start(&AuthzOptions {
            database_url: office.database.url(),
            ..AuthzOptions::default()
        })
    };
    let (first, second) = (service().unwrap(), service().unwrap());
    let (one, two) = (
        first.admin_grpc_addr().to_string(),
        second.admin_grpc_addr().to_string(),
    );
    office.grant(&[]);
    let told = office.done(&[
        "revoke",
        "--identity",
        AGENT,
        "--yes",
        "--wait",
        "--admin",
        &one,
        &two,
    ]);
    let confirmed = told["confirmed"].as_array().unwrap();
    let mut who: Vec<_> = confirmed
        .iter()
        .map(|row| row["admin"].as_str().unwrap())
        .collect();
    who.sort_unstable();
    let mut both = [&*one, &*two];
    both.sort_unstable();
    assert_eq!(who, both);
    assert!(
        confirmed
            .iter()
            .all(|row| row["after_ms"].as_u64().unwrap() < 30_000),
        "{told}"
    );

    drop(second);
    office.grant(&[]);
    let output = office.cli(&[
        "revoke",
        "--identity",
        AGENT,
        "--yes",
        "--wait",
        "--admin",
        &one,
        &two,
        "--timeout",
        "5s",
    ]);
    let (status, said) = refusal(&output);
    assert_eq!(status, 75);
    let begin = format!("error: revoked (1), but not confirmed by {two} (can't be reached");
    assert!(said.starts_with(&begin), "{said}");
    assert!(!said.contains(&one), "{said}");
}
