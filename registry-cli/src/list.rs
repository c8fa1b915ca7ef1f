//! `list`: what stands in the registry, as stored.

use permission::{Timestamp, Window};
use poca::PublicKey;
use registry::Filter;
use serde_json::{Map, Value};

use crate::cli::{ListArgs, Listed, Selectors, State};
use crate::database::{self, within};
use crate::failure::Failure;
use crate::root::unsigned;
use crate::terminal::{Report, table, tail, when};
use crate::trust::Trust;
use crate::validity::relative;
use crate::{poca_key, selectors, show, tunnels};

/// A row of any of the tables.
struct Row<const N: usize> {
    fields: [String; N],
    window: Window,
    revoked_at: Option<Timestamp>,
    trusted: bool,
}

/// Runs the command.
pub(crate) async fn run(args: &ListArgs, trust: &Trust) -> Result<Report, Failure> {
    let filter = filter(args)?;
    if args.what == Listed::Tunnels {
        return tunnels::report(&args.admin, &filter).await;
    }
    let mut registry = database::open(trust).await?;
    let now = within(registry.now()).await?;
    let state = args.state;
    Ok(match args.what {
        Listed::Keys => {
            let entries = within(registry.keys(&filter)).await?.into_iter();
            let roots = registry.trust_roots();
            let rows = entries.map(|entry| Row {
                trusted: unsigned::key_is_trusted(&entry, roots),
                fields: [entry.key_id, hex::encode(entry.spki)],
                window: entry.window,
                revoked_at: entry.revoked_at,
            });
            report(["key_id", SPKI], rows, state, now)
        }
        Listed::Scopes => {
            let entries = within(registry.all_scopes(&filter)).await?.into_iter();
            let keys = within(registry.keys(&Filter::default())).await?;
            let roots = registry.trust_roots();
            let rows = entries.map(|entry| Row {
                trusted: unsigned::scope_is_trusted(&entry, &keys, roots),
                fields: [entry.signing_key_id, entry.destination],
                window: entry.window,
                revoked_at: entry.revoked_at,
            });
            report(["key_id", "destination"], rows, state, now)
        }
        Listed::Permissions => {
            let entries = within(registry.permissions(&filter)).await?.into_iter();
            let rows = entries.map(|entry| Row {
                trusted: true,
                fields: [
                    entry.permission_id,
                    entry.subject_identity,
                    entry.destination,
                    entry.signing_key_id,
                    hex::encode(entry.subject_spki),
                ],
                window: entry.window,
                revoked_at: entry.revoked_at,
            });
            let names = ["permission_id", "identity", "destination", "key_id", SPKI];
            report(names, rows, state, now)
        }
        Listed::PocaKeys => {
            let entries = within(registry.poca_keys(&filter)).await?.into_iter();
            let rows = entries.map(|entry| Row {
                trusted: true,
                fields: [
                    entry.poca_key_id,
                    entry.subject_identity,
                    poca_key::shown(&entry.ed25519_public_key),
                    entry.signing_key_id,
                ],
                window: entry.window,
                revoked_at: entry.revoked_at,
            });
            let names = ["poca_key_id", "identity", "public_key", "key_id"];
            report(names, rows, state, now)
        }
        // Answered above, without the registry.
        Listed::Tunnels => tunnels::report(&args.admin, &filter).await?,
    })
}

/// What must match; a filter on what the rows don't have is refused, for it would match all.
fn filter(args: &ListArgs) -> Result<Filter, Failure> {
    let Selectors {
        id,
        key,
        identity,
        spki,
        destination,
    } = &args.selectors;
    let (id, key) = (("--id", id.is_some()), ("--key", key.is_some()));
    let identity = ("--identity", identity.is_some());
    let spki = ("--spki", spki.is_some());
    let destination = ("--destination", destination.is_some());
    let state = ("--state", args.state.is_some());
    let public_key = ("--public-key", args.public_key.is_some());
    let admin = ("--admin", !args.admin.is_empty());
    let refused = match args.what {
        Listed::Keys => vec![id, identity, destination, public_key, admin],
        Listed::Scopes => vec![id, identity, spki, public_key, admin],
        Listed::Permissions => vec![public_key, admin],
        Listed::PocaKeys => vec![spki, destination, admin],
        Listed::Tunnels if !admin.1 => return Err(Failure::NoAdmin),
        Listed::Tunnels => vec![key, public_key, state],
    };
    if let Some((option, _)) = refused.iter().find(|(_, given)| *given) {
        return Err(Failure::NoSuchFilter { option });
    }
    let public_key = args.public_key.as_deref().map(poca_key::read).transpose()?;
    Ok(Filter {
        ed25519_public_key: public_key.map(PublicKey::to_bytes),
        ..selectors::read(&args.selectors)?
    })
}

/// The one field that is too long for a table.
const SPKI: &str = "spki";

fn report<const N: usize>(
    names: [&str; N],
    rows: impl Iterator<Item = Row<N>>,
    state: Option<State>,
    now: Timestamp,
) -> Report {
    let heading = |name: &str| name.replace('_', " ").to_uppercase();
    let after = ["state", "not_before", "not_after"];
    let headings = names.iter().chain(&after).map(|name| heading(name));
    let mut lines = vec![headings.collect()];
    let mut objects = Vec::new();
    let wanted = |row: &Row<N>| state.is_none_or(|state| row.state(now) == state.name());
    for row in rows.filter(wanted) {
        lines.push(row.cells(names, now));
        objects.push(row.object(names, now));
    }
    Report {
        text: table(&lines),
        json: objects.into(),
    }
}

impl<const N: usize> Row<N> {
    fn state(&self, now: Timestamp) -> &'static str {
        show::state(&self.window, self.revoked_at.is_some(), self.trusted, now)
    }

    fn cells(&self, names: [&str; N], now: Timestamp) -> Vec<String> {
        let shown = |(name, text): (&str, &String)| match name {
            SPKI => tail(text),
            _ => text.clone(),
        };
        let mut cells: Vec<_> = names.into_iter().zip(&self.fields).map(shown).collect();
        cells.push(match self.revoked_at {
            Some(time) => format!("{} {}", self.state(now), relative(time, now)),
            None => self.state(now).to_owned(),
        });
        cells.push(when(self.window.not_before(), now));
        cells.push(when(self.window.not_after(), now));
        cells
    }

    fn object(&self, names: [&str; N], now: Timestamp) -> Value {
        let mut object = Map::new();
        let mut add = |name: &str, value: Value| object.insert(name.to_owned(), value);
        for (name, text) in names.into_iter().zip(&self.fields) {
            add(name, text.as_str().into());
        }
        add("state", self.state(now).into());
        add("not_before", self.window.not_before().to_string().into());
        add("not_after", self.window.not_after().to_string().into());
        let revoked_at = self.revoked_at.map(|time| time.to_string());
        add("revoked_at", revoked_at.into());
        object.into()
    }
}
