//! `grant-scope`: what a key may delegate; and whether that covers a permission.

use permission::time::Position;
use permission::{Destination, Id, Scope, Timestamp, Window};
use serde_json::json;

use crate::arguments::{destinations, id};
use crate::cli::GrantScopeArgs;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::principal::must_be_active;
use crate::root::Endorser;
use crate::terminal::{Report, escape, say, when};
use crate::trust::Trust;
use crate::validity::Validity;

/// Runs the command.
pub(crate) async fn run(args: &GrantScopeArgs, trust: &Trust) -> Result<Report, Failure> {
    let key_id = id("key id", &args.key_id)?;
    let destinations = destinations(&args.destinations)?;
    let endorser = Endorser::at_hand(&args.root, trust)?;
    let mut registry = database::open(trust).await?;
    let now = within(registry.now()).await?;
    let signer = within(registry.signer(&key_id)).await?;
    let signer = signer.ok_or_else(|| Failure::KeyUnknown(key_id.clone()))?;
    must_be_active(&key_id, &signer, now)?;
    let window = args.valid.window_from(now)?;
    let scope = |destination: &Destination| Scope {
        destination: destination.clone(),
        window,
        revoked: false,
        root_signature: None,
    };
    let mut scopes: Vec<_> = destinations.iter().map(scope).collect();
    for scope in &mut scopes {
        if let Some(endorser) = &endorser {
            endorser.vouch_for_scope(&key_id, &signer.key, scope)?;
        }
    }
    within(registry.grant_scope(&key_id, &scopes)).await?;
    let roots = registry.trust_roots();
    let counts = |scope| signer.may_delegate(&key_id, scope, roots);
    if !(signer.is_trusted(&key_id, roots) && scopes.iter().all(counts)) {
        say(
            "note",
            &format!("no trust root has signed all of this yet: `root sign {key_id}` does"),
        );
    }

    let key = escape(key_id.as_str());
    let until = when(window.not_after(), now);
    let lines = destinations
        .iter()
        .map(|destination| format!("{key} may delegate {destination} until {until}\n"));
    let normal: Vec<_> = destinations.iter().map(ToString::to_string).collect();
    Ok(Report {
        text: lines.collect(),
        json: json!({
            "key_id": key_id.as_str(),
            "destinations": normal,
            "not_before": window.not_before().to_string(),
            "not_after": window.not_after().to_string(),
        }),
    })
}

/// Why a key's scopes for a destination don't cover a permission.
#[derive(Debug, thiserror::Error)]
pub enum ScopeGap {
    /// There is none that was not revoked.
    #[error("is missing")]
    Missing,
    /// There is one that would do, but it does not count.
    #[error("is not signed by a trust root")]
    Untrusted,
    /// It has not begun.
    #[error("begins only at {0}")]
    Future(Timestamp),
    /// It is over.
    #[error("ended at {0}")]
    Past(Timestamp),
    /// It is active, and ends before the permission would.
    #[error("ends at {end}, before the permission would")]
    Short {
        /// When it ends.
        end: Timestamp,
        /// A `--valid` that it would cover.
        covered: Option<Validity>,
    },
}

/// Makes sure that one of `scopes` (latest end first) covers `window`, which begins at `now`.
pub(crate) fn must_cover(
    scopes: &[Scope],
    window: &Window,
    now: Timestamp,
) -> Result<(), ScopeGap> {
    if scopes.iter().any(|scope| scope.window.covers(window)) {
        return Ok(());
    }
    let active = |scope: &&Scope| scope.window.position(now) == Position::Within;
    let best = scopes.iter().find(active).or(scopes.first());
    let best = best.ok_or(ScopeGap::Missing)?.window;
    Err(match best.position(now) {
        Position::Before => ScopeGap::Future(best.not_before()),
        Position::After => ScopeGap::Past(best.not_after()),
        Position::Within => ScopeGap::Short {
            end: best.not_after(),
            covered: Validity::until(best.not_after(), now),
        },
    })
}

/// What a scope is for, in an error message.
#[derive(Debug)]
pub struct Delegation {
    /// Whose scope.
    pub key_id: Id,
    /// For what.
    pub destination: Destination,
}
