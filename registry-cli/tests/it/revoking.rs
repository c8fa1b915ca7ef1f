//! `revoke`: exactly what matches, and the gateway sees it.

use permission::{Decision, Reason, decide};
use serde_json::json;

use crate::office::{KEY, Office, now, refusal};

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

    let output = office.cli(&["revoke", "--id", id]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, format!("revoked {id}\n").into_bytes());
    let facts = office.facts(&request).await;
    assert_eq!(
        decide(&facts, &request, now()),
        Decision::Deny(Reason::PermissionRevoked)
    );

    let (status, said) = office.refused(&["revoke", "--id", id]);
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
        let (status, said) = office.refused(&[&["revoke"][..], &nobody].concat());
        assert_eq!(status, 1, "{nobody:?}: {said}");
    }

    let narrow = office.done(&[
        "revoke",
        "--identity",
        "agent-alpha",
        "--destination",
        "DocStore",
    ]);
    assert_eq!(narrow, json!({ "revoked": [alpha_docstore] }));
    let certificate = office.file("beta.pem", other.pem());
    let mut both = [beta_docstore, beta_messaging];
    both.sort_unstable_by_key(ToString::to_string);
    let by_key = office.done(&["revoke", "--spki", &certificate]);
    assert_eq!(by_key, json!({ "revoked": both }));
    let rest = office.done(&["revoke", "--destination", "messaging"]);
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
         hint: give at least one of --id, --identity, --spki and --destination\n"
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
    office.done(&["revoke", "--identity", "agent-alpha"]);
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
    let output = office.cli(&["revoke", "--destination", "docstore"]);
    assert_eq!(output.stdout, b"revoked a\\u{202e}\\u{1b}[2Jb\n");
    assert_eq!(refusal(&office.cli(&["revoke", "--identity", KEY])).0, 1);
}
