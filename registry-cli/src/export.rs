//! `export`: signed rows as lines of JSON, a page at a time.

use crate::cli::ExportArgs;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::terminal::{Written, write};
use crate::{selectors, signed_row};

/// Rows held at a time.
const PAGE: u32 = 1000;

/// Runs the command.
pub(crate) async fn run(args: &ExportArgs) -> Result<(), Failure> {
    let filter = selectors::read(&args.selectors)?;
    let mut registry = database::open().await?;
    let mut after: Option<String> = None;
    loop {
        let page = registry.permissions_after(&filter, after.as_deref(), Some(PAGE));
        let page = within(page).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.permission_id.clone());
        let lines: String = page.iter().map(signed_row::entry).collect();
        if write(&lines)? == Written::ReaderGone {
            return Ok(());
        }
    }
}
