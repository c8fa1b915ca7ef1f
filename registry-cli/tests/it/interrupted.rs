//! Ctrl-C: at every question, and in the middle of a large revocation.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use testbed::Swtpm;

use crate::office::{AGENT, KEY, Office};
use crate::user::User;

const NOTHING: &str = "error: interrupted\r\nhint: nothing was changed\r\n";

#[tokio::test]
async fn interrupted_at_a_question_nothing_is_changed() {
    let tpm = Swtpm::start().unwrap();
    let office = Office::new().await;
    let made = office
        .command(&["register-key", KEY])
        .env("AGENT_GATEWAY_TCTI", tpm.tcti())
        .env("AGENT_GATEWAY_TPM_USER_PIN", "hunter2")
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    office.done(&["grant-scope", KEY, "docstore"]);
    let spki = office.spki();
    let grant = [
        "grant",
        "--key",
        KEY,
        "--identity",
        AGENT,
        "--spki",
        &spki,
        "--destination",
        "docstore",
    ];
    let granted = office
        .command(&grant)
        .env("AGENT_GATEWAY_TCTI", tpm.tcti())
        .env("AGENT_GATEWAY_TPM_USER_PIN", "hunter2")
        .output()
        .unwrap();
    assert!(granted.status.success(), "{granted:?}");

    let root_file = crate::office::text(&office.path("root.pem"));
    let root = office.done(&["root", "init", "--root-key-file", &root_file]);
    let registry_id = "SELECT registry_id FROM registry_identity";
    let registry_id = office.database.query(registry_id).unwrap();
    let root_sign = [
        &["root", "sign", "--root-key-file", &root_file][..],
        &["--trust-root", root["spki"].as_str().unwrap()],
        &["--registry-id", &registry_id],
    ]
    .concat();
    let root_init = ["root", "init", "--root-handle", "0x81010020", "--pin"];

    let before = office.rows();
    let other = ["--handle", "0x81010011"];
    let new_pin = [&["register-key", "org-bob", "--pin"][..], &other].concat();
    let rotate = [&["rotate-key", KEY, "org-alice-2", "--pin"][..], &other].concat();
    for (arguments, answers) in [
        (&["revoke", "--identity", AGENT][..], &["[y/N] "][..]),
        (&["revoke-scope", KEY, "docstore"], &["[y/N] "]),
        (&["revoke-key", KEY], &["[y/N] "]),
        (&grant, &["PIN of the key "]),
        (&new_pin, &["new PIN for "]),
        (&new_pin, &["new PIN for ", "the same again: "]),
        (&rotate, &["[y/N] "]),
        (&rotate, &["[y/N] ", "new PIN for ", "the same again: "]),
        (&root_sign, &["[y/N] "]),
        (&root_init, &["new PIN for "]),
    ] {
        let mut user = User::runs(&office, arguments)
            .with("AGENT_GATEWAY_TCTI", &tpm.tcti())
            .sits_down();
        for (number, question) in answers.iter().enumerate() {
            if number > 0 {
                user.types("y\n");
            }
            user.is_asked(question);
        }
        user.types("\x03");
        let (status, screen) = user.leaves();
        assert_eq!(status, 130, "{arguments:?}: {screen}");
        assert!(screen.ends_with(NOTHING), "{arguments:?}: {screen}");
        assert_eq!(office.rows(), before, "{arguments:?}");
    }
    // Nor did a key come into being.
    assert_eq!(handles(&tpm, "handles-persistent"), "- 0x81010010\n");
}

fn handles(tpm: &Swtpm, kind: &str) -> String {
    let listed = Command::new("tpm2_getcap")
        .arg(kind)
        .env("TPM2TOOLS_TCTI", tpm.tcti())
        .output()
        .unwrap();
    String::from_utf8(listed.stdout).unwrap()
}

#[tokio::test]
async fn interrupted_at_the_question_for_the_owners_pin_no_key_is_made() {
    let tpm = Swtpm::start().unwrap();
    let office = Office::with_scopes(&["docstore"]).await;
    office.grant(&[]);
    let set = Command::new("tpm2_changeauth")
        .args(["-c", "owner", "landlord"])
        .env("TPM2TOOLS_TCTI", tpm.tcti())
        .status();
    assert!(set.unwrap().success());
    let before = office.rows();
    for (arguments, agreed) in [
        (&["register-key", "org-bob"][..], false),
        (&["rotate-key", KEY, "org-alice-2"], true),
        (&["root", "init", "--root-handle", "0x81010020"], false),
    ] {
        for typed in ["\x03", "tenant\x03"] {
            let mut user = User::runs(&office, arguments)
                .with("AGENT_GATEWAY_TCTI", &tpm.tcti())
                .sits_down();
            if agreed {
                user.is_asked("[y/N] ");
                user.types("y\n");
            }
            user.is_asked("PIN of the TPM's owner: ");
            user.types(typed);
            let (status, screen) = user.leaves();
            assert_eq!(status, 130, "{arguments:?}: {screen}");
            assert!(screen.ends_with(NOTHING), "{arguments:?}: {screen}");
            assert!(!screen.contains("tenant"), "{screen}");
            assert_eq!(office.rows(), before, "{arguments:?}");
        }
    }
    for kind in [
        "handles-persistent",
        "handles-transient",
        "handles-loaded-session",
    ] {
        assert_eq!(handles(&tpm, kind), "", "{kind}");
    }
}

#[tokio::test]
async fn interrupted_in_the_middle_a_revocation_is_taken_back_as_a_whole() {
    let office = Office::with_scopes(&["docstore"]).await;
    office.grant(&[]);
    let copies = "INSERT INTO permission_registry SELECT 'copy-' || n, signing_key_id,
            subject_identity, subject_public_key_spki_der, destination, not_before, not_after,
            NULL, signature
        FROM permission_registry, generate_series(1, 999) n";
    office.database.execute(copies).unwrap();
    // Half-way through the rows the database takes its time.
    let slow = "CREATE SEQUENCE revoked_so_far;
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF nextval('revoked_so_far') = 500 THEN PERFORM pg_sleep(20); END IF;
                RETURN NEW;
            END $$;
        CREATE TRIGGER slow BEFORE UPDATE ON permission_registry
            FOR EACH ROW EXECUTE FUNCTION slow();";
    office.database.execute(slow).unwrap();
    let before = office.rows();
    let child = office
        .command(&["revoke", "--identity", AGENT, "--yes"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(&office, "SELECT last_value FROM revoked_so_far", "500");
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        said,
        "\nerror: interrupted\nhint: a change is made as a whole or not at all: \
         `agent-gateway-registry list` shows which\n"
    );
    assert_eq!(output.status.signal(), Some(2));
    // Also when the database goes on to the end of the statement that nobody waits for.
    let waits = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE 'UPDATE%'";
    wait_for(&office, waits, "0");
    assert_eq!(office.rows(), before);
}

/// Waits until a query says this.
fn wait_for(office: &Office, query: &str, expected: &str) {
    let deadline = Instant::now() + testbed::process::PATIENCE;
    while office.database.query(query).unwrap() != expected {
        assert!(Instant::now() < deadline, "never {expected}: {query}");
        thread::sleep(Duration::from_millis(10));
    }
}
