//! `register-key`: what is made, what is found, and what is already taken.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use testbed::Swtpm;

use crate::office::{KEY, Office, refusal, text};

#[tokio::test]
async fn key_is_made_once_and_then_found() {
    let office = Office::new().await;
    let tpm = Swtpm::start().unwrap();
    let tcti = tpm.tcti();
    let first = office.done(&["register-key", KEY, "--tcti", &tcti]);
    let before = office.rows();
    let again = office.done(&["register-key", KEY, "--tcti", &tcti, "--valid", "1d"]);
    assert_eq!(
        (&first["outcome"], &first["key"]),
        (&"registered".into(), &"made".into())
    );
    assert_eq!(
        (&again["outcome"], &again["key"]),
        (&"already registered".into(), &"found".into())
    );
    for field in ["spki", "not_before", "not_after"] {
        assert_eq!(first[field], again[field], "{field}");
    }
    assert_eq!(office.rows(), before);

    let told = office.cli(&["register-key", KEY, "--tcti", &tcti]);
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(
        told.starts_with("already registered  org-alice\n"),
        "{told}"
    );
    assert!(told.contains(first["spki"].as_str().unwrap()), "{told}");
}

#[tokio::test]
async fn tpm_of_the_environment_is_used_and_may_be_overruled() {
    let office = Office::new().await;
    let (tpm, other) = (Swtpm::start().unwrap(), Swtpm::start().unwrap());
    let register = |arguments: &[&str]| {
        let mut command = office.command(&["register-key", "--json"]);
        command
            .args(arguments)
            .env("AGENT_GATEWAY_TCTI", tpm.tcti());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["place"].clone()
    };
    let default = format!("0x81010010 at {}", tpm.tcti());
    assert_eq!(register(&["a"]), default);
    let handle = format!("0x81010011 at {}", tpm.tcti());
    assert_eq!(register(&["b", "--handle", "0x81010011"]), handle);
    let overruled = format!("0x81010010 at {}", other.tcti());
    assert_eq!(register(&["c", "--tcti", &other.tcti()]), overruled);
    // Nor does it stand in the way of a software key.
    let path = office.key_file();
    assert_eq!(register(&["d", "--key-file", &path]), path);
}

#[tokio::test]
async fn software_key_is_its_owners_alone_and_warned_of() {
    let office = Office::new().await;
    let path = office.key_file();
    for origin in ["made", "found"] {
        let output = office.cli(&["register-key", KEY, "--key-file", &path]);
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("warning: "), "{said}");
        assert!(said.contains("can copy it"), "{said}");
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(
            told.contains(&format!("key         {path} ({origin})")),
            "{told}"
        );
    }
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn id_of_another_key_is_refused() {
    let office = Office::with_scopes(&[]).await;
    let tpm = Swtpm::start().unwrap();
    let other = text(&office.path("other.pem"));
    office.done(&["register-key", "org-bob", "--key-file", &other]);

    let (status, said) = office.refused(&["register-key", KEY, "--key-file", &other]);
    assert_eq!(status, 73);
    assert!(
        said.contains("error: org-alice is already registered, with another key"),
        "{said}"
    );

    // Where no key is, none is made for an id that is taken.
    let missing = text(&office.path("missing.pem"));
    let (status, _) = office.refused(&["register-key", KEY, "--key-file", &missing]);
    assert_eq!(status, 73);
    assert!(!office.path("missing.pem").exists());
    let (status, _) = office.refused(&["register-key", KEY, "--tcti", &tpm.tcti()]);
    assert_eq!(status, 73);
    let fresh = office.done(&["register-key", "org-carol", "--tcti", &tpm.tcti()]);
    assert_eq!(fresh["key"], "made");
}

#[tokio::test]
async fn key_of_another_id_is_refused_and_the_id_named() {
    let office = Office::with_scopes(&[]).await;
    let (status, said) =
        office.refused(&["register-key", "org-bob", "--key-file", &office.key_file()]);
    assert_eq!(status, 73);
    assert!(
        said.contains("error: this key is already registered as org-alice\n"),
        "{said}"
    );
}

#[tokio::test]
async fn key_that_no_longer_counts_is_not_called_registered() {
    let office = Office::with_scopes(&[]).await;
    for (change, expected) in [
        ("revoked_at = now()", "error: key org-alice was revoked\n"),
        (
            "revoked_at = NULL, not_after = now()",
            "error: key org-alice ended at 20",
        ),
    ] {
        let sql = format!("UPDATE principal_signing_keys SET {change}");
        office.database.execute(&sql).unwrap();
        let (status, said) =
            office.refused(&["register-key", KEY, "--key-file", &office.key_file()]);
        assert_eq!(status, 65, "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn unfit_key_files_are_refused() {
    let office = Office::new().await;
    let exposed = office.key_file();
    office.done(&["register-key", KEY, "--key-file", &exposed]);
    fs::set_permissions(&exposed, fs::Permissions::from_mode(0o640)).unwrap();
    let (status, said) = office.refused(&["register-key", KEY, "--key-file", &exposed]);
    assert_eq!(status, 77);
    assert!(said.contains("has mode 0640"), "{said}");

    let garbage = office.file("garbage.pem", "SECRET GARBAGE");
    fs::set_permissions(&garbage, fs::Permissions::from_mode(0o600)).unwrap();
    let (status, said) = office.refused(&["register-key", "b", "--key-file", &garbage]);
    assert_eq!(status, 65);
    assert!(!said.contains("SECRET"), "{said}");

    let nowhere = text(&office.path("no/such/folder.pem"));
    let (status, _) = office.refused(&["register-key", "c", "--key-file", &nowhere]);
    assert_eq!(status, 73);
}

#[tokio::test]
async fn tpm_and_key_file_exclude_each_other() {
    let office = Office::new().await;
    for tpm in [["--tcti", "swtpm:port=1"], ["--handle", "0x81010010"]] {
        let arguments = [&["register-key", KEY, "--key-file", "x"][..], &tpm].concat();
        let output = office.cli(&arguments);
        assert_eq!(output.status.code(), Some(64), "{output:?}");
    }
}

#[tokio::test]
async fn bad_key_ids_are_refused() {
    let office = Office::new().await;
    let long = "a".repeat(257);
    for id in ["", "a\nb", "a\u{85}", &long] {
        for arguments in [
            vec!["register-key", id, "--key-file", "x"],
            vec!["grant-scope", id, "docstore"],
        ] {
            let (status, said) = refusal(&office.cli(&arguments));
            assert_eq!(status, 65, "{id:?}");
            assert!(said.starts_with("error: key id "), "{said}");
        }
    }
    assert_eq!(office.count("principal_signing_keys"), 0);
}
