//! `show`: all about one permission, one agent's key for proofs of context, or one key.

use std::fmt::Write as _;

use permission::time::Position;
use permission::{
    Candidate, Destination, Id, Permission, PocaKey, Scope, Signer, Timestamp, Window, judge,
};
use registry::{Filter, Stored, StoredPocaKey, Writer};
use serde_json::{Value, json};

use crate::arguments::id;
use crate::audit::own_request;
use crate::cli::ShowArgs;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::poca_key;
use crate::terminal::{Report, escape, when};
use crate::trust::Trust;

/// Runs the command.
pub(crate) async fn run(args: &ShowArgs, trust: &Trust) -> Result<Report, Failure> {
    let id = id("id", &args.id)?;
    let mut registry = database::open(trust).await?;
    let now = within(registry.now()).await?;
    if let Some(stored) = within(registry.stored(id.as_str())).await? {
        return Ok(permission(&stored, now));
    }
    let filter = Filter {
        id: Some(id.clone()),
        ..Filter::default()
    };
    if let Some(stored) = within(registry.stored_poca_keys(&filter, None, None))
        .await?
        .first()
    {
        return Ok(poca_key(stored, now));
    }
    match within(registry.signer(&id)).await? {
        Some(signer) => key(&mut registry, &id, &signer, now).await,
        None => Err(Failure::NoSuchId(id)),
    }
}

fn permission(stored: &Stored, now: Timestamp) -> Report {
    let id = stored.permission_id();
    let candidate = match stored.candidate() {
        Ok(candidate) => candidate,
        Err(column) => {
            return Report {
                text: format!("permission  {}\nunusable    column {column}\n", escape(id)),
                json: json!({"permission_id": id, "unusable_column": column}),
            };
        }
    };
    let Permission {
        signing_key_id: key_id,
        subject_identity: identity,
        subject_spki,
        destination,
        window,
        ..
    } = candidate.permission();
    let verdict = verdict(&candidate, now);
    let signed = candidate.is_signed();
    let spki = subject_spki.to_hex();
    let signature = if signed {
        "verifies"
    } else {
        "does not verify"
    };
    let text = format!(
        "permission  {}\nidentity    {}\nspki        {spki}\ndestination {destination}\n\
         signed by   {}\nsignature   {signature}\nvalid from  {}\nvalid until {}\n\
         verdict     {verdict}\n",
        escape(id),
        escape(identity.as_str()),
        escape(key_id.as_str()),
        when(window.not_before(), now),
        when(window.not_after(), now),
    );
    Report {
        text,
        json: json!({
            "permission_id": id,
            "identity": identity.as_str(),
            "spki": spki,
            "destination": destination.to_string(),
            "key_id": key_id.as_str(),
            "signature_verifies": signed,
            "not_before": window.not_before().to_string(),
            "not_after": window.not_after().to_string(),
            "revoked": stored.is_revoked(),
            "verdict": verdict,
        }),
    }
}

fn poca_key(stored: &StoredPocaKey, now: Timestamp) -> Report {
    let id = stored.poca_key_id();
    let candidate = match poca_key::candidate(stored) {
        Ok(candidate) => candidate,
        Err(column) => {
            return Report {
                text: format!("PoCA key    {}\nunusable    column {column}\n", escape(id)),
                json: json!({"poca_key_id": id, "unusable_column": column}),
            };
        }
    };
    let PocaKey {
        signing_key_id: key_id,
        subject_identity: identity,
        ed25519_public_key,
        window,
        ..
    } = candidate.key();
    let public_key = poca_key::shown(ed25519_public_key);
    let signed = candidate.is_signed();
    let reach = candidate.reach(identity, now);
    let verdict = reach
        .as_ref()
        .map_or_else(|reason| reason.code(), |_| "counts");
    let reach: Vec<_> = reach.iter().flatten().map(ToString::to_string).collect();
    let mut text = format!(
        "PoCA key    {}\nidentity    {}\npublic key  {public_key}\nsigned by   {}\n\
         signature   {}\nvalid from  {}\nvalid until {}\nverdict     {verdict}\n",
        escape(id),
        escape(identity.as_str()),
        escape(key_id.as_str()),
        if signed {
            "verifies"
        } else {
            "does not verify"
        },
        when(window.not_before(), now),
        when(window.not_after(), now),
    );
    for destination in &reach {
        // Writing to a String can't fail.
        let _ = writeln!(text, "for tools at {destination}");
    }
    Report {
        text,
        json: json!({
            "poca_key_id": id,
            "identity": identity.as_str(),
            "public_key": public_key,
            "key_id": key_id.as_str(),
            "signature_verifies": signed,
            "not_before": window.not_before().to_string(),
            "not_after": window.not_after().to_string(),
            "revoked": stored.is_revoked(),
            "verdict": verdict,
            "destinations": reach,
        }),
    }
}

/// What the row is worth to the agent that it names.
fn verdict(candidate: &Candidate, now: Timestamp) -> &'static str {
    judge(candidate, &own_request(candidate), now)
        .map_or_else(permission::Reason::code, |_| "allows")
}

async fn key(
    registry: &mut Writer,
    id: &Id,
    signer: &Signer,
    now: Timestamp,
) -> Result<Report, Failure> {
    let filter = Filter {
        key_id: Some(id.clone()),
        ..Filter::default()
    };
    let scopes = within(registry.all_scopes(&filter)).await?;
    let window = signer.window;
    let roots = registry.trust_roots();
    let trusted = signer.is_trusted(id, roots);
    let state = state(&window, signer.revoked, trusted, now);
    let spki = signer.key.spki().to_hex();
    let mut text = format!(
        "key         {}\nspki        {spki}\nstate       {state}\nvalid from  {}\nvalid until {}\n",
        escape(id.as_str()),
        when(window.not_before(), now),
        when(window.not_after(), now),
    );
    let mut listed = Vec::new();
    for scope in &scopes {
        let trusted =
            Destination::from_normal_form(&scope.destination).is_some_and(|destination| {
                let as_scope = Scope {
                    destination,
                    window: scope.window,
                    revoked: false,
                    root_signature: scope.root_signature.clone(),
                };
                signer.may_delegate(id, &as_scope, roots)
            });
        let state = self::state(&scope.window, scope.revoked_at.is_some(), trusted, now);
        let until = when(scope.window.not_after(), now);
        // Writing to a String can't fail.
        let destination = escape(&scope.destination);
        let _ = writeln!(text, "scope       {destination}  {state}, until {until}");
        listed.push(json!({
            "destination": scope.destination,
            "state": state,
            "not_before": scope.window.not_before().to_string(),
            "not_after": scope.window.not_after().to_string(),
        }));
    }
    Ok(Report {
        text,
        json: json!({
            "key_id": id.as_str(),
            "spki": spki,
            "state": state,
            "not_before": window.not_before().to_string(),
            "not_after": window.not_after().to_string(),
            "scopes": Value::from(listed),
        }),
    })
}

/// A row's own state, whatever it rests on but a trust root's signature.
pub(crate) fn state(window: &Window, revoked: bool, trusted: bool, now: Timestamp) -> &'static str {
    match window.position(now) {
        _ if revoked => "revoked",
        Position::Before | Position::Within if !trusted => "untrusted",
        Position::Before => "not yet valid",
        Position::Within => "active",
        Position::After => "expired",
    }
}
