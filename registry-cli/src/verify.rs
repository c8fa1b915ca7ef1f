//! `verify`: holds every row of the registry against what it says, a page at a time.

use std::io::{self, IsTerminal as _};
use std::num::NonZero;
use std::thread;

use permission::{Claim, Destination, ECDSA_P256_SHA256, PocaKey, PrincipalKey, Reason, Timestamp};
use registry::{Filter, Writer};
use serde_json::{Value, json};

use crate::audit::{Fault, fault};
use crate::database::{self, within};
use crate::failure::Failure;
use crate::root::unsigned::{Which, unsigned};
use crate::signing::Grant as _;
use crate::terminal::{escape, json_line, tell, write};
use crate::trust::Trust;
use crate::{Outcome, poca_key};

/// Rows held at a time.
const PAGE: u32 = 2000;

/// Writes each bad row as it is found, and at the end how many there were.
struct Findings {
    as_json: bool,
    progress: bool,
    checked: u64,
    bad: u64,
}

/// Runs the command.
pub(crate) async fn run(trust: &Trust, as_json: bool) -> Result<Outcome, Failure> {
    let mut registry = database::open(trust).await?;
    let now = within(registry.now()).await?;
    let mut findings = Findings {
        as_json,
        progress: io::stderr().is_terminal(),
        checked: 0,
        bad: 0,
    };
    keys_and_scopes(&mut registry, &mut findings, now).await?;
    let mut after = String::new();
    loop {
        let page = within(registry.stored_after(&after, PAGE)).await?;
        let Some(last) = page.last() else {
            break;
        };
        last.permission_id().clone_into(&mut after);
        let found = faults(&page, |row| fault(row.candidate(), row.is_revoked(), now));
        for (row, fault) in page.iter().zip(found) {
            if let Some(fault) = fault {
                findings.bad("permission", row.permission_id(), &fault.to_string())?;
            }
        }
        findings.count(page.len());
    }
    poca_keys(&mut registry, &mut findings, now).await?;
    findings.end()
}

/// Those that nothing can rest on, whatever rests on them.
async fn keys_and_scopes(
    registry: &mut Writer,
    findings: &mut Findings,
    now: Timestamp,
) -> Result<(), Failure> {
    let all = Filter::default();
    let keys = within(registry.keys(&all)).await?;
    for key in &keys {
        if let Err(error) = PrincipalKey::from_stored(ECDSA_P256_SHA256, &key.spki) {
            findings.bad("key", &key.key_id, &error.to_string())?;
        }
    }
    let scopes = within(registry.all_scopes(&all)).await?;
    for scope in &scopes {
        if Destination::from_normal_form(&scope.destination).is_none() {
            let id = format!("{} for {}", scope.signing_key_id, scope.destination);
            findings.bad("scope", &id, &Fault::Column("destination").to_string())?;
        }
    }
    let roots = registry.trust_roots().cloned();
    if let Some(roots) = &roots {
        let which = Which::default();
        let open = unsigned(registry, roots.registry_id(), &which, Some(roots), now).await?;
        for statement in open {
            let key_id = &statement.key_id;
            match statement.claim {
                Claim::Signs => {
                    let fault = Fault::Denied(Reason::SigningKeyUntrusted).to_string();
                    findings.bad("key", key_id.as_str(), &fault)?;
                }
                Claim::Delegates(destination) => {
                    let fault = Fault::Denied(Reason::ScopeUntrusted).to_string();
                    findings.bad("scope", &format!("{key_id} for {destination}"), &fault)?;
                }
            }
        }
    }
    findings.count(keys.len() + scopes.len());
    Ok(())
}

/// Agents' keys for proofs of context.
async fn poca_keys(
    registry: &mut Writer,
    findings: &mut Findings,
    now: Timestamp,
) -> Result<(), Failure> {
    let all = Filter::default();
    let mut after: Option<String> = None;
    loop {
        let page = registry.stored_poca_keys(&all, after.as_deref(), Some(PAGE));
        let page = within(page).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.poca_key_id().to_owned());
        let found = faults(&page, |row| {
            fault(poca_key::candidate(row), row.is_revoked(), now)
        });
        for (row, fault) in page.iter().zip(found) {
            if let Some(fault) = fault {
                findings.bad(PocaKey::KIND, row.poca_key_id(), &fault.to_string())?;
            }
        }
        findings.count(page.len());
    }
}

/// Signatures take nearly all of the time, so all processors check them.
fn faults<T: Sync>(page: &[T], fault: impl Fn(&T) -> Option<Fault> + Sync) -> Vec<Option<Fault>> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let check = |rows: &[T]| rows.iter().map(&fault).collect::<Vec<_>>();
    thread::scope(|scope| {
        let parts: Vec<_> = page
            .chunks(page.len().div_ceil(threads).max(1))
            .map(|rows| (rows, scope.spawn(|| check(rows))))
            .collect();
        parts
            .into_iter()
            .flat_map(|(rows, part)| part.join().unwrap_or_else(|_| check(rows)))
            .collect()
    })
}

impl Findings {
    fn bad(&mut self, table: &str, id: &str, why: &str) -> Result<(), Failure> {
        self.bad += 1;
        self.clear();
        self.line(
            &format!("bad {table} {}: {}\n", escape(id), escape(why)),
            &json!({"table": table, "id": id, "fault": why}),
        )
    }

    fn line(&self, text: &str, json: &Value) -> Result<(), Failure> {
        let written = if self.as_json {
            write(&json_line(json))
        } else {
            write(text)
        };
        // Also when nobody reads on, the rest is counted: the exit status is part of the result.
        written.map(drop)
    }

    fn count(&mut self, rows: usize) {
        self.checked += rows as u64;
        if self.progress {
            tell(&format!(
                "\r{} rows checked, {} bad",
                self.checked, self.bad
            ));
        }
    }

    fn clear(&self) {
        if self.progress {
            tell("\r\u{1b}[K");
        }
    }

    fn end(self) -> Result<Outcome, Failure> {
        self.clear();
        let (checked, bad) = (self.checked, self.bad);
        self.line(
            &format!("{checked} rows checked, {bad} bad\n"),
            &json!({"checked": checked, "bad": bad}),
        )?;
        Ok(if bad == 0 { Outcome::Yes } else { Outcome::No })
    }
}
