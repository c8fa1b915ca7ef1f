//! `export`: signed rows as lines of JSON, a page at a time.

use registry::{Filter, StatementRow, Writer};

use crate::arguments::id;
use crate::cli::ExportArgs;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::root::unsigned;
use crate::terminal::{Written, write};
use crate::trust::Trust;
use crate::{selectors, signed_row};

/// Rows held at a time.
const PAGE: u32 = 1000;

/// Runs the command.
pub(crate) async fn run(args: &ExportArgs, trust: &Trust) -> Result<(), Failure> {
    let filter = selectors::read(&args.selectors)?;
    let mut registry = database::open(trust).await?;
    if args.keys && write(&keys(&mut registry, &filter).await?)? == Written::ReaderGone {
        return Ok(());
    }
    let mut after: Option<String> = None;
    loop {
        let page = registry.permissions_after(&filter, after.as_deref(), Some(PAGE));
        let page = within(page).await?;
        let Some(last) = page.last() else {
            break;
        };
        after = Some(last.permission_id.clone());
        let lines: String = page.iter().map(signed_row::entry).collect();
        if write(&lines)? == Written::ReaderGone {
            return Ok(());
        }
    }
    // They have no such columns, so none of them matches.
    if filter.spki.is_some() || filter.destination.is_some() {
        return Ok(());
    }
    poca_keys(&mut registry, &filter).await
}

/// Agents' keys for proofs of context.
async fn poca_keys(registry: &mut Writer, filter: &Filter) -> Result<(), Failure> {
    let mut after: Option<String> = None;
    loop {
        let page = registry.poca_keys_after(filter, after.as_deref(), Some(PAGE));
        let page = within(page).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.poca_key_id.clone());
        let lines: String = page.iter().map(signed_row::poca_key_entry).collect();
        if write(&lines)? == Written::ReaderGone {
            return Ok(());
        }
    }
}

/// Keys that match, and their scopes, as far as they can be read; as they are, whoever signed them.
async fn keys(registry: &mut Writer, filter: &Filter) -> Result<String, Failure> {
    let found = within(registry.registry_id()).await?;
    let registry_id = id("the registry's id", &found)?;
    let of_key = Filter {
        key_id: filter.key_id.clone(),
        ..Filter::default()
    };
    let scopes = within(registry.all_scopes(filter)).await?;
    let mut lines = String::new();
    for key in within(registry.keys(&of_key)).await? {
        let Some(statement) = unsigned::of_key(&key, &registry_id) else {
            continue;
        };
        let of_key = statement.clone();
        lines += &signed_row::statement(&StatementRow {
            statement,
            root_signature: key.root_signature,
            revoked_at: key.revoked_at,
        });
        for scope in &scopes {
            if let Some(statement) = unsigned::of_scope(scope, &of_key) {
                lines += &signed_row::statement(&StatementRow {
                    statement,
                    root_signature: scope.root_signature.clone(),
                    revoked_at: scope.revoked_at,
                });
            }
        }
    }
    Ok(lines)
}
