//! `doctor`: looks at all that the other commands need.

use std::fmt::Write as _;

use permission::TrustRoots;
use registry::{Ending, Rights, SCHEMA_VERSION, Writer};
use serde_json::{Value, json};

use crate::cli::DoctorArgs;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::principal::Place;
use crate::root::unsigned::{Which, unsigned};
use crate::terminal::{Report, escape};
use crate::trust::Trust;
use crate::validity::Validity;
use crate::{Outcome, clock};

/// Clocks this far apart make windows begin and end at surprising times.
const MAX_SKEW_MICROS: u64 = 2_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    Warning,
    Failed,
}

struct Check {
    name: &'static str,
    status: Status,
    detail: String,
}

/// Runs the command.
pub(crate) async fn run(args: &DoctorArgs, trust: &Trust) -> (Report, Outcome) {
    let mut checks = Vec::new();
    match database::open(trust).await {
        Ok(mut registry) => {
            let schema = format!("reachable, schema version {SCHEMA_VERSION}");
            checks.push(Check::new("database", Status::Ok, schema));
            checks.push(judged("role", rights(&mut registry).await));
            checks.push(judged("clock", skew(&mut registry).await));
            if let Some(roots) = &trust.roots {
                checks.push(judged("roots", signed(&mut registry, roots).await));
            }
            checks.push(judged("expiry", expiry(&mut registry, args.within).await));
        }
        Err(failure) => checks.push(judged("database", Err(failure))),
    }
    checks.push(judged("key", key(args)));
    report(&checks)
}

fn judged(name: &'static str, outcome: Result<(Status, String), Failure>) -> Check {
    match outcome {
        Ok((status, detail)) => Check::new(name, status, detail),
        Err(failure) => Check::new(name, Status::Failed, failure.explained()),
    }
}

async fn rights(registry: &mut Writer) -> Result<(Status, String), Failure> {
    let Rights {
        role,
        may_write,
        read_only,
    } = within(registry.rights()).await?;
    Ok(match (may_write, read_only) {
        (true, false) => (Status::Ok, format!("{role} may change the registry")),
        (true, true) => (
            Status::Warning,
            format!("{role} may write, but the database is read-only"),
        ),
        (false, _) => (
            Status::Warning,
            format!("{role} may only read: no grants, no revocations"),
        ),
    })
}

async fn signed(registry: &mut Writer, roots: &TrustRoots) -> Result<(Status, String), Failure> {
    let now = within(registry.now()).await?;
    let (id, which) = (roots.registry_id(), Which::default());
    let open = unsigned(registry, id, &which, Some(roots), now)
        .await?
        .len();
    let status = if open == 0 {
        Status::Ok
    } else {
        Status::Warning
    };
    Ok((
        status,
        format!("{open} keys and scopes are not signed by a trust root"),
    ))
}

async fn skew(registry: &mut Writer) -> Result<(Status, String), Failure> {
    let before = clock::now()?.as_unix_micros();
    let theirs = within(registry.now()).await?.as_unix_micros();
    let after = clock::now()?.as_unix_micros();
    // Nothing is wrong if it was between the two.
    let skew = (theirs - theirs.clamp(before, after.max(before))).unsigned_abs();
    let detail = format!("{} ms from the database's", skew / 1000);
    Ok(if skew <= MAX_SKEW_MICROS {
        (Status::Ok, detail)
    } else {
        (Status::Warning, detail)
    })
}

async fn expiry(registry: &mut Writer, limit: Validity) -> Result<(Status, String), Failure> {
    let Ending {
        keys,
        scopes,
        permissions,
        poca_keys,
    } = within(registry.ending_within(limit.duration())).await?;
    let detail = format!(
        "within {limit} end: keys {keys}, scopes {scopes}, permissions {permissions}, \
         PoCA keys {poca_keys}"
    );
    let status = if keys + scopes + permissions + poca_keys == 0 {
        Status::Ok
    } else {
        Status::Warning
    };
    Ok((status, detail))
}

fn key(args: &DoctorArgs) -> Result<(Status, String), Failure> {
    let place = Place::named(&args.key)?;
    Ok(match place.open()? {
        Some(_) => (Status::Ok, format!("{place} is there")),
        None => (Status::Warning, format!("there is no key {place}")),
    })
}

fn report(checks: &[Check]) -> (Report, Outcome) {
    let mut text = String::new();
    let mut json = Vec::new();
    for Check {
        name,
        status,
        detail,
    } in checks
    {
        let status = match status {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Failed => "failed",
        };
        // Writing to a String can't fail.
        let _ = writeln!(text, "{name:8}  {status:7}  {}", escape(detail));
        json.push(json!({"check": name, "status": status, "detail": detail}));
    }
    let failed = checks.iter().any(|check| check.status == Status::Failed);
    let outcome = if failed { Outcome::No } else { Outcome::Yes };
    let json = Value::from(json);
    (Report { text, json }, outcome)
}

impl Check {
    fn new(name: &'static str, status: Status, detail: String) -> Self {
        Self {
            name,
            status,
            detail,
        }
    }
}
