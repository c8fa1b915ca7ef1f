//! The end of a rotation: the new key is tried, takes the old one's place, and the old one goes.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tpm::TpmKey;

use super::{RotateError, is_in_place, load};
use crate::certificate;
use crate::cli::RotateArgs;
use crate::credential::{Credential, CurrentCredential};
use crate::entrance::Entrance;
use crate::gateway::{Answer, Connector, Gateway};
use crate::output::{OutputError, print, print_json};
use crate::pin;
use crate::run::{RunError, authorities};
use crate::state::{Next, Retired, State, StateDir};
use crate::{inquiry, rekey};

/// How long the tunnel that tries the new key may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) fn run(dir: &StateDir, args: &RotateArgs) -> Result<(), RotateError> {
    let _changing = dir.lock_changes()?;
    let state = load(dir)?;
    let next = dir.next()?;
    let state = match next {
        Some(next) if !is_in_place(&next, &state) => {
            let next = usable(next, args)?;
            switch(dir, state, next)?
        }
        // Interrupted after the switch.
        Some(_) => state,
        None if state.retired.is_some() => state,
        None => return Err(RotateError::NoneBegun),
    };
    Ok(report(&let_go(dir, state)?, args.json)?)
}

/// The new key and its certificate, which were tried, or need not be.
fn usable(next: Next, args: &RotateArgs) -> Result<State, RotateError> {
    let Some((leaf, certificate_pem)) = next.certificate else {
        return Err(RotateError::NoneBegun);
    };
    let location = next.location;
    let key = match TpmKey::open(&location)? {
        Some(key) if certificate::spki(&key)? == leaf.spki => key,
        _ => return Err(RotateError::Lost(location)),
    };
    if let Some(destination) = &args.destination {
        pin::unlock(&key)?;
        let credential = Credential::new(certificate_pem.as_bytes(), Arc::new(key))?;
        attempt(credential, destination, args)?;
    }
    Ok(State {
        leaf,
        certificate_pem,
        location,
        retired: None,
    })
}

/// One tunnel with the new key, closed at once.
fn attempt(
    credential: Credential,
    destination: &str,
    args: &RotateArgs,
) -> Result<(), RotateError> {
    let Some(ca) = args.ca.as_ref().filter(|_| !args.gateways.is_empty()) else {
        return Err(RotateError::NoGateway);
    };
    let credential = CurrentCredential::new(credential);
    let (gateways, name) = (args.gateways.clone(), args.server_name.as_ref());
    let connector =
        Connector::new(gateways, name, authorities(ca)?, credential).map_err(RunError::Tls)?;
    let untried = |error: String| RotateError::Untried(error);
    let authority = destination
        .parse()
        .map_err(|_| untried("not HOST:PORT".to_owned()))?;
    let runtime = tokio::runtime::Runtime::new().map_err(RunError::Runtime)?;
    let answer = runtime.block_on(async {
        let gateway = Gateway::new(connector, OPEN_TIMEOUT);
        gateway.open(&authority, &HeaderMap::new()).await
    });
    runtime.shutdown_background();
    match answer.map_err(|error| untried(error.to_string()))? {
        Answer::Open(..) => Ok(()),
        // Nobody decided.
        Answer::Refuse(refusal) if refusal.status != StatusCode::FORBIDDEN => {
            Err(untried(format!("the gateway answers {}", refusal.status)))
        }
        Answer::Refuse(refusal) => {
            let body: Value = serde_json::from_slice(&refusal.body).unwrap_or_default();
            let reason = body.get("reason").and_then(Value::as_str);
            Err(RotateError::Refused {
                destination: destination.to_owned(),
                status: refusal.status.as_u16(),
                // What came over the network must not steer the terminal.
                reason: reason.unwrap_or("denied").escape_debug().to_string(),
            })
        }
    }
}

/// The point from which on the new key is the agent's.
fn switch(dir: &StateDir, old: State, new: State) -> Result<State, RotateError> {
    let state = State {
        retired: Some(Retired {
            location: old.location,
            spki: old.leaf.spki,
        }),
        ..new
    };
    dir.save(&state)?;
    dir.remove_next()?;
    Ok(state)
}

/// What a rotation leaves behind once the new key is in place: the running sidecar's old key, and
/// then the TPM's.
pub(super) fn let_go(dir: &StateDir, state: State) -> Result<State, RotateError> {
    dir.export(&state)?;
    dir.remove_next()?;
    if let Some(entrance) = dir.running()? {
        take_over(&entrance, &state)?;
    }
    let Some(retired) = &state.retired else {
        return Ok(state);
    };
    if let Some(key) = TpmKey::open(&retired.location)?
        && certificate::spki(&key)? == retired.spki
    {
        pin::remove(key)?;
    }
    let state = State {
        retired: None,
        ..state
    };
    dir.save(&state)?;
    Ok(state)
}

/// Lets the running sidecar use the state's key, and makes sure that it does.
fn take_over(entrance: &Entrance, state: &State) -> Result<(), RotateError> {
    let failed = |error: String| RotateError::NotTakenOver(error);
    let answer =
        inquiry::ask(entrance, "POST", rekey::PATH).map_err(|error| failed(error.to_string()))?;
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let said = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    match (answer.status, said("spki")) {
        (200, spki) if spki == state.leaf.spki.to_hex() => Ok(()),
        (200, _) => Err(failed("it reads another state".to_owned())),
        (status, _) => Err(failed(format!("{status} {}", said("error")))),
    }
}

fn report(state: &State, as_json: bool) -> Result<(), OutputError> {
    let spki = state.leaf.spki.to_hex();
    if as_json {
        return print_json(&json!({
            "tcti": state.location.tcti.to_string(),
            "handle": state.location.handle.to_string(),
            "spki": spki,
        }));
    }
    print(&format!(
        "the key {} is in use, the old one is gone\nspki {spki}\n",
        state.location
    ))
}
