//! Databases and TPMs that are down, strange, or not ours to change.

use std::fs;
use std::process::{Command, Stdio};

use testbed::{Postgres, Swtpm};

use crate::office::{AGENT, KEY, Office, refusal, strs};

#[tokio::test]
async fn tpm_that_is_down_is_told_in_two_lines() {
    let office = Office::new().await;
    let mut tpm = Swtpm::start().unwrap();
    let tcti = tpm.tcti();
    office.done(&["register-key", KEY, "--tcti", &tcti]);
    office.done(&["grant-scope", KEY, "docstore"]);
    tpm.stop().unwrap();
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
        "--tcti",
        &tcti,
    ];
    for arguments in [&grant[..], &["register-key", "org-bob", "--tcti", &tcti]] {
        let (status, said) = office.refused(arguments);
        assert_eq!(status, 69);
        assert!(said.starts_with("error: cannot reach the TPM"), "{said}");
        assert!(said.contains("\nhint: check that the TPM runs"), "{said}");
    }
    tpm.start_again().unwrap();
    office.done(&grant);
}

#[tokio::test]
async fn handle_that_holds_something_else_is_left_alone() {
    let office = Office::new().await;
    let tpm = Swtpm::start().unwrap();
    let tcti = tpm.tcti();
    let context = office.path("primary.ctx");
    for arguments in [
        &["createprimary", "-Q", "-c", context.to_str().unwrap()][..],
        &[
            "evictcontrol",
            "-Q",
            "-c",
            context.to_str().unwrap(),
            "0x81010010",
        ],
        &["flushcontext", "-t"],
    ] {
        let mut command = Command::new("tpm2");
        let output = command
            .args(arguments)
            .env("TPM2TOOLS_TCTI", &tcti)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let (status, said) = office.refused(&["register-key", KEY, "--tcti", &tcti]);
    assert_eq!(status, 65);
    assert!(said.contains("hint: choose another --handle\n"), "{said}");
}

#[tokio::test]
async fn role_that_may_only_read_lists_and_changes_nothing() {
    let office = Office::with_scopes(&["docstore"]).await;
    office.grant(&[]);
    office.grant_poca_key(&[]);
    let role = format!("registry_cli_reader_{}", std::process::id());
    office
        .database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'x' IN ROLE agent_gateway_reader"
        ))
        .unwrap();
    let url = office.database.url_as(&role, "x").unwrap();
    let as_reader = |arguments: &[&str]| {
        let mut command = office.command(arguments);
        command
            .env("AGENT_GATEWAY_DATABASE_URL", &url)
            .output()
            .unwrap()
    };
    let listed = as_reader(&["list", "--json"]);
    assert_eq!(listed.stdout, office.cli(&["list", "--json"]).stdout);

    let before = office.rows();
    let other = office.path("other.pem");
    let grant = office.grant_arguments(&[]);
    let grant_poca_key = office.poca_arguments(&[]);
    for arguments in [
        &[
            "register-key",
            "org-bob",
            "--key-file",
            other.to_str().unwrap(),
        ][..],
        &["grant-scope", KEY, "messaging"],
        &strs(&grant),
        &strs(&grant_poca_key),
        &["revoke", "--yes", "--identity", AGENT],
        &["revoke-poca-key", "--yes", "--identity", AGENT],
    ] {
        let (status, said) = refusal(&as_reader(arguments));
        assert_eq!(status, 77, "{arguments:?}");
        assert!(
            said.contains("error: this database role may not change the registry"),
            "{said}"
        );
    }
    assert_eq!(office.rows(), before);
    office
        .database
        .execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .unwrap();
}

#[tokio::test]
async fn database_that_is_read_only_is_told_and_not_changed() {
    let office = Office::with_scopes(&["docstore"]).await;
    office.grant(&[]);
    office.grant_poca_key(&[]);
    // As a standby is, for every role.
    office
        .database
        .execute(
            "DO $$ BEGIN EXECUTE format(
                 'ALTER DATABASE %I SET default_transaction_read_only = on', current_database());
             END $$",
        )
        .unwrap();
    assert!(office.cli(&["list"]).status.success());
    let other = crate::office::text(&office.path("other.pem"));
    let grant = office.grant_arguments(&[]);
    let grant_poca_key = office.poca_arguments(&[]);
    for arguments in [
        &["register-key", "org-bob", "--key-file", &other][..],
        &["grant-scope", KEY, "messaging"],
        &strs(&grant),
        &strs(&grant_poca_key),
        &["revoke", "--yes", "--identity", AGENT],
        &["revoke-poca-key", "--yes", "--identity", AGENT],
        &["revoke-scope", "--yes", KEY, "docstore"],
        &["revoke-key", "--yes", KEY],
    ] {
        let (status, said) = office.refused(arguments);
        assert_eq!(status, 77, "{arguments:?}: {said}");
        assert!(said.contains("connect to the primary"), "{said}");
    }
}

#[tokio::test]
async fn writer_role_needs_no_more() {
    let office = Office::new().await;
    let role = format!("registry_cli_writer_{}", std::process::id());
    office
        .database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'x' IN ROLE agent_gateway_writer"
        ))
        .unwrap();
    let url = office.database.url_as(&role, "x").unwrap();
    let grant = office.grant_arguments(&[]);
    let grant_poca_key = office.poca_arguments(&[]);
    let next = crate::office::text(&office.path("next.pem"));
    for arguments in [
        &["register-key", KEY, "--key-file", &office.key_file()][..],
        &["grant-scope", KEY, "docstore"],
        &strs(&grant),
        &strs(&grant_poca_key),
        &["list"],
        &["list", "poca-keys"],
        &["verify"],
        &["rotate-key", KEY, "next", "--key-file", &next, "--yes"],
        &["revoke", "--yes", "--identity", AGENT],
        &["revoke-poca-key", "--yes", "--identity", AGENT],
    ] {
        let mut command = office.command(arguments);
        let output = command
            .env("AGENT_GATEWAY_DATABASE_URL", &url)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    office
        .database
        .execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .unwrap();
}

#[tokio::test]
async fn registry_that_was_never_migrated_is_told_and_no_key_is_made() {
    let office = Office::unmigrated().await;
    let grant = office.grant_arguments(&[]);
    let grant_poca_key = office.poca_arguments(&[]);
    for arguments in [
        &["register-key", KEY, "--key-file", &office.key_file()][..],
        &["grant-scope", KEY, "docstore"],
        &strs(&grant),
        &strs(&grant_poca_key),
        &["revoke", "--yes", "--identity", AGENT],
        &["revoke-poca-key", "--yes", "--identity", AGENT],
        &["list"],
    ] {
        let (status, said) = refusal(&office.cli(arguments));
        assert_eq!(status, 78, "{arguments:?}");
        assert!(
            said.contains("\nhint: run `agent-gateway-authz migrate"),
            "{said}"
        );
    }
    assert!(!fs::exists(office.key_file()).unwrap());
}

#[tokio::test]
async fn environment_must_name_a_database() {
    let office = Office::new().await;
    let url = office.database.url();
    let run = |ours: Option<&str>, common: Option<&str>| {
        let mut command = office.command(&["list"]);
        command.env_remove("AGENT_GATEWAY_DATABASE_URL");
        for (name, value) in [
            ("AGENT_GATEWAY_DATABASE_URL", ours),
            ("DATABASE_URL", common),
        ] {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        command.stdin(Stdio::null()).output().unwrap()
    };
    for (ours, common) in [
        (Some(&*url), None),
        (None, Some(&*url)),
        (Some(""), Some(&*url)),
        (Some(&*url), Some("mysql://elsewhere")),
    ] {
        assert!(run(ours, common).status.success(), "{ours:?} {common:?}");
    }
    for (ours, common) in [
        (None, None),
        (Some(""), Some("")),
        (Some("hunter2 is no url"), None),
        (Some("postgres://u:hunter2@localhost:port/x"), Some(&*url)),
        (None, Some("mysql://u:hunter2@localhost/x")),
    ] {
        let (status, said) = refusal(&run(ours, common));
        assert_eq!(status, 64, "{ours:?} {common:?}: {said}");
        assert!(said.contains("postgres://user:password@host"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn option_goes_before_the_environment_and_its_password_is_warned_of() {
    let office = Office::new().await;
    let url = office.database.url();
    let run = |option: &str| {
        let mut command = office.command(&["list", "--database-url", option]);
        command.env(
            "AGENT_GATEWAY_DATABASE_URL",
            "postgres://nobody@127.0.0.1:1/none",
        );
        command.output().unwrap()
    };
    let output = run(&url);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stderr, b"");
    let output = run(&url.replacen('@', ":hunter2@", 1));
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("warning: other users of this machine can see the password"),
        "{said}"
    );
    assert!(!said.contains("hunter2"), "{said}");
    for wrong in ["", "hunter2", "mysql://u:hunter2@localhost/x"] {
        let (status, said) = refusal(&run(wrong));
        assert_eq!(status, 64, "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn bad_tpm_address_in_the_environment_is_wrong_usage() {
    let office = Office::new().await;
    let mut command = office.command(&["register-key", KEY]);
    let output = command
        .env("AGENT_GATEWAY_TCTI", "swtmp:")
        .output()
        .unwrap();
    let (status, said) = refusal(&output);
    assert_eq!(status, 64);
    assert!(
        said.starts_with("error: AGENT_GATEWAY_TCTI: not a TPM address"),
        "{said}"
    );
}

#[tokio::test]
async fn database_that_refuses_or_is_down_never_shows_the_password() {
    let office = Office::new().await;
    let mut server = Postgres::start().await.unwrap();
    let psql = |sql: &str| {
        let mut command = Command::new("psql");
        let output = command
            .args(["-XqAt", "-c", sql, &server.url("postgres")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    psql("CREATE ROLE locked LOGIN PASSWORD 'right'");
    let data = psql("SHOW data_directory");
    psql(&format!(
        "COPY (VALUES ('host all locked all scram-sha-256'), ('host all all all trust'))
         TO '{data}/pg_hba.conf'"
    ));
    server.stop().unwrap();
    server.start_again().await.unwrap();

    let url = server
        .url("postgres")
        .replace("postgres@", "locked:hunter2@");
    let list = || {
        let mut command = office.command(&["list"]);
        command
            .env("AGENT_GATEWAY_DATABASE_URL", &url)
            .output()
            .unwrap()
    };
    let (status, said) = refusal(&list());
    assert_eq!(status, 69);
    assert!(said.contains("password authentication failed"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");

    server.stop().unwrap();
    let (status, said) = refusal(&list());
    assert_eq!(status, 69);
    assert!(
        said.starts_with("error: database can't be reached"),
        "{said}"
    );
    assert!(!said.contains("hunter2"), "{said}");
}

#[tokio::test]
async fn database_that_hangs_is_given_up_on() {
    let office = Office::new().await;
    let mut server = Postgres::start().await.unwrap();
    server.pause().unwrap();
    let mut command = office.command(&["list"]);
    let output = command
        .env("AGENT_GATEWAY_DATABASE_URL", server.url("postgres"))
        .output()
        .unwrap();
    let (status, said) = refusal(&output);
    assert_eq!(status, 69);
    assert!(
        said.starts_with("error: database did not answer within 5s\n"),
        "{said}"
    );
}

#[tokio::test]
async fn help_and_version_go_to_stdout() {
    let office = Office::new().await;
    for argument in ["--help", "--version"] {
        let output = office.cli(&[argument]);
        assert!(output.status.success(), "{output:?}");
        assert!(!output.stdout.is_empty());
        assert_eq!(output.stderr, b"");
    }
    let help = String::from_utf8(office.cli(&["--help"]).stdout).unwrap();
    for status in [0, 1, 64, 65, 66, 67, 68, 69, 70, 73, 74, 77, 78] {
        let documented = |line: &str| line.trim_start().starts_with(&format!("{status}  "));
        assert!(help.lines().any(documented), "{status}: {help}");
    }
}
