//! From a key to an allowed request.

use permission::{Decision, decide};
use testbed::Swtpm;

use crate::office::{AGENT, KEY, Office, now, openssl, text};

#[tokio::test]
async fn key_in_the_tpm_grants_what_the_gateway_then_allows() {
    let office = Office::new().await;
    let tpm = Swtpm::start().unwrap();
    let tcti = tpm.tcti();
    let registered = office.done(&["register-key", KEY, "--tcti", &tcti]);
    assert_eq!(registered["outcome"], "registered");
    assert_eq!(registered["key"], "made");
    assert_eq!(registered["place"], format!("0x81010010 at {tcti}"));
    let scope = office.done(&["grant-scope", KEY, "Docstore", "messaging:8443"]);
    assert_eq!(
        scope["destinations"],
        serde_json::json!(["docstore:443", "messaging:8443"])
    );

    let spki = office.spki();
    let granted = office.done(&[
        "grant",
        "--key",
        KEY,
        "--identity",
        AGENT,
        "--spki",
        &spki,
        "--valid",
        "30d",
        "--tcti",
        &tcti,
        "--destination",
        "docstore",
        "messaging:8443",
    ]);
    let permissions = granted["permissions"].as_array().unwrap();
    assert_eq!(permissions.len(), 2);
    for (permission, destination) in permissions.iter().zip(["docstore:443", "messaging:8443"]) {
        assert_eq!(permission["destination"], destination);
        let request = office.request(destination);
        let facts = office.facts(&request).await;
        let Decision::Allow(permit) = decide(&facts, &request, now()) else {
            panic!("{:?}", decide(&facts, &request, now()))
        };
        let allowed_by = permit.permission();
        assert_eq!(
            permission["permission_id"],
            allowed_by.permission_id.as_str()
        );
        assert_eq!(
            granted["not_before"],
            allowed_by.window.not_before().to_string()
        );
        assert_eq!(
            granted["not_after"],
            allowed_by.window.not_after().to_string()
        );
        let length = allowed_by.window.not_after().as_unix_micros()
            - allowed_by.window.not_before().as_unix_micros();
        assert_eq!(length, 30 * 86_400 * 1_000_000);
    }
    let elsewhere = office.request("docstore:8443");
    let facts = office.facts(&elsewhere).await;
    assert_eq!(
        decide(&facts, &elsewhere, now()),
        Decision::Deny(permission::Reason::NoPermission)
    );
}

#[tokio::test]
async fn software_key_grants_what_the_gateway_then_allows() {
    let office = Office::with_scopes(&["docstore"]).await;
    office.grant(&[]);
    let request = office.request("docstore");
    let facts = office.facts(&request).await;
    assert!(matches!(
        decide(&facts, &request, now()),
        Decision::Allow(_)
    ));
}

#[tokio::test]
async fn signature_verifies_with_openssl_over_text_made_from_the_row() {
    let office = Office::new().await;
    let tpm = Swtpm::start().unwrap();
    let tcti = tpm.tcti();
    office.done(&["register-key", KEY, "--tcti", &tcti]);
    office.done(&["grant-scope", KEY, "docstore"]);
    let spki = office.spki();
    office.done(&[
        "grant",
        "--key",
        KEY,
        "--identity",
        AGENT,
        "--spki",
        &spki,
        "--tcti",
        &tcti,
        "--destination",
        "docstore",
    ]);

    let time = |column| {
        format!("to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
    };
    let signed = office
        .database
        .query(&format!(
            "SELECT concat('agent-gateway-permission-v1', E'\\n',
                 'permission_id=', permission_id, E'\\n',
                 'signing_key_id=', signing_key_id, E'\\n',
                 'subject_identity=', subject_identity, E'\\n',
                 'subject_public_key_spki_der=', encode(subject_public_key_spki_der, 'hex'), E'\\n',
                 'destination=', destination, E'\\n',
                 'not_before=', {}, E'\\n', 'not_after=', {})
             FROM permission_registry",
            time("not_before"),
            time("not_after")
        ))
        .unwrap()
        + "\n";
    assert!(signed.contains("\nsigning_key_id=org-alice\nsubject_identity=agent-alpha\n"));
    assert!(signed.contains(&format!("={spki}\ndestination=docstore:443\nnot_before=20")));

    let bytes = |sql: &str| hex::decode(office.database.query(sql).unwrap()).unwrap();
    let signature = bytes("SELECT encode(signature, 'hex') FROM permission_registry");
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
async fn people_see_what_was_granted_in_normal_form() {
    let office = Office::with_scopes(&["docstore"]).await;
    let arguments = office.grant_arguments(&[("--destination", " DocStore:443 ")]);
    let output = office.command(&[]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    let granted = told
        .lines()
        .find(|line| line.starts_with("granted     perm-"));
    assert!(granted.unwrap().ends_with("  docstore:443"), "{told}");
    assert!(told.contains("identity    agent-alpha\n"), "{told}");
    assert!(told.contains("signed by   org-alice\n"), "{told}");
    assert!(told.contains("Z (in 30 d)\n"), "{told}");
    assert_eq!(output.stderr, b"");
}

#[tokio::test]
async fn two_spellings_of_one_destination_are_granted_once() {
    let office = Office::with_scopes(&["docstore", "DOCSTORE:443"]).await;
    assert_eq!(office.count("principal_key_permissions"), 1);
    office.grant(&[
        ("--destination", "docstore"),
        ("--destination", "Docstore:443"),
    ]);
    assert_eq!(office.count("permission_registry"), 1);
}

#[tokio::test]
async fn every_grant_has_an_id_of_its_own() {
    let office = Office::with_scopes(&["docstore"]).await;
    let first = office.grant(&[]);
    let second = office.grant(&[]);
    assert_ne!(first["permissions"], second["permissions"]);
    assert_eq!(office.count("permission_registry"), 2);
}

#[tokio::test]
async fn the_databases_clock_counts_and_not_this_machines() {
    let office = Office::with_scopes(&["docstore"]).await;
    office.grant(&[("--valid", "1d")]);
    // From here on the database is five days ahead.
    office
        .database
        .execute(
            "CREATE SCHEMA ahead;
             CREATE FUNCTION ahead.now() RETURNS timestamptz STABLE LANGUAGE sql
                 AS $$ SELECT pg_catalog.now() + interval '5 days' $$;
             GRANT USAGE ON SCHEMA ahead TO PUBLIC;
             DO $$ BEGIN EXECUTE format(
                 'ALTER DATABASE %I SET search_path = ahead, pg_catalog, public',
                 current_database()); END $$",
        )
        .unwrap();
    let before = now().saturating_add_micros(5 * 86_400_000_000 - 60_000_000);
    let granted = office.grant(&[("--valid", "1d")]);
    let not_before: permission::Timestamp =
        granted["not_before"].as_str().unwrap().parse().unwrap();
    assert!(not_before > before, "{not_before}");
    let listed = office.done(&["list"]);
    let mut states: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["state"])
        .collect();
    states.sort_by_key(ToString::to_string);
    assert_eq!(states, ["active", "expired"]);
}

#[tokio::test]
async fn permission_that_outlives_its_key_is_warned_of() {
    let office = Office::new().await;
    office.done(&[
        "register-key",
        KEY,
        "--key-file",
        &office.key_file(),
        "--valid",
        "1d",
    ]);
    office.done(&["grant-scope", KEY, "docstore"]);
    let arguments = office.grant_arguments(&[]);
    let output = office.command(&[]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("warning: org-alice ends at 20"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}
