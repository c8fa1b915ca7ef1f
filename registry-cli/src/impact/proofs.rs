//! Which agents' keys for proofs of context would count no longer, and for which tools.

use std::collections::BTreeSet;

use permission::{Destination, Id, PocaKey, Timestamp};
use registry::{Filter, Revocation, StoredPocaKey, Writer};
use serde_json::{Value, json};

use crate::database::within;
use crate::failure::Failure;
use crate::poca_key;
use crate::terminal::table;

/// A key that counts for a tool now, and that a revocation touches.
pub(super) struct Proof {
    key: PocaKey,
    tool_at: Destination,
    /// The row by which the same key would still count.
    then_by: Option<Id>,
}

/// What would become of each key that rests on what is taken back.
pub(super) async fn of(
    registry: &mut Writer,
    what: &Revocation,
    now: Timestamp,
) -> Result<Vec<Proof>, Failure> {
    let Some(filter) = what.poca_keys() else {
        return Ok(Vec::new());
    };
    let rows = within(registry.stored_poca_keys(&filter, None, None)).await?;
    let touched: BTreeSet<_> = rows.iter().map(StoredPocaKey::poca_key_id).collect();
    let mut proofs = Vec::new();
    for row in &rows {
        let Some((key, reach)) = counting(row, now) else {
            continue;
        };
        let same = Filter {
            identity: Some(key.subject_identity.clone()),
            ed25519_public_key: Some(key.ed25519_public_key),
            ..Filter::default()
        };
        let mut others = within(registry.stored_poca_keys(&same, None, None)).await?;
        others.retain(|other| !touched.contains(other.poca_key_id()));
        let others: Vec<_> = (others.iter())
            .filter_map(|other| counting(other, now))
            .collect();
        for tool_at in reach {
            if !is_taken(what, &tool_at) {
                continue;
            }
            let other = others.iter().find(|(_, reach)| reach.contains(&tool_at));
            proofs.push(Proof {
                key: key.clone(),
                then_by: other.map(|(key, _)| key.poca_key_id.clone()),
                tool_at,
            });
        }
    }
    Ok(proofs)
}

/// A key, and the tools for which it counts now.
fn counting(row: &StoredPocaKey, now: Timestamp) -> Option<(PocaKey, BTreeSet<Destination>)> {
    let candidate = poca_key::candidate(row).ok()?;
    let key = candidate.key();
    let reach = candidate.reach(&key.subject_identity, now).ok()?;
    Some((key.clone(), reach.into_iter().cloned().collect()))
}

fn is_taken(what: &Revocation, tool_at: &Destination) -> bool {
    match what {
        Revocation::Permissions(_) => false,
        Revocation::Scopes { destinations, .. } => destinations.contains(tool_at),
        Revocation::Key(_) | Revocation::PocaKeys(_) => true,
    }
}

/// As a table; nothing where there is none.
pub(super) fn shown(proofs: &[Proof]) -> String {
    if proofs.is_empty() {
        return String::new();
    }
    let headings = [
        "PROOFS",
        "IDENTITY",
        "TOOLS AT",
        "PUBLIC KEY",
        "BY",
        "THEN BY",
    ];
    let mut lines: Vec<_> = proofs.iter().map(Proof::cells).collect();
    lines.sort_by(|a, b| b.first().cmp(&a.first()));
    lines.insert(0, headings.map(str::to_owned).to_vec());
    table(&lines)
}

/// Those that are lost, and those that are kept.
pub(super) fn json(proofs: &[Proof]) -> Value {
    let (keeps, loses): (Vec<_>, Vec<_>) = proofs.iter().partition(|proof| proof.then_by.is_some());
    let listed = |proofs: Vec<&Proof>| -> Value { proofs.into_iter().map(Proof::json).collect() };
    json!({ "loses": listed(loses), "keeps": listed(keeps) })
}

impl Proof {
    fn cells(&self) -> Vec<String> {
        let (outcome, then_by) = match &self.then_by {
            Some(id) => ("keeps", id.to_string()),
            None => ("loses", String::new()),
        };
        vec![
            outcome.to_owned(),
            self.key.subject_identity.to_string(),
            self.tool_at.to_string(),
            poca_key::shown(&self.key.ed25519_public_key),
            self.key.poca_key_id.to_string(),
            then_by,
        ]
    }

    fn json(&self) -> Value {
        json!({
            "identity": self.key.subject_identity.as_str(),
            "public_key": poca_key::shown(&self.key.ed25519_public_key),
            "destination": self.tool_at.to_string(),
            "poca_key_id": self.key.poca_key_id.as_str(),
            "then_by": self.then_by.as_ref().map(Id::as_str),
        })
    }
}
