//! What a service says when it can't start.

use std::process::{Command, Output};

use anyhow::Result;

use crate::client::{Service, certificates};

fn run(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-gateway-mock-service"));
    Ok(command.args(arguments).output()?)
}

#[test]
fn wrong_usage_ends_with_64() -> Result<()> {
    for arguments in [
        vec![],
        vec!["--name", "docstore"],
        vec!["--name", "another", "--cert", "a", "--key", "b"],
        vec![
            "--name",
            "docstore",
            "--cert",
            "a",
            "--key",
            "b",
            "--listen",
            "docstore:1",
        ],
    ] {
        let output = run(&arguments)?;
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert_ne!(output.stderr, b"", "{arguments:?}");
    }
    assert_eq!(run(&["--help"])?.status.code(), Some(0));
    Ok(())
}

#[test]
fn unusable_certificates_end_with_66() -> Result<()> {
    let folder = certificates()?;
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (good, key, other) = (
        path("mock-services.pem"),
        path("mock-services-key.pem"),
        path("server-key.pem"),
    );
    for (certificate, key, complaint) in [
        (&path("missing.pem"), &key, "missing.pem"),
        (&good, &path("missing.pem"), "missing.pem"),
        (&key, &key, "mock-services-key.pem"),
        (&good, &good, "mock-services.pem"),
        (&good, &other, "mock-services.pem"),
    ] {
        let output = run(&["--name", "docstore", "--cert", certificate, "--key", key])?;
        assert_eq!(output.status.code(), Some(66), "{certificate} {key}");
        let said = String::from_utf8(output.stderr)?;
        assert!(said.starts_with("error: "), "{said}");
        assert!(said.contains(complaint), "{said}");
    }
    Ok(())
}

#[test]
fn a_taken_port_ends_with_69() -> Result<()> {
    let folder = certificates()?;
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let first = Service::start("docstore")?;
    let output = run(&[
        "--name",
        "docstore",
        "--listen",
        &first.address.to_string(),
        "--cert",
        &path("mock-services.pem"),
        "--key",
        &path("mock-services-key.pem"),
    ])?;
    assert_eq!(output.status.code(), Some(69));
    let said = String::from_utf8(output.stderr)?;
    assert!(said.contains(&first.address.to_string()), "{said}");
    Ok(())
}
