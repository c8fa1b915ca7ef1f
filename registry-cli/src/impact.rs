//! `impact`: who loses what by a revocation, before it is done.

mod proofs;

use std::collections::BTreeSet;

use permission::{Decision, Destination, Identity, Request, Spki, Timestamp, decide};
use registry::{Filter, Revocation, Writer};
use serde_json::{Value, json};

use self::proofs::Proof;
use crate::arguments::{destinations, id};
use crate::cli::ImpactArgs;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::revoke;
use crate::terminal::{Report, table, tail};
use crate::trust::Trust;

/// An agent that a revocation touches.
struct Touched {
    request: Request,
    now_by: String,
    /// The permission that would still allow it, or the reason for which it would be denied.
    then: Result<String, permission::Reason>,
}

/// Runs the command.
pub(crate) async fn run(args: &ImpactArgs, trust: &Trust) -> Result<Report, Failure> {
    let what = revocation(args)?;
    let mut registry = database::open(trust).await?;
    let now = within(registry.now()).await?;
    let mut touched = Vec::new();
    for filter in what.permissions() {
        touched.extend(by(&mut registry, &filter, now).await?);
    }
    let proofs = proofs::of(&mut registry, &what, now).await?;
    Ok(report(&touched, &proofs))
}

fn revocation(args: &ImpactArgs) -> Result<Revocation, Failure> {
    if let Some(key) = &args.revoke_key {
        return Ok(Revocation::Key(id("key id", key)?));
    }
    if let Some(poca_key) = &args.revoke_poca_key {
        return Ok(Revocation::PocaKeys(Filter {
            id: Some(id("PoCA key id", poca_key)?),
            ..Filter::default()
        }));
    }
    if let [key, texts @ ..] = args.revoke_scope.as_slice() {
        return Ok(Revocation::Scopes {
            key_id: id("key id", key)?,
            destinations: destinations(texts)?,
        });
    }
    revoke::filter(&args.selectors, args.all_of).map(Revocation::Permissions)
}

/// What would become of each agent that has access now by a permission that matches.
async fn by(
    registry: &mut Writer,
    filter: &Filter,
    now: Timestamp,
) -> Result<Vec<Touched>, Failure> {
    let mut requests = BTreeSet::new();
    for entry in within(registry.permissions(filter)).await? {
        let usable = entry.revoked_at.is_none() && now < entry.window.not_after();
        // What can't be read allows nothing, so nothing is lost with it.
        let read = (
            Identity::parse(&entry.subject_identity),
            Spki::from_der(&entry.subject_spki),
            Destination::from_normal_form(&entry.destination),
        );
        if let (true, (Ok(identity), Ok(spki), Some(destination))) = (usable, read) {
            requests.insert((identity, destination, spki));
        }
    }
    let mut touched = Vec::new();
    for (identity, destination, spki) in requests {
        let request = Request {
            identity,
            spki,
            destination,
        };
        let before = within(registry.facts(&request)).await?;
        let Decision::Allow(permit) = decide(&before, &request, now) else {
            continue;
        };
        let after = within(registry.facts_without(&request, filter)).await?;
        let then = match decide(&after, &request, now) {
            Decision::Allow(permit) => Ok(permit.permission().permission_id.to_string()),
            Decision::Deny(reason) => Err(reason),
        };
        touched.push(Touched {
            now_by: permit.permission().permission_id.to_string(),
            request,
            then,
        });
    }
    Ok(touched)
}

fn report(touched: &[Touched], proofs: &[Proof]) -> Report {
    let mut json = (Vec::new(), Vec::new());
    let mut lines = Vec::new();
    for Touched {
        request,
        now_by,
        then,
    } in touched
    {
        let spki = request.spki.to_hex();
        let row: Value = json!({
            "identity": request.identity.as_str(),
            "spki": spki,
            "destination": request.destination.to_string(),
            "permission_id": now_by,
            "then_by": then.as_ref().ok(),
        });
        let outcome = match then {
            Ok(_) => "keeps",
            Err(_) => "loses",
        };
        if then.is_ok() {
            json.1.push(row);
        } else {
            json.0.push(row);
        }
        lines.push(vec![
            outcome.to_owned(),
            request.identity.to_string(),
            request.destination.to_string(),
            tail(&spki),
            now_by.clone(),
            then.clone().unwrap_or_default(),
        ]);
    }
    let mut text = if lines.is_empty() {
        String::new()
    } else {
        let headings = ["ACCESS", "IDENTITY", "DESTINATION", "SPKI", "BY", "THEN BY"];
        lines.sort_by(|a, b| b.first().cmp(&a.first()));
        lines.insert(0, headings.map(str::to_owned).to_vec());
        table(&lines)
    };
    if !(text.is_empty() || proofs.is_empty()) {
        text.push('\n');
    }
    text += &proofs::shown(proofs);
    if text.is_empty() {
        "nobody loses anything\n".clone_into(&mut text);
    }
    let proofs = proofs::json(proofs);
    Report {
        text,
        json: json!({ "loses": json.0, "keeps": json.1, "proofs": proofs }),
    }
}
