//! Which keys and scopes no trust root has signed: those that could count, were they signed.

use permission::time::Position;
use permission::{
    Claim, Destination, ECDSA_P256_SHA256, Id, PrincipalKey, Statement, Timestamp, TrustRoots,
    Window,
};
use registry::{Filter, KeyEntry, ScopeEntry, Writer};

use crate::database::within;
use crate::failure::Failure;

/// What is looked at.
#[derive(Debug, Default)]
pub(crate) struct Which {
    /// These keys and their scopes, or all.
    pub(crate) keys: Vec<Id>,
    /// Not the scopes.
    pub(crate) keys_only: bool,
    /// Only the scopes for this, and not the keys.
    pub(crate) destination: Option<Destination>,
}

/// The statements that none of `roots` has signed, as the rows stand now; without roots, those
/// that bear no signature at all. A row that can't be read can't be signed and is passed over.
pub(crate) async fn unsigned(
    registry: &mut Writer,
    registry_id: &Id,
    which: &Which,
    roots: Option<&TrustRoots>,
    now: Timestamp,
) -> Result<Vec<Statement>, Failure> {
    let all = Filter::default();
    let keys = within(registry.keys(&all)).await?;
    let scopes = within(registry.all_scopes(&all)).await?;
    let is_signed = |statement: &Statement, signature: Option<&[u8]>| match (roots, signature) {
        (Some(roots), Some(signature)) => roots.vouch_for(statement, signature),
        (None, Some(_)) => true,
        (_, None) => false,
    };
    let is_open = |revoked_at: Option<Timestamp>, window: &Window| {
        revoked_at.is_none() && window.position(now) != Position::After
    };
    let mut found = Vec::new();
    for key in &keys {
        let Some(of_key) = of_key(key, registry_id) else {
            continue;
        };
        let meant = which.keys.is_empty() || which.keys.contains(&of_key.key_id);
        if !meant || !is_open(key.revoked_at, &key.window) {
            continue;
        }
        if which.destination.is_none() && !is_signed(&of_key, key.root_signature.as_deref()) {
            found.push(of_key.clone());
        }
        if which.keys_only {
            continue;
        }
        for scope in &scopes {
            let Some(of_scope) = of_scope(scope, &of_key) else {
                continue;
            };
            let wanted = which
                .destination
                .as_ref()
                .is_none_or(|wanted| of_scope.claim == Claim::Delegates(wanted.clone()));
            let open = is_open(scope.revoked_at, &scope.window);
            if wanted && open && !is_signed(&of_scope, scope.root_signature.as_deref()) {
                found.push(of_scope);
            }
        }
    }
    // Rows that say the same are one statement.
    let mut once: Vec<Statement> = Vec::new();
    for statement in found {
        if !once.contains(&statement) {
            once.push(statement);
        }
    }
    Ok(once)
}

/// What a root would say of a key, if it can be said.
pub(crate) fn of_key(entry: &KeyEntry, registry_id: &Id) -> Option<Statement> {
    Some(Statement {
        registry_id: registry_id.clone(),
        key_id: Id::parse(&entry.key_id).ok()?,
        key: PrincipalKey::from_stored(ECDSA_P256_SHA256, &entry.spki).ok()?,
        claim: Claim::Signs,
        window: entry.window,
    })
}

/// As [`of_key`], of what that key may delegate; `None` also if it is another key's scope.
pub(crate) fn of_scope(entry: &ScopeEntry, of_key: &Statement) -> Option<Statement> {
    if entry.signing_key_id != of_key.key_id.as_str() {
        return None;
    }
    Some(Statement {
        claim: Claim::Delegates(Destination::from_normal_form(&entry.destination)?),
        window: entry.window,
        ..of_key.clone()
    })
}

/// Whether a listed key counts by the word of `roots`; where there are none, it does.
pub(crate) fn key_is_trusted(entry: &KeyEntry, roots: Option<&TrustRoots>) -> bool {
    roots.is_none_or(|roots| {
        let statement = of_key(entry, roots.registry_id());
        vouched(roots, statement.as_ref(), entry.root_signature.as_deref())
    })
}

/// As [`key_is_trusted`], of a scope of one of `keys`.
pub(crate) fn scope_is_trusted(
    entry: &ScopeEntry,
    keys: &[KeyEntry],
    roots: Option<&TrustRoots>,
) -> bool {
    roots.is_none_or(|roots| {
        let key = keys.iter().find(|key| key.key_id == entry.signing_key_id);
        let of_key = key.and_then(|key| of_key(key, roots.registry_id()));
        let statement = of_key.and_then(|of_key| of_scope(entry, &of_key));
        vouched(roots, statement.as_ref(), entry.root_signature.as_deref())
    })
}

fn vouched(roots: &TrustRoots, statement: Option<&Statement>, signature: Option<&[u8]>) -> bool {
    match (statement, signature) {
        (Some(statement), Some(signature)) => roots.vouch_for(statement, signature),
        _ => false,
    }
}
