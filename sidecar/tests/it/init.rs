//! `init`: the key, the certificate, and what it refuses to overwrite.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{DerSignature, VerifyingKey};
use p256::pkcs8::DecodePublicKey as _;
use permission::{IdentitySource, Leaf};
use serde_json::Value;
use x509_parser::pem::parse_x509_pem;

use crate::agent::{Agent, IDENTITY, failure};

const FILES: [&str; 3] = ["machine-client.pem", "spki.hex", "sidecar.json"];

#[test]
fn key_and_certificate_are_made_once_and_then_found() {
    let agent = Agent::bare();
    let made = agent.init(&["--json"]);
    assert!(made.status.success(), "{made:?}");
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(made["identity"], IDENTITY);
    assert_eq!(made["key"], "made");
    assert_eq!(made["spki"], agent.spki());
    assert_eq!(made["spki_file"], agent.file("spki.hex").to_str().unwrap());
    let before = FILES.map(|name| agent.read(name));

    let found = agent.init(&["--json"]);
    assert!(found.status.success(), "{found:?}");
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(found["key"], "found");
    assert_eq!(found["spki"], made["spki"]);
    assert_eq!(FILES.map(|name| agent.read(name)), before);
}

#[test]
fn people_see_the_key_and_what_to_do_next() {
    let agent = Agent::bare();
    let done = agent.init(&[]);
    let told = String::from_utf8(done.stdout).unwrap();
    assert!(told.contains(&agent.spki()), "{told}");
    assert!(told.contains(IDENTITY), "{told}");
    let next = String::from_utf8(done.stderr).unwrap();
    assert!(next.contains("agent-gateway-registry grant"), "{next}");
}

#[test]
fn state_belongs_to_its_owner_alone() {
    let agent = Agent::initialised();
    assert_eq!(
        fs::metadata(agent.state()).unwrap().permissions().mode() & 0o777,
        0o700
    );
    for name in FILES {
        let mode = fs::metadata(agent.file(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::read_dir(agent.state()).unwrap().count(), FILES.len());
}

#[test]
fn certificate_names_the_identity_and_is_signed_by_the_tpm_key() {
    let agent = Agent::initialised();
    let (_, pem) = parse_x509_pem(agent.read("machine-client.pem").as_bytes()).unwrap();
    let source = IdentitySource::Extension("1.3.6.1.4.1.57264.1.1".parse().unwrap());
    let leaf = Leaf::from_der(&pem.contents, &source).unwrap();
    assert_eq!(leaf.identity.as_str(), IDENTITY);
    assert_eq!(leaf.spki.to_hex(), agent.spki());

    let certificate = pem.parse_x509().unwrap();
    let key = VerifyingKey::from_public_key_der(leaf.spki.as_der()).unwrap();
    let signature = DerSignature::from_bytes(&certificate.signature_value.data).unwrap();
    key.verify(certificate.tbs_certificate.as_ref(), &signature)
        .unwrap();
    assert!(certificate.validity().is_valid());
}

#[test]
fn another_identity_is_refused_and_nothing_changed() {
    let agent = Agent::initialised();
    let before = FILES.map(|name| agent.read(name));
    let (code, told) = failure(&agent.init(&["--identity", "agent-beta"]));
    assert_eq!(code, 65);
    assert!(
        told.starts_with("error: the state is that of another identity"),
        "{told}"
    );
    assert!(
        told.contains("\nhint: use another --state folder"),
        "{told}"
    );
    assert_eq!(FILES.map(|name| agent.read(name)), before);
}

#[test]
fn another_key_is_refused_and_nothing_changed() {
    let agent = Agent::initialised();
    let other = Agent::initialised();
    let before = FILES.map(|name| agent.read(name));

    let (code, told) = failure(&agent.init(&["--tcti", &other.tpm.tcti()]));
    assert_eq!(code, 65);
    assert!(
        told.contains("is not the one that the state was made for"),
        "{told}"
    );

    // Nor is a key made where there is none: it could not be the one of the certificate.
    let (code, told) = failure(&agent.init(&["--handle", "0x81010005"]));
    assert_eq!(code, 65);
    assert!(told.contains("there is no key 0x81010005"), "{told}");
    let fresh = agent.init(&[
        "--state",
        agent.file("x").to_str().unwrap(),
        "--json",
        "--handle",
        "0x81010005",
    ]);
    let fresh: Value = serde_json::from_slice(&fresh.stdout).unwrap();
    assert_eq!(fresh["key"], "made");

    assert_eq!(FILES.map(|name| agent.read(name)), before);
}

#[test]
fn interrupted_init_is_completed() {
    let agent = Agent::initialised();
    let before = FILES.map(|name| agent.read(name));
    for name in ["spki.hex", "machine-client.pem"] {
        fs::remove_file(agent.file(name)).unwrap();
    }
    assert!(agent.init(&[]).status.success());
    assert_eq!(FILES.map(|name| agent.read(name)), before);
    // The key was made, and nothing of it written down.
    let spki = agent.spki();
    for name in FILES {
        fs::remove_file(agent.file(name)).unwrap();
    }
    assert!(agent.init(&[]).status.success());
    assert_eq!(agent.spki(), spki);
}

#[test]
fn key_survives_in_the_tpm_when_the_state_is_lost() {
    let mut agent = Agent::initialised();
    let spki = agent.spki();
    fs::remove_dir_all(agent.state()).unwrap();
    agent.tpm.stop().unwrap();
    agent.tpm.start_again().unwrap();
    assert!(agent.init(&["--identity", "agent-beta"]).status.success());
    assert_eq!(agent.spki(), spki);
}

#[test]
fn tpm_that_is_down_is_told_from_wrong_usage() {
    let mut agent = Agent::bare();
    agent.tpm.stop().unwrap();
    let (code, told) = failure(&agent.init(&[]));
    assert_eq!(code, 69);
    assert!(told.starts_with("error: cannot reach the TPM"), "{told}");
    assert!(told.contains("\nhint: check that the TPM runs"), "{told}");
    assert_eq!(told.lines().count(), 2, "{told}");

    for wrong in [
        vec!["init"],
        vec!["init", "--identity", ""],
        vec!["init", "--identity", "a\nb"],
        vec!["init", "--identity", "a", "--handle", "0x80000000"],
        vec!["init", "--identity", "a", "--tcti", "swtmp:"],
        vec!["run", "--ca", "x", "--gateway", "https://gateway"],
        vec!["exec"],
        vec!["frobnicate"],
    ] {
        let (code, told) = failure(&agent.cli(&wrong));
        assert_eq!(code, 64, "{wrong:?}");
        assert!(told.starts_with("error: "), "{wrong:?}: {told}");
    }
}

#[test]
fn folder_that_others_can_write_to_is_refused() {
    let agent = Agent::initialised();
    fs::set_permissions(agent.state(), fs::Permissions::from_mode(0o777)).unwrap();
    let (code, told) = failure(&agent.init(&[]));
    assert_eq!(code, 77);
    assert!(told.contains("can be changed by other users"), "{told}");
}

#[test]
fn environment_wins_over_the_config_file_and_options_over_both() {
    let agent = Agent::bare();
    let config = agent.beside("config.toml");
    let tcti = agent.tpm.tcti();
    fs::write(
        &config,
        format!(
            "identity = 'of-the-file'\ntcti = '{tcti}'\nhandle = '0x81010006'\nstate = '/nowhere'"
        ),
    )
    .unwrap();
    let done = agent
        .command(&["init", "--json", "--identity", "of-the-option", "--config"])
        .arg(&config)
        .env("AGENT_GATEWAY_IDENTITY", "of-the-environment")
        .output()
        .unwrap();
    let shown: Value =
        serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{}", failure(&done).1));
    assert_eq!(shown["identity"], "of-the-option");
    assert_eq!(shown["handle"], "0x81010006");
    // The state folder is the environment's: see `Agent::command`.
    let found = agent
        .command(&["certificate", "--spki"])
        .env("AGENT_GATEWAY_CONFIG", &config)
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(found.stdout).unwrap().trim_end(),
        agent.spki()
    );

    fs::write(&config, "tunnels = 3").unwrap();
    let refused = agent.cli(&["status", "--config", config.to_str().unwrap()]);
    let (code, told) = failure(&refused);
    assert_eq!(code, 64);
    assert!(
        told.starts_with("error: ") && told.contains(": tunnels: unknown key"),
        "{told}"
    );
    assert!(told.contains("\nhint: sidecar.example.toml"), "{told}");
    assert_eq!(
        failure(&agent.cli(&["status", "--config", "/no/such/file"])).0,
        66
    );
}
