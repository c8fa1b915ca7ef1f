//! Grants and scopes that are refused: exact status, and nothing written.

use std::process::Command;

use testbed::rows::Times;
use testbed::{ClientCertificate, Swtpm};

use crate::office::{AGENT, KEY, Office, text};

fn psql_times(times: &Times) -> String {
    format!(
        "not_before = '{}', not_after = '{}'",
        times.not_before, times.not_after
    )
}

#[tokio::test]
async fn unregistered_key_grants_nothing() {
    let office = Office::with_scopes(&["docstore"]).await;
    let (status, said) = office.refused_grant(&[("--key", "org-bob")]);
    assert_eq!(status, 65);
    assert_eq!(
        said,
        "error: no key org-bob is registered\n\
         hint: register it with `agent-gateway-registry register-key org-bob`\n"
    );
    let (status, _) = office.refused(&["grant-scope", "org-bob", "docstore"]);
    assert_eq!(status, 65);
}

#[tokio::test]
async fn inactive_key_grants_nothing() {
    let office = Office::with_scopes(&["docstore"]).await;
    for (change, expected) in [
        (
            psql_times(&Times::from_now(-7200, -3600)),
            "error: key org-alice ended at 20",
        ),
        (
            psql_times(&Times::from_now(3600, 7200)),
            "error: key org-alice becomes valid only at 20",
        ),
        (
            psql_times(&Times::from_now(-3600, 86_400)) + ", revoked_at = now()",
            "error: key org-alice was revoked\n",
        ),
    ] {
        let sql = format!("UPDATE principal_signing_keys SET {change}");
        office.database.execute(&sql).unwrap();
        let (status, said) = office.refused_grant(&[("--valid", "1m")]);
        assert_eq!(status, 65);
        assert!(said.starts_with(expected), "{said}");
        let (status, _) = office.refused(&["grant-scope", KEY, "messaging"]);
        assert_eq!(status, 65);
    }
}

#[tokio::test]
async fn another_key_than_the_registered_one_grants_nothing() {
    let office = Office::with_scopes(&["docstore"]).await;
    let other = text(&office.path("other.pem"));
    office.done(&["register-key", "org-bob", "--key-file", &other]);
    let (status, said) = office.refused_grant(&[("--key-file", &other)]);
    assert_eq!(status, 65);
    assert!(
        said.contains("is not the one registered as org-alice"),
        "{said}"
    );
}

#[tokio::test]
async fn missing_key_grants_nothing_and_none_is_made() {
    let office = Office::with_scopes(&["docstore"]).await;
    let missing = text(&office.path("missing.pem"));
    let (status, said) = office.refused_grant(&[("--key-file", &missing)]);
    assert_eq!(status, 66);
    assert!(said.starts_with("error: there is no key "), "{said}");
    assert!(!office.path("missing.pem").exists());

    let tpm = Swtpm::start().unwrap();
    let tcti = tpm.tcti();
    let (key, spki) = (KEY, office.spki());
    let (status, said) = office.refused(&[
        "grant",
        "--key",
        key,
        "--identity",
        AGENT,
        "--spki",
        &spki,
        "--destination",
        "docstore",
        "--tcti",
        &tcti,
    ]);
    assert_eq!(status, 66);
    assert!(
        said.contains(&format!("there is no key 0x81010010 at {tcti}")),
        "{said}"
    );
    let found = office.done(&["register-key", "org-bob", "--tcti", &tcti]);
    assert_eq!(found["key"], "made");
}

#[tokio::test]
async fn destination_out_of_scope_is_refused_and_with_it_the_whole_grant() {
    let office = Office::with_scopes(&["docstore"]).await;
    let both = [
        ("--destination", "docstore"),
        ("--destination", "messaging"),
    ];
    let (status, said) = office.refused_grant(&both);
    assert_eq!(status, 65);
    assert_eq!(
        said,
        "error: the scope of org-alice for messaging:443 is missing\n\
         hint: let the key delegate it with \
         `agent-gateway-registry grant-scope org-alice messaging:443`\n"
    );
    office.done(&["grant-scope", KEY, "messaging"]);
    office.grant(&both);
    assert_eq!(office.count("permission_registry"), 2);
}

#[tokio::test]
async fn scope_that_ends_before_the_permission_is_named_with_its_end() {
    let office = Office::with_scopes(&[]).await;
    let scope = office.done(&["grant-scope", KEY, "docstore", "--valid", "10d"]);
    let end = scope["not_after"].as_str().unwrap();
    let (status, said) = office.refused_grant(&[("--valid", "11d")]);
    assert_eq!(status, 65);
    assert_eq!(
        said,
        format!(
            "error: the scope of org-alice for docstore:443 ends at {end}, before the \
             grant would\n\
             hint: give a shorter --valid, such as 9d, or a longer scope with \
             `agent-gateway-registry grant-scope org-alice docstore:443`\n"
        )
    );
    // Both ways out that the hint names lead out.
    office.grant(&[("--valid", "9d")]);
    office.done(&["grant-scope", KEY, "docstore:443"]);
    office.grant(&[("--valid", "11d")]);
}

#[tokio::test]
async fn scope_that_is_revoked_over_or_not_begun_does_not_count() {
    let office = Office::with_scopes(&["docstore"]).await;
    for (change, expected) in [
        (
            psql_times(&Times::from_now(3600, 60 * 86_400)),
            "error: the scope of org-alice for docstore:443 begins only at 20",
        ),
        (
            psql_times(&Times::from_now(-7200, -3600)),
            "error: the scope of org-alice for docstore:443 ended at 20",
        ),
        (
            psql_times(&Times::from_now(-3600, 60 * 86_400)) + ", revoked_at = now()",
            "error: the scope of org-alice for docstore:443 is missing\n",
        ),
    ] {
        let sql = format!("UPDATE principal_key_permissions SET {change}");
        office.database.execute(&sql).unwrap();
        let (status, said) = office.refused_grant(&[]);
        assert_eq!(status, 65);
        assert!(said.starts_with(expected), "{said}");
    }
}

#[tokio::test]
async fn bad_identities_and_destinations_are_refused() {
    let office = Office::with_scopes(&["docstore"]).await;
    let (long, longer) = ("a".repeat(257), "a".repeat(10_000));
    for identity in [
        "",
        "a\nb",
        "a\u{7f}",
        "a\u{85}",
        "a\r",
        "a\u{1b}[2J",
        &long,
        &longer,
    ] {
        let (status, said) = office.refused_grant(&[("--identity", identity)]);
        assert_eq!(status, 65, "{identity:?}");
        assert!(said.starts_with("error: identity "), "{said}");
    }
    for destination in [
        "",
        "https://docstore",
        "docstore.",
        "docstore:0",
        "127.1",
        "a b",
        "u@h",
    ] {
        let (status, said) = office.refused_grant(&[("--destination", destination)]);
        assert_eq!(status, 65, "{destination:?}");
        assert!(
            said.starts_with(&format!("error: destination {destination}: ")),
            "{said}"
        );
        let (status, _) = office.refused(&["grant-scope", KEY, destination]);
        assert_eq!(status, 65, "{destination:?}");
        let (status, _) = office.refused(&["revoke", "--destination", destination]);
        assert_eq!(status, 65, "{destination:?}");
    }
}

#[tokio::test]
async fn what_looks_like_another_name_is_refused() {
    let office = Office::with_scopes(&["docstore"]).await;
    // Full-width letters only look like docstore.
    let typed = "ｄｏｃｓｔｏｒｅ";
    let (status, said) = office.refused(&["grant-scope", KEY, typed]);
    assert_eq!(status, 65);
    assert!(
        said.starts_with(&format!("error: destination {typed}: ")),
        "{said}"
    );
    assert!(
        said.contains("\nhint: write an international name in its ASCII form"),
        "{said}"
    );
    // What would turn the line around is shown, not obeyed.
    let (status, said) = office.refused(&["grant-scope", KEY, "a\u{202e}b"]);
    assert_eq!(status, 65);
    assert!(
        said.starts_with("error: destination a\\u{202e}b: "),
        "{said}"
    );
}

#[tokio::test]
async fn keys_that_no_agent_can_have_are_refused() {
    let office = Office::with_scopes(&["docstore"]).await;
    let made = |name: &str, options: &[&str]| {
        let private = text(&office.path(name));
        let mut command = Command::new("openssl");
        command
            .arg("genpkey")
            .args(options)
            .args(["-out", &private]);
        assert!(command.output().unwrap().status.success());
        let public = text(&office.path(&format!("{name}.pub")));
        crate::office::openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]);
        public
    };
    let rsa = made(
        "rsa",
        &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    );
    let p384 = made(
        "p384",
        &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
    );
    let ed25519 = made("ed25519", &["-algorithm", "ED25519"]);
    for spki in [&rsa, &p384, &ed25519] {
        let (status, said) = office.refused_grant(&[("--spki", spki)]);
        assert_eq!(status, 65, "{spki}");
        assert!(
            said.starts_with("error: public key is not a P-256 key\n"),
            "{said}"
        );
    }
    let mut off_curve = office.agent.spki_der().to_vec();
    *off_curve.last_mut().unwrap() ^= 1;
    let (status, _) = office.refused_grant(&[("--spki", &hex::encode(off_curve))]);
    assert_eq!(status, 65);
}

#[tokio::test]
async fn certificate_of_another_agent_is_refused() {
    let office = Office::with_scopes(&["docstore"]).await;
    for (certificate, expected) in [
        (
            ClientCertificate::for_identity("agent-beta").unwrap(),
            "error: the certificate is that of agent-beta, not of agent-alpha\n",
        ),
        (
            ClientCertificate::for_identity("Agent-Alpha").unwrap(),
            "error: the certificate is that of Agent-Alpha, not of agent-alpha\n",
        ),
        (
            ClientCertificate::builder().build().unwrap(),
            "error: the certificate is that of agent, not of agent-alpha\n",
        ),
        (
            ClientCertificate::builder()
                .uri("spiffe://example.org/beta")
                .build()
                .unwrap(),
            "error: the certificate is that of spiffe://example.org/beta, not of agent-alpha\n",
        ),
        (
            ClientCertificate::builder()
                .identity(AGENT)
                .identity(AGENT)
                .build()
                .unwrap(),
            "error: identity extension is not exactly one",
        ),
    ] {
        let path = office.file("agent.pem", certificate.pem());
        let (status, said) = office.refused_grant(&[("--spki", &path)]);
        assert_eq!(status, 65);
        assert!(said.starts_with(expected), "{said}");
    }
    let stranger = office.file("stranger.pem", office.agent.pem());
    let (status, _) = office.refused(&[
        "revoke",
        "--all-of",
        "--identity",
        "agent-beta",
        "--spki",
        &stranger,
    ]);
    assert_eq!(status, 65);
}

#[tokio::test]
async fn wrong_usage_has_its_own_status() {
    let office = Office::with_scopes(&["docstore"]).await;
    let before = office.rows();
    for arguments in [
        vec![],
        vec!["frobnicate"],
        vec!["register-key"],
        vec!["register-key", KEY, "--handle", "0x80000000"],
        vec!["register-key", KEY, "--tcti", "swtmp:"],
        vec!["register-key", KEY, "--user-pin", "hunter2"],
        vec!["grant-scope", KEY],
        vec!["grant", "--key", KEY],
        vec!["list", "everything"],
    ] {
        let output = office.cli(&arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert_eq!(output.stdout, b"", "{arguments:?}");
    }
    for valid in [
        "",
        "0d",
        "0s",
        "30",
        "-1d",
        "1.5d",
        "3651d",
        "99999999999999999999d",
    ] {
        let arguments = office.grant_arguments(&[("--valid", valid)]);
        let output = office.command(&[]).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{valid:?}");
        assert!(output.stderr.starts_with(b"error: "), "{valid:?}");
    }
    assert_eq!(office.rows(), before);
}
