//! TPMs that are full, crowded, or go away in the middle of it.

use std::process::{Output, Stdio};

use testbed::{FragileTpm, Swtpm};

use crate::office::{AGENT, KEY, Office, refusal};

fn grant<'a>(spki: &'a str, tcti: &'a str) -> Vec<&'a str> {
    let to = ["--destination", "a", "b", "c"];
    let by = ["grant", "--key", KEY, "--identity", AGENT, "--spki", spki];
    [&by[..], &["--tcti", tcti], &to].concat()
}

#[tokio::test]
async fn tpm_that_goes_away_in_the_middle_leaves_nothing_half_done() {
    let office = Office::new().await;
    let tpm = Swtpm::start().unwrap();
    let fragile = FragileTpm::before(&tpm).unwrap();
    let tcti = fragile.tcti();
    office.done(&["register-key", KEY, "--tcti", &tcti]);
    office.done(&["grant-scope", KEY, "a", "b", "c"]);
    let spki = office.spki();
    let grant = grant(&spki, &tcti);
    let mut failed = 0;
    for commands in 0.. {
        fragile.breaks_after(commands);
        let output = office.cli(&grant);
        if output.status.success() {
            break;
        }
        failed += 1;
        let (status, said) = refusal(&output);
        assert_eq!(status, 69, "{said}");
        assert!(said.starts_with("error: cannot reach the TPM"), "{said}");
        assert_eq!(office.count("permission_registry"), 0);
    }
    // Opening takes some, and each of the three signatures one.
    assert!(failed > 3, "{failed}");
    assert_eq!(office.count("permission_registry"), 3);
}

#[tokio::test]
async fn full_tpm_is_told_with_what_to_do() {
    let office = Office::new().await;
    let tpm = Swtpm::start().unwrap();
    let tcti = tpm.tcti();
    let register = |number: u32| {
        let (id, handle) = (
            format!("key-{number}"),
            format!("{:#010x}", 0x8101_0010 + number),
        );
        office.cli(&["register-key", &id, "--tcti", &tcti, "--handle", &handle])
    };
    let outcomes = (0..100).map(register);
    let output = outcomes.into_iter().find(|output| !output.status.success());
    let (status, said) = refusal(&output.unwrap());
    assert_eq!(status, 73);
    assert!(
        said.starts_with("error: the TPM has no room for another key"),
        "{said}"
    );
    assert!(said.contains("`tpm2_evictcontrol -c HANDLE`"), "{said}");
}

#[tokio::test]
async fn commands_at_once_on_one_tpm_all_succeed() {
    let office = Office::new().await;
    let tpm = Swtpm::start().unwrap();
    let tcti = FragileTpm::before(&tpm).unwrap().tcti();
    let at_once = |commands: &[Vec<&str>]| -> Vec<Output> {
        let started: Vec<_> = commands
            .iter()
            .map(|arguments| {
                let mut command = office.command(arguments);
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                command.spawn().unwrap()
            })
            .collect();
        let outcomes = started
            .into_iter()
            .map(|child| child.wait_with_output().unwrap());
        outcomes.collect()
    };
    let handles = ["0x81010010", "0x81010011", "0x81010012"];
    let ids = [KEY, "org-bob", "org-carol"];
    let register: Vec<_> = ids
        .iter()
        .zip(&handles)
        .map(|(id, handle)| vec!["register-key", id, "--tcti", &tcti, "--handle", handle])
        .collect();
    for output in at_once(&register) {
        assert!(output.status.success(), "{output:?}");
    }
    office.done(&["grant-scope", KEY, "a", "b", "c"]);
    let spki = office.spki();
    let grants = vec![grant(&spki, &tcti); 4];
    for output in at_once(&grants) {
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(office.count("permission_registry"), 12);

    // One handle: one of them makes the key, and to the other it belongs to somebody else.
    let same = ["x", "y"].map(|id| {
        vec![
            "register-key",
            id,
            "--tcti",
            &tcti,
            "--handle",
            "0x81010020",
        ]
    });
    let mut statuses: Vec<_> = at_once(&same)
        .iter()
        .map(|output| output.status.code())
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [Some(0), Some(73)]);
}
