//! `grant-scope`: what a key may delegate; and whether that covers what it is to grant.

use permission::time::Position;
use permission::{Destination, Id, Scope, Timestamp, Window};
use serde_json::json;

use crate::arguments::{destinations, id};
use crate::cli::GrantScopeArgs;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::principal::must_be_active;
use crate::root::Endorser;
use crate::signing::Grounds;
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

/// Why a key's scopes for a destination don't cover what is granted.
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
    /// It is active, and ends before what is granted would.
    #[error("ends at {end}, before the grant would")]
    Short {
        /// When it ends.
        end: Timestamp,
        /// A `--valid` that it would cover.
        covered: Option<Validity>,
    },
}

/// Makes sure that a key may delegate each of these destinations for all of `window`, which begins at
/// `now`; if none is named, that it may delegate any.
pub(crate) fn must_be_delegated(
    key_id: &Id,
    destinations: &[Destination],
    grounds: &Grounds,
    window: &Window,
    now: Timestamp,
) -> Result<(), Failure> {
    let any_will_do = destinations.is_empty();
    let known = grounds.scopes.iter().map(|scope| &scope.destination);
    let mut first_gap = None;
    for destination in destinations.iter().chain(known.filter(|_| any_will_do)) {
        match gap(key_id, destination, grounds, window, now) {
            None if any_will_do => return Ok(()),
            None => {}
            Some(gap) => {
                first_gap.get_or_insert((destination.clone(), gap));
            }
        }
    }
    match first_gap {
        None if any_will_do => Err(Failure::NoScope(key_id.clone())),
        None => Ok(()),
        Some((destination, gap)) => Err(Failure::Scope {
            delegation: Delegation {
                key_id: key_id.clone(),
                destination,
            },
            gap,
        }),
    }
}

fn gap(
    key_id: &Id,
    destination: &Destination,
    Grounds {
        signer,
        scopes,
        roots,
    }: &Grounds,
    window: &Window,
    now: Timestamp,
) -> Option<ScopeGap> {
    let (counting, others): (Vec<Scope>, Vec<Scope>) = scopes
        .iter()
        .filter(|scope| scope.destination == *destination)
        .cloned()
        .partition(|scope| signer.may_delegate(key_id, scope, roots.as_ref()));
    match must_cover(&counting, window, now) {
        Ok(()) => None,
        Err(_) if must_cover(&others, window, now).is_ok() => Some(ScopeGap::Untrusted),
        Err(gap) => Some(gap),
    }
}

/// Makes sure that one of `scopes` (latest end first) covers `window`, which begins at `now`.
fn must_cover(scopes: &[Scope], window: &Window, now: Timestamp) -> Result<(), ScopeGap> {
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
