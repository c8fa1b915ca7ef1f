//! Keys in the TPM that have a PIN: from the environment, or typed.

use std::process::{Command, Output};

use testbed::Swtpm;

use crate::office::{AGENT, KEY, Office, refusal};
use crate::user::User;

const USER_PIN: &str = "AGENT_GATEWAY_TPM_USER_PIN";
const OWNER_PIN: &str = "AGENT_GATEWAY_TPM_SO_PIN";

/// Runs a command that talks with the TPM, with these variables.
fn with(office: &Office, tpm: &Swtpm, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = office.command(arguments);
    command
        .env("AGENT_GATEWAY_TCTI", tpm.tcti())
        .envs(variables.iter().copied());
    command.output().unwrap()
}

fn grant(office: &Office) -> Vec<String> {
    let spki = office.spki();
    [
        "grant",
        "--key",
        KEY,
        "--identity",
        AGENT,
        "--spki",
        &spki,
        "--destination",
        "docstore",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// With a key that has the PIN hunter2, and a scope.
async fn office_with_pin(tpm: &Swtpm) -> Office {
    let office = Office::new().await;
    let output = with(
        &office,
        tpm,
        &[(USER_PIN, "hunter2")],
        &["register-key", KEY],
    );
    assert!(output.status.success(), "{output:?}");
    office.done(&["grant-scope", KEY, "docstore"]);
    office
}

#[tokio::test]
async fn key_with_a_pin_signs_for_who_has_it_in_the_environment() {
    let tpm = Swtpm::start().unwrap();
    let office = office_with_pin(&tpm).await;
    let grant = grant(&office);
    let grant = crate::office::strs(&grant);
    let before = office.rows();
    for (variables, expected, hint) in [
        (
            vec![],
            " has a PIN, and none was given\n",
            "set AGENT_GATEWAY_TPM_USER_PIN, or run",
        ),
        (
            vec![(USER_PIN, "hunter3")],
            "; the TPM locks after 2 more wrong ones\n",
            "give the right one in AGENT_GATEWAY_TPM_USER_PIN",
        ),
        (
            vec![(USER_PIN, "")],
            "; one more wrong one, and the TPM locks\n",
            "give the right one in AGENT_GATEWAY_TPM_USER_PIN",
        ),
    ] {
        let (status, said) = refusal(&with(&office, &tpm, &variables, &grant));
        assert_eq!(status, 67, "{said}");
        assert!(said.contains(expected), "{said}");
        assert!(said.contains(&format!("hint: {hint}")), "{said}");
        assert!(!said.contains("hunter"), "{said}");
    }
    assert_eq!(office.rows(), before);
    let output = with(&office, &tpm, &[(USER_PIN, "hunter2")], &grant);
    assert!(output.status.success(), "{output:?}");
    // What needs no signature needs no PIN.
    let again = with(&office, &tpm, &[], &["register-key", KEY]);
    assert!(again.status.success(), "{again:?}");
}

#[tokio::test]
async fn locked_tpm_is_told_from_a_wrong_pin() {
    let tpm = Swtpm::start().unwrap();
    let office = office_with_pin(&tpm).await;
    let grant = grant(&office);
    let grant = crate::office::strs(&grant);
    let status = |pin| refusal(&with(&office, &tpm, &[(USER_PIN, pin)], &grant));
    for _ in 0..3 {
        assert_eq!(status("guess").0, 67);
    }
    for pin in ["guess", "hunter2"] {
        let (status, said) = status(pin);
        assert_eq!(status, 68, "{said}");
        assert!(
            said.contains(" is locked after too many wrong PINs; "),
            "{said}"
        );
        assert!(said.contains("`tpm2_dictionarylockout -c`"), "{said}");
    }
    assert_eq!(office.count("permission_registry"), 0);
}

#[tokio::test]
async fn what_can_be_no_pin_is_refused_and_not_shown() {
    let tpm = Swtpm::start().unwrap();
    let office = Office::new().await;
    for secret in ["hunter2\n".to_owned(), "hunter2".repeat(5)] {
        for variable in [USER_PIN, OWNER_PIN] {
            let output = with(
                &office,
                &tpm,
                &[(variable, &secret)],
                &["register-key", KEY],
            );
            let (status, said) = refusal(&output);
            assert_eq!(status, 67, "{said}");
            assert!(
                said.starts_with(&format!("error: {variable}: a PIN has ")),
                "{said}"
            );
            assert!(!said.contains("hunter"), "{said}");
        }
    }
    let none = with(&office, &tpm, &[], &["register-key", KEY, "--pin"]);
    let (status, said) = refusal(&none);
    assert_eq!(status, 64);
    assert!(
        said.starts_with("error: no PIN was given for the new key\n"),
        "{said}"
    );
    assert_eq!(office.count("principal_signing_keys"), 0);
}

#[tokio::test]
async fn owner_with_a_pin_makes_a_key_for_who_knows_it() {
    let tpm = Swtpm::start().unwrap();
    let office = Office::new().await;
    let set = Command::new("tpm2_changeauth")
        .args(["-c", "owner", "secret"])
        .env("TPM2TOOLS_TCTI", tpm.tcti())
        .status();
    assert!(set.unwrap().success());
    let register = ["register-key", KEY];
    for (variables, expected) in [
        (vec![], "error: its owner has a PIN, and none was given, so"),
        (
            vec![(OWNER_PIN, "guess")],
            "error: that is not its owner's PIN, so",
        ),
    ] {
        let (status, said) = refusal(&with(&office, &tpm, &variables, &register));
        assert_eq!(status, 67);
        assert!(said.starts_with(expected), "{said}");
        assert!(
            said.contains("hint: set AGENT_GATEWAY_TPM_SO_PIN to"),
            "{said}"
        );
    }
    let output = with(&office, &tpm, &[(OWNER_PIN, "secret")], &register);
    assert!(output.status.success(), "{output:?}");
    office.done(&["revoke-key", KEY, "--yes"]);

    let mut user = User::runs(
        &office,
        &["register-key", "org-bob", "--handle", "0x81010011"],
    )
    .with("AGENT_GATEWAY_TCTI", &tpm.tcti())
    .sits_down();
    user.is_asked("PIN of the TPM's owner: ");
    user.types("secret\n");
    let (status, screen) = user.leaves();
    assert_eq!(status, 0, "{screen}");
    assert!(!screen.contains("secret"), "{screen}");
}

#[tokio::test]
async fn user_types_pins_unseen() {
    let tpm = Swtpm::start().unwrap();
    let office = Office::new().await;
    let tcti = tpm.tcti();
    let sits_down = |arguments: &[&str]| {
        User::runs(&office, arguments)
            .with("AGENT_GATEWAY_TCTI", &tcti)
            .sits_down()
    };
    for (first, second) in [("hunter2\n", "hunter3\n"), ("\n", "\n")] {
        let mut user = sits_down(&["register-key", KEY, "--pin"]);
        user.is_asked(&format!("new PIN for 0x81010010 at {tcti}: "));
        user.types(first);
        user.is_asked("the same again: ");
        user.types(second);
        let (status, screen) = user.leaves();
        assert_eq!(status, 67, "{screen}");
        assert!(
            screen.contains("error: the two PINs differ, or are empty"),
            "{screen}"
        );
        assert!(!screen.contains("hunter"), "{screen}");
    }
    assert_eq!(office.count("principal_signing_keys"), 0);

    let mut user = sits_down(&["register-key", KEY, "--pin"]);
    user.is_asked(": ");
    user.types("hunter2\n");
    user.is_asked("again: ");
    user.types("hunter2\n");
    let (status, screen) = user.leaves();
    assert_eq!(status, 0, "{screen}");
    assert!(screen.contains("(made)"), "{screen}");
    office.done(&["grant-scope", KEY, "docstore"]);

    let grant = grant(&office);
    let grant = crate::office::strs(&grant);
    for (typed, expected) in [("hunter3\n", 67), ("\x04", 67), ("hunter2\n", 0)] {
        let mut user = sits_down(&grant);
        user.is_asked(&format!("PIN of the key 0x81010010 at {tcti}: "));
        user.types(typed);
        let (status, screen) = user.leaves();
        assert_eq!(status, expected, "{typed:?}: {screen}");
        assert!(!screen.contains("hunter"), "{screen}");
    }
    assert_eq!(office.count("permission_registry"), 1);
}
