//! `doctor`: looks at everything between an agent and its destination, in order, and says what is
//! wrong with it.
//!
//! While a sidecar runs, the TPM is its: many serve one program at a time. Then that sidecar is
//! asked. Otherwise everything is done as `run` would do it, with a proxy of this process alone.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use listeners::Inherited;
use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tpm::TpmKey;

use crate::certificate;
use crate::cli::DoctorArgs;
use crate::credential::{Credential, CurrentCredential};
use crate::entrance::Entrance;
use crate::failure::Failure;
use crate::gateway::{ConnectError, Connector, Gateway};
use crate::inquiry;
use crate::output::{OutputError, print, print_json};
use crate::pin;
use crate::proxy::{self, Listener, Proxy};
use crate::run::{RunError, authorities, load, new_token};
use crate::state::{State, StateDir};
use crate::status;

/// How long a tunnel may take here.
const OPEN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);

/// Why the doctor is not content.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// It can't look.
    #[error("no sidecar runs for {0}, so --gateway and --ca are needed")]
    NoGateway(PathBuf),
    /// The operating system lacks what every program needs.
    #[error("can't start: {0}")]
    Runtime(std::io::Error),
    /// Nobody reads it.
    #[error(transparent)]
    Output(OutputError),
    /// It has said what.
    #[error("{failed} of {all} checks failed")]
    Failed {
        /// How many failed.
        failed: usize,
        /// How many there were.
        all: usize,
    },
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    detail: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    hint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Failed,
    Skipped,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Check>);

impl Findings {
    fn ok(&mut self, check: &'static str, detail: impl Into<String>) {
        self.add(check, Verdict::Ok, detail.into(), String::new());
    }

    fn skipped(&mut self, check: &'static str, detail: &str) {
        self.add(check, Verdict::Skipped, detail.to_owned(), String::new());
    }

    fn failed(&mut self, check: &'static str, detail: String, hint: &str) {
        self.add(check, Verdict::Failed, detail, hint.to_owned());
    }

    /// As the command that would fail on it says it.
    fn failed_as(&mut self, check: &'static str, error: RunError) {
        let failure = Failure::from(error);
        self.failed(check, failure.message().to_owned(), failure.hint());
    }

    fn add(&mut self, check: &'static str, verdict: Verdict, detail: String, hint: String) {
        self.0.push(Check {
            name: check,
            verdict,
            detail,
            hint,
        });
    }
}

/// Runs the command.
pub fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(DoctorError::Runtime)?;
    let mut findings = Findings::default();
    let examined = runtime.block_on(examine(args, &mut findings));
    runtime.shutdown_background();
    examined?;
    print_checks(&findings.0, args.json).map_err(DoctorError::Output)?;
    let failed = |check: &&Check| check.verdict == Verdict::Failed;
    match findings.0.iter().filter(failed).count() {
        0 => Ok(()),
        failed => Err(DoctorError::Failed {
            failed,
            all: findings.0.len(),
        }
        .into()),
    }
}

async fn examine(args: &DoctorArgs, findings: &mut Findings) -> Result<(), DoctorError> {
    let dir = StateDir::new(&args.state.dir);
    let found = load(&dir).and_then(|state| Ok((state, dir.running()?)));
    let (state, running) = match found {
        Ok(found) => found,
        Err(error) => {
            findings.failed_as("state", error);
            return Ok(());
        }
    };
    let identity = state.leaf.identity.as_str().escape_debug();
    findings.ok("state", format!("{identity} in {}", dir.path().display()));
    rotation(&dir, &state, findings);
    clock(&state, SystemTime::now(), findings);
    let entrance = if let Some(entrance) = running {
        ask_sidecar(&entrance, findings);
        Some(entrance)
    } else {
        try_everything(args, &dir, &state, findings).await?
    };
    let Some(destination) = &args.destination else {
        findings.skipped("connect", "no --destination was given");
        return Ok(());
    };
    match entrance {
        Some(entrance) => tokio::task::block_in_place(|| connect(&entrance, destination, findings)),
        None => findings.skipped("connect", "there is no way to the gateway"),
    }
    Ok(())
}

/// What `run` would do; the way to the gateway, if there is one.
async fn try_everything(
    args: &DoctorArgs,
    dir: &StateDir,
    state: &State,
    findings: &mut Findings,
) -> Result<Option<Entrance>, DoctorError> {
    let Some(ca) = args.ca.as_ref().filter(|_| !args.gateways.is_empty()) else {
        return Err(DoctorError::NoGateway(dir.path().to_owned()));
    };
    let credential = open_key(state, findings);
    let authorities = match authorities(ca) {
        Ok(authorities) => authorities,
        Err(error) => {
            findings.failed_as("ca", error);
            return Ok(None);
        }
    };
    let Some(credential) = credential else {
        return Ok(None);
    };
    let (gateways, name) = (args.gateways.clone(), args.server_name.as_ref());
    match Connector::new(
        gateways,
        name,
        authorities,
        CurrentCredential::new(credential),
    ) {
        Ok(connector) => Ok(reach(connector, findings).await),
        Err(error) => {
            findings.failed_as("gateway", RunError::Tls(error));
            Ok(None)
        }
    }
}

/// Said only where there is something to say.
fn rotation(dir: &StateDir, state: &State, findings: &mut Findings) {
    match dir.next() {
        Err(error) => findings.failed_as("rotation", error.into()),
        Ok(Some(next)) => findings.ok(
            "rotation",
            format!("the new key {} waits to be granted", next.location),
        ),
        Ok(None) => {}
    }
    if let Some(retired) = &state.retired {
        let detail = format!("the old key {} is still in the TPM", retired.location);
        findings.failed("rotation", detail, "give `rotate --finish` again");
    }
}

/// Nobody at the gateway asks for the certificate's dates, but a clock that is before them is wrong,
/// and then the gateway's certificate seems to be too.
fn clock(state: &State, now: SystemTime, findings: &mut Findings) {
    let now = status::unix_seconds(now);
    let shown = status::time(now, now);
    let shown = shown.split(' ').next().unwrap_or_default();
    match certificate::validity(state.certificate_pem.as_bytes()) {
        Some((from, until)) if (from..until).contains(&now) => findings.ok("clock", shown),
        Some(_) => findings.failed(
            "clock",
            format!("{shown} is outside the validity of the agent's certificate"),
            "set the clock; if it is right, make a new state by `init`",
        ),
        None => findings.failed(
            "clock",
            "the certificate's dates can't be read".to_owned(),
            "",
        ),
    }
}

/// The key, joined with the certificate.
fn open_key(state: &State, findings: &mut Findings) -> Option<Credential> {
    let location = &state.location;
    let key = match tokio::task::block_in_place(|| TpmKey::open(location)) {
        Ok(found) => {
            findings.ok("tpm", location.tcti.to_string());
            found
        }
        Err(error) => {
            findings.failed_as("tpm", error.into());
            return None;
        }
    };
    let Some(key) = key else {
        let location = location.clone();
        findings.failed_as("handle", RunError::NoKey { location });
        return None;
    };
    findings.ok("handle", location.handle.to_string());
    if let Err(error) = tokio::task::block_in_place(|| pin::unlock(&key)) {
        findings.failed_as("pin", error.into());
        return None;
    }
    match Credential::new(state.certificate_pem.as_bytes(), Arc::new(key)) {
        Ok(credential) => {
            findings.ok("key", "the certificate carries it");
            Some(credential)
        }
        Err(error) => {
            findings.failed_as("key", error.into());
            None
        }
    }
}

/// What the sidecar that runs says of its way to the gateway.
fn ask_sidecar(entrance: &Entrance, findings: &mut Findings) {
    let live = tokio::task::block_in_place(|| status::ask(entrance));
    let live = match live {
        Ok(live) => live,
        Err(error) => {
            let detail = format!("it runs, and does not answer: {error}");
            return findings.failed("sidecar", detail, "restart it");
        }
    };
    findings.ok(
        "sidecar",
        format!("runs at {}; TPM and key are its", entrance.reachable()),
    );
    let gateways = live.gateways.join(", ");
    match live.last_failure {
        _ if live.connections > 0 => findings.ok("gateway", format!("connected to {gateways}")),
        Some(failure) => findings.failed("gateway", failure.error, "the sidecar's log says more"),
        None => findings.skipped("gateway", "not connected: the next tunnel connects"),
    }
}

/// Connects to the gateway, and opens a local proxy that leads there.
async fn reach(connector: Connector, findings: &mut Findings) -> Option<Entrance> {
    let gateway = Gateway::new(connector, OPEN_TIMEOUT);
    match gateway.reach().await {
        Ok(()) => {
            findings.ok("gateway", "reached");
            findings.ok("ca", "vouches for the gateway, which took the agent's key");
        }
        Err(error) => {
            cause(&error, findings);
            return None;
        }
    }
    let opened = new_token().and_then(|token| {
        let listener = proxy::listen(([127, 0, 0, 1], 0).into(), &mut Inherited::default());
        let listener = listener.map_err(RunError::Runtime)?;
        let address = listener.local_addr().map_err(RunError::Runtime)?;
        Ok((
            listener,
            Entrance {
                address,
                token: Some(token),
            },
        ))
    });
    match opened {
        Ok((listener, entrance)) => {
            let proxy = Proxy::new(gateway, entrance.token.clone(), 1, None);
            // Until this process ends, which is soon.
            let listener = Listener::Port(listener);
            tokio::spawn(async move { proxy.serve(listener, CancellationToken::new()).await });
            Some(entrance)
        }
        Err(error) => {
            findings.failed_as("connect", error);
            None
        }
    }
}

fn cause(error: &ConnectError, findings: &mut Findings) {
    let detail = error.to_string();
    match error {
        ConnectError::Untrusted(_) => {
            findings.ok("gateway", "reached");
            let hint = "give the CA that signed the gateway's certificate as --ca, and the name in \
                        it as --server-name; if it seems expired, look at the clock";
            findings.failed("ca", detail, hint);
        }
        ConnectError::Signing(_) => findings.failed("key", detail, "look at the TPM"),
        ConnectError::Tls(_) => {
            let hint = "the gateway may not take the agent's certificate; its log says more";
            findings.failed("gateway", detail, hint);
        }
        ConnectError::Http2(_) | ConnectError::Broken(_) => {
            findings.failed("gateway", detail, "is it the gateway that listens there?");
        }
        ConnectError::Tcp(_) | ConnectError::TimedOut | ConnectError::TooMany => {
            let hint = "check --gateway, the network, and whether the gateway runs";
            findings.failed("gateway", detail, hint);
        }
    }
}

/// One tunnel, closed at once.
fn connect(entrance: &Entrance, destination: &str, findings: &mut Findings) {
    let answer = match inquiry::ask(entrance, "CONNECT", destination) {
        Ok(answer) => answer,
        Err(error) => return findings.failed("connect", error.to_string(), "restart the sidecar"),
    };
    if answer.status == 200 {
        return findings.ok("connect", format!("{destination}: the tunnel opened"));
    }
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let said = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    let (reason, error) = (said("reason"), said("error"));
    let hint = match (said("hint"), answer.status) {
        ("", 403) => "the agent may not: a principal grants it, see `certificate --request`",
        (hint, _) => hint,
    };
    let detail = format!("{destination}: {} {reason}: {error}", answer.status);
    findings.failed("connect", shown(&detail), &shown(hint));
}

/// What came over the network must not steer the terminal.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars() {
        match character {
            '\'' | '"' => shown.push(character),
            other => shown.extend(other.escape_debug()),
        }
    }
    shown
}

fn print_checks(checks: &[Check], as_json: bool) -> Result<(), OutputError> {
    if as_json {
        return print_json(&serde_json::json!({ "checks": checks }));
    }
    let mut text = String::new();
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Failed => "FAILED",
            Verdict::Skipped => "skipped",
        };
        // Writing to a String can't fail.
        let _ = writeln!(text, "{verdict:<8} {:<8} {}", check.name, check.detail);
        if !check.hint.is_empty() {
            let _ = writeln!(text, "{:<17} hint: {}", "", check.hint);
        }
    }
    print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_gateway_says_is_readable_and_steers_no_terminal() {
        assert_eq!(shown("it won't \"work\""), "it won't \"work\"");
        assert_eq!(shown("a\u{1b}[2Jb\nc\u{202e}"), "a\\u{1b}[2Jb\\nc\\u{202e}");
    }
}
