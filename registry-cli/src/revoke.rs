//! `revoke`: takes permissions back; the gateway's next decision already sees it.

use permission::{Destination, Id, Identity};
use registry::RevokeFilter;
use serde_json::json;

use crate::arguments::{destination, id};
use crate::cli::RevokeArgs;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::subject::Subject;
use crate::terminal::{Report, escape};

/// Runs the command.
pub(crate) async fn run(args: &RevokeArgs) -> Result<Report, Failure> {
    let filter = filter(args)?;
    let mut registry = database::open().await?;
    let mut ids = within(registry.revoke(&filter)).await?;
    if ids.is_empty() {
        return Err(Failure::NothingMatched);
    }
    ids.sort_unstable();
    let lines = ids.iter().map(|id| format!("revoked {}\n", escape(id)));
    Ok(Report {
        text: lines.collect(),
        json: json!({ "revoked": ids }),
    })
}

/// All that is given must match, and nothing given would match everything.
fn filter(args: &RevokeArgs) -> Result<RevokeFilter, Failure> {
    let RevokeArgs {
        id: permission_id,
        identity,
        spki,
        destination: to,
    } = args;
    if (permission_id, identity, spki, to) == (&None, &None, &None, &None) {
        return Err(Failure::NoFilter);
    }
    let permission_id: Option<Id> = permission_id
        .as_deref()
        .map(|text| id("permission id", text))
        .transpose()?;
    let identity: Option<Identity> = identity.as_deref().map(Identity::parse).transpose()?;
    let to: Option<Destination> = to.as_deref().map(destination).transpose()?;
    let subject = spki.as_deref().map(Subject::read).transpose()?;
    if let (Some(subject), Some(identity)) = (&subject, &identity) {
        subject.must_be(identity)?;
    }
    Ok(RevokeFilter {
        permission_id,
        identity,
        spki: subject.map(|subject| subject.spki),
        destination: to,
    })
}
