//! `root show`: what the registry calls itself, who its roots are, and what they have not signed.

use std::fmt::Write as _;

use permission::{Claim, Id, RootKey, Statement, TrustRoots};
use serde_json::{Value, json};

use super::unsigned::{Which, unsigned};
use crate::database::{self, within};
use crate::failure::{Failure, RootFailure};
use crate::terminal::{Report, escape};
use crate::trust::Trust;

/// Runs the command.
pub(crate) async fn run(trust: &Trust) -> Result<Report, Failure> {
    let mut registry = database::open_any(trust).await?;
    let now = within(registry.now()).await?;
    let found = within(registry.registry_id()).await?;
    let registry_id = Id::parse(&found).map_err(|source| Failure::Id {
        what: "the registry's id",
        source,
    })?;
    let placed = match trust.unplaced.as_slice() {
        [] => trust.roots.clone(),
        keys => {
            Some(TrustRoots::new(registry_id.clone(), keys.to_vec()).map_err(RootFailure::from)?)
        }
    };
    let roots = placed.as_ref();
    let open = unsigned(&mut registry, &registry_id, &Which::default(), roots, now).await?;
    let keys: &[RootKey] = roots.map_or(&[], |roots| roots.keys());
    Ok(report(&registry_id, keys, &open))
}

fn report(registry_id: &Id, roots: &[RootKey], open: &[Statement]) -> Report {
    let mut text = format!("registry    {}\n", escape(registry_id.as_str()));
    // Writing to a String can't fail.
    for root in roots {
        let _ = writeln!(text, "root        {}", root.fingerprint());
    }
    let mut unsigned = Vec::new();
    for statement in open {
        let key_id = escape(statement.key_id.as_str());
        let destination = match &statement.claim {
            Claim::Signs => {
                let _ = writeln!(text, "unsigned    key {key_id}");
                None
            }
            Claim::Delegates(destination) => {
                let _ = writeln!(text, "unsigned    scope {key_id} {destination}");
                Some(destination.to_string())
            }
        };
        let key_id = statement.key_id.as_str();
        unsigned.push(json!({"key_id": key_id, "destination": destination}));
    }
    let hex: Vec<_> = roots.iter().map(|root| root.spki().to_hex()).collect();
    // As TOML writes a basic string: ids hold no control characters.
    let quoted = Value::from(registry_id.as_str());
    let listed = Value::from(hex.clone());
    let _ = write!(
        text,
        "\n# for the service's configuration\n[policy]\ntrust_roots = {listed}\nregistry_id = {quoted}\n"
    );
    let fingerprint =
        |root: &RootKey| json!({"fingerprint": root.fingerprint(), "spki": root.spki().to_hex()});
    Report {
        text,
        json: json!({
            "registry_id": registry_id.as_str(),
            "roots": roots.iter().map(fingerprint).collect::<Vec<_>>(),
            "unsigned": unsigned,
        }),
    }
}
