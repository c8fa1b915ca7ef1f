//! `poca keygen` and `poca sign`: keys that stay their owner's, and headers that a verifier takes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use permission::{Identity, Timestamp};
use poca::{Expected, Headers, Proof, PublicKey, Reason, verify};
use sha2::{Digest as _, Sha256};

use crate::agent::{Agent, failure};

/// What a verifier makes of headers for a call of `tool` with `body`, now.
pub(crate) fn check(
    headers: [&str; 2],
    caller: &str,
    tool: &str,
    body: &[u8],
    key: PublicKey,
) -> Result<Proof, Reason> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let expected = Expected {
        caller: &Identity::parse(caller).unwrap(),
        tool,
        payload_sha256: Sha256::digest(body).into(),
        keys: &[key],
        now: Timestamp::from_unix_micros(i64::try_from(now.as_micros()).unwrap()).unwrap(),
        max_ttl: Duration::from_hours(1),
    };
    let [manifest, signature] = headers.map(Some);
    verify(
        &Headers {
            manifest,
            signature,
        },
        &expected,
    )
}

pub(crate) fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The agent's public key, made if need be.
pub(crate) fn keygen(agent: &Agent) -> PublicKey {
    stdout(&agent.cli(&["poca", "keygen"]))
        .trim_end()
        .parse()
        .unwrap()
}

/// The three lines of `poca sign`.
fn lines(output: &Output) -> [String; 3] {
    let text = stdout(output);
    let mut lines = text.lines();
    let found = ["X-PoCA-Manifest: ", "X-PoCA-Signature: ", "Body: "].map(|name| {
        let line = lines.next().unwrap();
        line.strip_prefix(name)
            .unwrap_or_else(|| panic!("{line}"))
            .to_owned()
    });
    assert_eq!(lines.next(), None);
    found
}

#[test]
fn a_key_is_made_once_for_its_owner_alone() {
    let agent = Agent::bare();
    let key = keygen(&agent);
    let mode = fs::metadata(agent.file("poca.key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(keygen(&agent), key);
    let elsewhere = agent.beside("other.key");
    let other = agent.cli(&["poca", "keygen", "--key", elsewhere.to_str().unwrap()]);
    assert_ne!(stdout(&other).trim_end().parse(), Ok(key));
}

#[test]
fn what_is_signed_is_accepted_once_it_is_sent_as_printed() {
    let agent = Agent::bare();
    let key = keygen(&agent);
    let [manifest, signature, body] = lines(&agent.cli(&["poca", "sign"]));
    assert_eq!(body, r#"{"message":"hello gateway"}"#);
    let headers = [manifest.as_str(), &signature];
    let proof = check(headers, "agent", "echo", body.as_bytes(), key).unwrap();
    assert_eq!(
        (proof.intent(), proof.scopes()),
        ("echo_payload", ["read".to_owned()].as_slice())
    );
    let other = check(headers, "agent", "echo", b"{}", key);
    assert_eq!(other, Err(Reason::PayloadHashMismatch));
    let [again, _, _] = lines(&agent.cli(&["poca", "sign"]));
    assert_ne!(again, manifest, "a nonce was used twice");
}

#[test]
fn every_option_of_the_existing_signer_is_there() {
    let agent = Agent::bare();
    let file = agent.beside("agent.key");
    let file = file.to_str().unwrap();
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "ed25519", "-out", file])
        .status();
    assert!(made.unwrap().success());
    let key = stdout(&agent.cli(&["poca", "keygen", "--key", file]))
        .trim_end()
        .parse()
        .unwrap();
    let output = agent.cli(&[
        "poca",
        "sign",
        "--key",
        file,
        "--caller",
        "agent-Ω",
        "--tool",
        "todos",
        "--intent",
        "create",
        "--expmin",
        "30",
        "--body",
        r#"{"tool":"todos","payload":{}}"#,
    ]);
    let [manifest, signature, body] = lines(&output);
    assert_eq!(body, r#"{"tool":"todos","payload":{}}"#);
    let proof = check(
        [&manifest, &signature],
        "agent-Ω",
        "todos",
        body.as_bytes(),
        key,
    )
    .unwrap();
    let minutes = SystemTime::now() + Duration::from_mins(30);
    let end = u64::try_from(proof.expires_at().as_unix_micros()).unwrap() / 1_000_000;
    let expected = minutes.duration_since(UNIX_EPOCH).unwrap().as_secs() + 60;
    assert!(expected.abs_diff(end) < 60, "{end} is not {expected}");
}

#[test]
fn keys_that_others_can_read_and_what_is_no_key_are_refused() {
    let agent = Agent::bare();
    keygen(&agent);
    let file = agent.file("poca.key");
    let shown = file.display();
    let refused = |arguments: &[&str]| failure(&agent.cli(arguments));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let exposed = format!(
        "error: {shown} is open to other users\nhint: make it yours alone: chown it, and chmod 600\n"
    );
    assert_eq!(refused(&["poca", "sign"]), (77, exposed.clone()));
    assert_eq!(refused(&["poca", "keygen"]), (77, exposed));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&file, "rubbish").unwrap();
    let (code, said) = refused(&["poca", "sign"]);
    assert_eq!(code, 65, "{said}");
    assert!(!said.contains("rubbish"), "{said}");
    fs::remove_file(&file).unwrap();
    let (code, said) = refused(&["poca", "sign"]);
    assert_eq!(code, 66, "{said}");
    assert!(
        said.contains("hint: make one with `agent-gateway-sidecar poca keygen"),
        "{said}"
    );
    let nowhere = agent
        .command(&["poca", "sign"])
        .env_remove("AGENT_GATEWAY_STATE")
        .stdin(Stdio::null())
        .output();
    assert_eq!(
        failure(&nowhere.unwrap()),
        (
            64,
            "error: no key is named\nhint: add --key FILE or --state DIR\n".to_owned()
        )
    );
    keygen(&agent);
    let (code, said) = refused(&["poca", "sign", "--tool", ""]);
    assert_eq!(code, 64, "{said}");
    assert!(
        said.starts_with("error: nothing is signed: tool is empty"),
        "{said}"
    );
}
