//! The simulated TPM.

use std::process::Command;

use testbed::Swtpm;

fn nv_index_exists(tpm: &Swtpm) -> bool {
    tpm2(tpm, &["tpm2_nvreadpublic", "0x1500016"])
}

fn tpm2(tpm: &Swtpm, arguments: &[&str]) -> bool {
    let output = Command::new(arguments[0])
        .args(&arguments[1..])
        .env("TPM2TOOLS_TCTI", tpm.tcti())
        .output()
        .unwrap();
    output.status.success()
}

#[test]
fn state_survives_a_restart() {
    let mut tpm = Swtpm::start().unwrap();
    assert!(!nv_index_exists(&tpm));
    assert!(tpm2(&tpm, &["tpm2_nvdefine", "0x1500016", "-s", "8"]));
    assert!(nv_index_exists(&tpm));

    tpm.stop().unwrap();
    assert!(
        !tpm2(&tpm, &["tpm2_getrandom", "4"]),
        "a stopped TPM must not answer"
    );

    tpm.start_again().unwrap();
    assert!(nv_index_exists(&tpm));
}
