//! `revoke`, `revoke-scope`, `revoke-key`, `revoke-poca-key`: shows what matches, asks, takes it back
//! in one transaction, and waits until the gateway knows.

use std::fmt::Write as _;

use permission::{Permission, PocaKey, Timestamp};
use registry::{Filter, PermissionEntry, PocaKeyEntry, Revocation, Revoked, Writer};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::arguments::{destinations, id};
use crate::cli::{
    RevokeArgs, RevokeKeyArgs, RevokePocaKeyArgs, RevokeScopeArgs, Selectors, TakeBackArgs,
};
use crate::confirm::{ask, must_be_askable};
use crate::database::{self, within};
use crate::failure::Failure;
use crate::replicas::all_confirm;
use crate::signing::Grant as _;
use crate::terminal::{Report, escape, table, tail, tell, when};
use crate::trust::Trust;
use crate::{poca_key, selectors};

/// Most rows of each kind shown before the question.
const MOST_SHOWN: usize = 40;

/// Runs `revoke`.
pub(crate) async fn run(args: &RevokeArgs, trust: &Trust) -> Result<Report, Failure> {
    let what = Revocation::Permissions(filter(&args.selectors, args.all_of)?);
    take_back(&what, Permission::KIND, &args.how, trust).await
}

/// Runs `revoke-scope`.
pub(crate) async fn scope(args: &RevokeScopeArgs, trust: &Trust) -> Result<Report, Failure> {
    let what = Revocation::Scopes {
        key_id: id("key id", &args.key_id)?,
        destinations: destinations(&args.destinations)?,
    };
    take_back(&what, "scope", &args.how, trust).await
}

/// Runs `revoke-key`.
pub(crate) async fn key(args: &RevokeKeyArgs, trust: &Trust) -> Result<Report, Failure> {
    let what = Revocation::Key(id("key id", &args.key_id)?);
    take_back(&what, "key", &args.how, trust).await
}

/// Runs `revoke-poca-key`.
pub(crate) async fn poca_key(args: &RevokePocaKeyArgs, trust: &Trust) -> Result<Report, Failure> {
    let (kind, options) = (PocaKey::KIND, "--id, --key, --identity or --public-key");
    must_select(args.selectors.given(), args.all_of, kind, options)?;
    let what = Revocation::PocaKeys(selectors::read_poca_key(&args.selectors)?);
    take_back(&what, kind, &args.how, trust).await
}

/// Reads which permissions are meant.
pub(crate) fn filter(selectors: &Selectors, all_of: bool) -> Result<Filter, Failure> {
    let options = "--id, --key, --identity, --spki or --destination";
    must_select(selectors.given(), all_of, Permission::KIND, options)?;
    selectors::read(selectors)
}

/// Nothing given would match everything; and several are taken together only if that is said.
fn must_select(
    given: usize,
    all_of: bool,
    kind: &'static str,
    options: &'static str,
) -> Result<(), Failure> {
    match given {
        0 => Err(Failure::NoFilter { kind, options }),
        2.. if !all_of => Err(Failure::SeveralFilters { kind }),
        _ => Ok(()),
    }
}

async fn take_back(
    what: &Revocation,
    kind: &'static str,
    how: &TakeBackArgs,
    trust: &Trust,
) -> Result<Report, Failure> {
    if !how.yes {
        must_be_askable()?;
    }
    let mut registry = database::open(trust).await?;
    let confirmed = if how.yes {
        None
    } else {
        Some(confirm(&mut registry, what, kind).await?)
    };
    let revoked = within(registry.revoke(what, confirmed.as_deref())).await;
    let committed = Instant::now();
    let mut revoked = revoked?;
    if revoked.rows.is_empty() {
        return Err(Failure::NothingMatched { kind });
    }
    revoked.rows.sort_unstable();
    let mut report = report(what, &revoked);
    if how.wait {
        wait(&mut report, &revoked, committed, how).await?;
    }
    Ok(report)
}

/// Shows what would be taken back; returns the ids of the rows that the user agreed to.
async fn confirm(
    registry: &mut Writer,
    what: &Revocation,
    kind: &'static str,
) -> Result<Vec<String>, Failure> {
    let now = within(registry.now()).await?;
    let mut permissions = Vec::new();
    for filter in what.permissions() {
        permissions.extend(within(registry.permissions(&filter)).await?);
    }
    permissions.retain(|entry| entry.revoked_at.is_none());
    let mut poca_keys = Vec::new();
    if let Some(filter) = what.poca_keys() {
        poca_keys = within(registry.poca_keys(&filter)).await?;
    }
    poca_keys.retain(|entry| entry.revoked_at.is_none());
    let numbers = counted(permissions.len(), poca_keys.len());
    let question = match what {
        Revocation::Permissions(_) | Revocation::PocaKeys(_)
            if permissions.is_empty() && poca_keys.is_empty() =>
        {
            return Err(Failure::NothingMatched { kind });
        }
        Revocation::Permissions(_) => format!("revoke {numbers}?"),
        Revocation::PocaKeys(_) => format!("revoke {}?", number(poca_keys.len(), kind)),
        Revocation::Scopes {
            key_id,
            destinations,
        } => {
            let destinations: Vec<_> = destinations.iter().map(ToString::to_string).collect();
            format!(
                "revoke the scope of {key_id} for {}, on which {numbers} may rest?",
                destinations.join(", "),
            )
        }
        Revocation::Key(key_id) => format!("revoke the key {key_id}, which signed {numbers}?"),
    };
    tell(&(shown(&permissions, now) + &shown_poca_keys(&poca_keys, now)));
    ask(&question)?;
    Ok(match what {
        Revocation::PocaKeys(_) => poca_keys
            .into_iter()
            .map(|entry| entry.poca_key_id)
            .collect(),
        _ => (permissions.into_iter())
            .map(|entry| entry.permission_id)
            .collect(),
    })
}

fn counted(permissions: usize, poca_keys: usize) -> String {
    let permissions = number(permissions, Permission::KIND);
    match poca_keys {
        0 => permissions,
        _ => format!("{permissions} and {}", number(poca_keys, PocaKey::KIND)),
    }
}

fn number(number: usize, kind: &str) -> String {
    match number {
        1 => format!("1 {kind}"),
        _ => format!("{number} {kind}s"),
    }
}

fn shown(permissions: &[PermissionEntry], now: Timestamp) -> String {
    let headings = [
        "PERMISSION ID",
        "IDENTITY",
        "DESTINATION",
        "SPKI",
        "NOT AFTER",
    ];
    shown_as(headings, permissions, |entry| {
        [
            entry.permission_id.clone(),
            entry.subject_identity.clone(),
            entry.destination.clone(),
            tail(&hex::encode(&entry.subject_spki)),
            when(entry.window.not_after(), now),
        ]
    })
}

fn shown_poca_keys(poca_keys: &[PocaKeyEntry], now: Timestamp) -> String {
    let headings = ["POCA KEY ID", "IDENTITY", "PUBLIC KEY", "NOT AFTER"];
    shown_as(headings, poca_keys, |entry| {
        [
            entry.poca_key_id.clone(),
            entry.subject_identity.clone(),
            poca_key::shown(&entry.ed25519_public_key),
            when(entry.window.not_after(), now),
        ]
    })
}

fn shown_as<T, const N: usize>(
    headings: [&str; N],
    rows: &[T],
    cells: impl Fn(&T) -> [String; N],
) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut lines = vec![headings.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().take(MOST_SHOWN).map(|row| cells(row).to_vec()));
    let mut text = table(&lines);
    if let Some(more @ 1..) = rows.len().checked_sub(MOST_SHOWN) {
        // Writing to a String can't fail.
        let _ = writeln!(text, "… and {more} more");
    }
    text
}

fn report(what: &Revocation, revoked: &Revoked) -> Report {
    let mut text = String::new();
    for row in &revoked.rows {
        let row = escape(row);
        // Writing to a String can't fail.
        let _ = match what {
            Revocation::Permissions(_) => writeln!(text, "revoked {row}"),
            Revocation::Scopes { key_id, .. } => {
                writeln!(
                    text,
                    "revoked scope of {} for {row}",
                    escape(key_id.as_str())
                )
            }
            Revocation::Key(_) => writeln!(text, "revoked key {row}"),
            Revocation::PocaKeys(_) => writeln!(text, "revoked PoCA key {row}"),
        };
    }
    Report {
        text,
        json: json!({ "revoked": revoked.rows }),
    }
}

async fn wait(
    report: &mut Report,
    revoked: &Revoked,
    committed: Instant,
    how: &TakeBackArgs,
) -> Result<(), Failure> {
    let confirmed = all_confirm(&how.admin, revoked, committed, how.timeout.duration())
        .await
        .map_err(|missing| Failure::Unconfirmed {
            revoked: revoked.rows.len(),
            missing,
        })?;
    let mut listed = Vec::new();
    for (replica, after) in confirmed {
        let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        // Writing to a String can't fail.
        let _ = writeln!(report.text, "confirmed by {replica} after {millis} ms");
        listed.push(json!({"admin": replica.to_string(), "after_ms": millis}));
    }
    if let Some(json) = report.json.as_object_mut() {
        json.insert("confirmed".to_owned(), Value::from(listed));
    }
    Ok(())
}
