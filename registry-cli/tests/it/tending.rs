//! `verify`, `doctor`, `rotate-key` and `list tunnels`: looking after what is there.

use permission::{Decision, Reason, decide};
use serde_json::{Value, json};
use testbed::rows::{Grant, Principal, Times};
use testbed::{Authz, AuthzOptions, Swtpm};

use crate::office::{AGENT, KEY, Office, now, refusal, text};

const DAY: i64 = 86_400;

/// Exit status and the lines of JSON of `verify`.
fn verify(office: &Office) -> (i32, Vec<Value>) {
    let output = office.cli(&["verify", "--json"]);
    assert_eq!(output.stderr, b"", "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    let lines = told.lines().map(|line| serde_json::from_str(line).unwrap());
    (output.status.code().unwrap(), lines.collect())
}

#[tokio::test]
async fn verify_names_each_bad_row_and_no_other() {
    let office = Office::new().await;
    let alice = Principal::registered(&office.database, &["docstore:443"]).unwrap();
    let spki = office.agent.spki_der();
    for (id, times) in [
        ("good", Times::from_now(-3600, 30 * DAY)),
        ("good-expired", Times::from_now(-90 * DAY, -80 * DAY)),
        ("good-future", Times::from_now(DAY, 2 * DAY)),
        ("good-revoked", Times::from_now(-90 * DAY, 90 * DAY)),
        ("bad-expired", Times::from_now(-3 * DAY, -DAY)),
        ("bad-form", Times::default()),
        ("bad-long", Times::from_now(-3600, 90 * DAY)),
        ("bad-moved", Times::default()),
    ] {
        let mut grant = Grant::new(AGENT, spki, "docstore:443").during(times);
        id.clone_into(&mut grant.permission_id);
        alice.grant(&office.database, &grant).unwrap();
    }
    let set = "UPDATE permission_registry SET";
    let change = format!(
        "{set} revoked_at = now() WHERE permission_id = 'good-revoked';
         {set} subject_identity = 'agent-beta' WHERE permission_id = 'bad-expired';
         {set} destination = 'Docstore:443' WHERE permission_id = 'bad-form';
         {set} destination = 'messaging:443' WHERE permission_id = 'bad-moved'"
    );
    office.database.execute(&change).unwrap();
    let bad = |id: &str, fault: &str| json!({"table": "permission", "id": id, "fault": fault});
    let (status, lines) = verify(&office);
    assert_eq!(
        lines,
        [
            bad("bad-expired", "signature_invalid"),
            bad("bad-form", "unusable destination"),
            bad("bad-long", "scope_missing"),
            bad("bad-moved", "signature_invalid"),
            json!({"checked": 10, "bad": 4}),
        ]
    );
    assert_eq!(status, 1);

    let change = "DELETE FROM permission_registry WHERE permission_id LIKE 'bad%'";
    office.database.execute(change).unwrap();
    let output = office.cli(&["verify"]);
    assert_eq!(output.stdout, b"6 rows checked, 0 bad\n");
    assert_eq!(output.status.code(), Some(0));

    let change = "UPDATE principal_signing_keys SET public_key_spki_der = '\\x00';
        UPDATE principal_key_permissions SET destination = E'x\\x1b'";
    office.database.execute(change).unwrap();
    let output = office.cli(&["verify"]);
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(
        told.starts_with("bad key org-alice: public key is not"),
        "{told}"
    );
    assert!(
        told.contains("\nbad scope org-alice for x\\u{1b}: unusable destination\n"),
        "{told}"
    );
    assert!(
        told.contains("\nbad permission good-expired: signing_key_unknown\n"),
        "{told}"
    );
    assert!(told.ends_with("\n6 rows checked, 6 bad\n"), "{told}");
}

#[tokio::test]
async fn verify_goes_through_more_rows_than_it_holds_at_a_time() {
    let office = Office::new().await;
    let alice = Principal::registered(&office.database, &["docstore:443"]).unwrap();
    let grant = Grant::new(AGENT, office.agent.spki_der(), "docstore:443");
    alice.grant(&office.database, &grant).unwrap();
    // Copies under other ids: none of them is what was signed.
    let copies = "INSERT INTO permission_registry SELECT 'copy-' || n, signing_key_id,
            subject_identity, subject_public_key_spki_der, destination, not_before, not_after,
            NULL, signature
        FROM permission_registry, generate_series(1, 4500) n";
    office.database.execute(copies).unwrap();
    let (status, lines) = verify(&office);
    assert_eq!(lines.last(), Some(&json!({"checked": 4503, "bad": 4500})));
    assert_eq!((status, lines.len()), (1, 4501));
}

fn checks(office: &Office, arguments: &[&str]) -> (i32, Vec<(String, String, String)>) {
    let output = office.cli(&[&["doctor", "--json"], arguments].concat());
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let field = |check: &Value, name: &str| check[name].as_str().unwrap().to_owned();
    let checks = told.as_array().unwrap().iter();
    let checks = checks.map(|check| {
        (
            field(check, "check"),
            field(check, "status"),
            field(check, "detail"),
        )
    });
    (output.status.code().unwrap(), checks.collect())
}

#[tokio::test]
async fn doctor_says_what_is_well_and_what_is_not() {
    let office = Office::with_scopes(&["docstore"]).await;
    office.grant(&[("--valid", "3d")]);
    let key = office.key_file();
    let (status, found) = checks(&office, &["--key-file", &key]);
    let statuses: Vec<_> = found
        .iter()
        .map(|(check, status, _)| (&**check, &**status))
        .collect();
    assert_eq!(
        statuses,
        [
            ("database", "ok"),
            ("role", "ok"),
            ("clock", "ok"),
            ("expiry", "warning"),
            ("key", "ok"),
        ]
    );
    assert_eq!(
        found[3].2,
        "within 7d end: keys 0, scopes 0, permissions 1, PoCA keys 0"
    );
    assert_eq!(status, 0);
    let (_, found) = checks(&office, &["--key-file", &key, "--within", "1d"]);
    assert_eq!(found[3].1, "ok");

    let mut tpm = Swtpm::start().unwrap();
    let tcti = tpm.tcti();
    let (status, found) = checks(&office, &["--tcti", &tcti]);
    assert_eq!((status, &*found[4].1), (0, "warning"));
    tpm.stop().unwrap();
    let output = office
        .command(&["doctor", "--tcti", &tcti])
        .env(
            "AGENT_GATEWAY_DATABASE_URL",
            "postgres://nobody@127.0.0.1:1/none",
        )
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(
        told.starts_with("database  failed   database can't be reached"),
        "{told}"
    );
    assert!(
        told.contains("\nkey       failed   cannot reach the TPM"),
        "{told}"
    );
}

#[tokio::test]
async fn new_key_takes_over_and_the_old_one_ends() {
    let office = Office::new().await;
    let tpm = Swtpm::start().unwrap();
    let tcti = tpm.tcti();
    office.done(&["register-key", KEY, "--tcti", &tcti]);
    office.done(&["grant-scope", KEY, "docstore", "messaging"]);
    let spki = office.spki();
    for (id, destination) in [("perm-1", "docstore"), ("perm-2", "messaging")] {
        office.done(&[
            "grant",
            "--key",
            KEY,
            "--identity",
            AGENT,
            "--spki",
            &spki,
            "--destination",
            destination,
            "--tcti",
            &tcti,
            "--id",
            id,
        ]);
    }
    office.done(&["revoke", "--id", "perm-2", "--yes"]);
    let rotate = [
        "rotate-key",
        KEY,
        "org-alice-2",
        "--tcti",
        &tcti,
        "--handle",
        "0x81010011",
        "--old-ends-in",
        "1h",
    ];
    let (status, said) = office.refused(&rotate);
    assert_eq!(status, 64);
    assert!(said.starts_with("error: not done without a yes"), "{said}");

    let output = office.cli(&[&rotate[..], &["--yes", "--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    let plan = String::from_utf8(output.stderr).unwrap();
    assert!(
        plan.contains("\nold key     org-alice ends at 20"),
        "{plan}"
    );
    assert!(
        plan.contains("\nsign again  perm-1  agent-alpha  docstore:443\n"),
        "{plan}"
    );
    assert!(!plan.contains("perm-2"), "{plan}");
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&done["scopes"], &done["permissions"][0]["old"]),
        (&json!(2), &json!("perm-1"))
    );

    let request = office.request("docstore");
    let facts = office.facts(&request).await;
    assert_eq!(facts.candidates.len(), 2);
    assert!(matches!(
        decide(&facts, &request, now()),
        Decision::Allow(_)
    ));
    // After the old key's end the new one carries the permission on.
    let later = now().saturating_add_micros(2 * 3600 * 1_000_000);
    let Decision::Allow(permit) = decide(&facts, &request, later) else {
        panic!("{:?}", decide(&facts, &request, later))
    };
    let by = &permit.permission().permission_id;
    assert_eq!(done["permissions"][0]["new"], by.as_str());
    let request = office.request("messaging");
    let facts = office.facts(&request).await;
    assert_eq!(
        decide(&facts, &request, now()),
        Decision::Deny(Reason::PermissionRevoked)
    );
    assert_eq!(verify(&office).0, 0);

    let (status, _) = office.refused(&[&rotate[..], &["--yes"]].concat());
    assert_eq!(status, 73);
    let same = ["rotate-key", KEY, "org-alice-3", "--tcti", &tcti, "--yes"];
    let (status, said) = office.refused(&same);
    assert_eq!(status, 73);
    assert!(
        said.starts_with("error: this key is already registered as org-alice\n"),
        "{said}"
    );
    let (status, _) = office.refused(&["rotate-key", "org-bob", "x", "--tcti", &tcti, "--yes"]);
    assert_eq!(status, 65);
}

#[tokio::test]
async fn tunnels_are_listed_by_the_services_that_hold_them() {
    let office = Office::new().await;
    let service = Authz::start(&AuthzOptions {
        database_url: office.database.url(),
        ..AuthzOptions::default()
    })
    .unwrap();
    let admin = service.admin_grpc_addr().to_string();
    assert_eq!(
        office.done(&["list", "tunnels", "--admin", &admin]),
        json!([])
    );
    let told = office.cli(&["list", "tunnels", "--identity", AGENT, "--admin", &admin]);
    assert!(
        told.stdout
            .starts_with(b"IDENTITY  DESTINATION  PERMISSION ID  SPKI  OPENED  ")
    );

    drop(service);
    let (status, said) = refusal(&office.cli(&["list", "tunnels", "--admin", &admin]));
    assert_eq!(status, 69);
    assert!(
        said.starts_with(&format!("error: {admin} can't be reached")),
        "{said}"
    );
    let socket = format!("unix:{}", text(&office.path("admin.sock")));
    assert_eq!(
        refusal(&office.cli(&["list", "tunnels", "--admin", &socket])).0,
        69
    );
    for wrong in [
        &["list", "tunnels"][..],
        &["list", "tunnels", "--admin", &admin, "--key", KEY],
        &["list", "tunnels", "--admin", &admin, "--state", "active"],
        &["list", "permissions", "--admin", &admin],
    ] {
        assert_eq!(refusal(&office.cli(wrong)).0, 64, "{wrong:?}");
    }
}
