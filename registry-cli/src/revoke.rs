//! `revoke`: takes permissions back; the gateway's next decision already sees it.

use registry::Filter;
use serde_json::json;

use crate::cli::RevokeArgs;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::selectors;
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

/// Nothing given would match everything.
fn filter(args: &RevokeArgs) -> Result<Filter, Failure> {
    if args.selectors.given() == 0 {
        return Err(Failure::NoFilter);
    }
    selectors::read(&args.selectors)
}
