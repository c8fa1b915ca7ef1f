//! `rotate`: another key in the place of the agent's, without a moment in which none works.
//!
//! The new key is made beside the old one, which stays in use until permissions for the new one are
//! there. Each step is written down before it has an effect that can't be seen, so a command that
//! was interrupted is done again and goes on from there:
//!
//! 1. `next.json` names a handle that is empty. A key that is there later is ours.
//! 2. The key is made, and its certificate joins the handle in `next.json`.
//! 3. The new key works, or the user says so: it becomes the state, in one step, and the old one is
//!    named there as retired.
//! 4. The running sidecar has taken the new key over: the old one leaves the TPM.

mod finish;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::json;
use tpm::{Handle, Location, TpmError, TpmKey};

use crate::certificate::{self, IssueError};
use crate::cli::RotateArgs;
use crate::credential::CredentialError;
use crate::failure::Failure;
use crate::init::issue;
use crate::output::{OutputError, print, print_json, say};
use crate::pin::{self, NewPin, PinError};
use crate::request::request;
use crate::run::RunError;
use crate::state::{Next, State, StateDir, StateError};

/// Why there is no other key, or not yet.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// `init` never ran.
    #[error("{0} holds no sidecar's state")]
    NoState(PathBuf),
    /// The state can't be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The TPM gives no key, or doesn't let go of one.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// There is a PIN in the way.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The key can't carry a certificate.
    #[error("can't make the certificate: {0}")]
    Issue(#[from] IssueError),
    /// Nobody reads the result.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The new key needs a handle of its own.
    #[error("the handle {0} is the one of the key in use")]
    SameHandle(Handle),
    /// Whose key that is, nobody knows.
    #[error("there is a key {0} already, which is not this agent's next one")]
    Occupied(Location),
    /// There is a new key elsewhere.
    #[error("a rotation to the key {0} has begun")]
    OtherBegun(Location),
    /// There is no new key.
    #[error("no rotation has begun")]
    NoneBegun,
    /// The new key isn't what it was.
    #[error("the key {0} is not the one that the rotation made")]
    Lost(Location),
    /// Certificate and key are no pair.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The gateway can't be looked for.
    #[error("it takes --gateway and --ca to try the new key")]
    NoGateway,
    /// What `run` couldn't start with either.
    #[error(transparent)]
    Run(#[from] RunError),
    /// No tunnel with the new key.
    #[error("the gateway refuses {destination} to the new key: {status} {reason}")]
    Refused {
        /// What was asked for.
        destination: String,
        /// The answer.
        status: u16,
        /// Why, as the service says.
        reason: String,
    },
    /// Nobody knows whether the new key is granted.
    #[error("the new key could not be tried: {0}")]
    Untried(String),
    /// The running sidecar goes on with the old key.
    #[error("the new key is in place, but the running sidecar still uses the old one: {0}")]
    NotTakenOver(String),
}

/// Runs the command.
pub fn run(args: &RotateArgs) -> Result<(), Failure> {
    let dir = StateDir::new(&args.state.dir);
    let done = if args.finish {
        finish::run(&dir, args)
    } else if args.cancel {
        cancel(&dir, args.json)
    } else {
        begin(&dir, args)
    };
    Ok(done?)
}

fn load(dir: &StateDir) -> Result<State, RotateError> {
    dir.load()?
        .ok_or_else(|| RotateError::NoState(dir.path().to_owned()))
}

/// Makes the new key, or goes on with it.
fn begin(dir: &StateDir, args: &RotateArgs) -> Result<(), RotateError> {
    let _changing = dir.lock_changes()?;
    let state = load(dir)?;
    let begun = dir.next()?;
    if state.retired.is_some() || begun.as_ref().is_some_and(|next| is_in_place(next, &state)) {
        // The next rotation needs the handle that the last one has yet to free.
        finish::let_go(dir, state.clone())?;
    }
    let begun = begun.filter(|next| !is_in_place(next, &state));
    let next = match begun {
        Some(next) => {
            if args
                .new_handle
                .is_some_and(|handle| handle != next.location.handle)
            {
                return Err(RotateError::OtherBegun(next.location));
            }
            next
        }
        None => reserve(dir, &state, args.new_handle)?,
    };
    let next = complete(dir, &state, next)?;
    Ok(report(dir, &next, args)?)
}

/// Whether the switch was made already, and the command ended right after.
fn is_in_place(next: &Next, state: &State) -> bool {
    next.location == state.location
}

/// Writes down where the key will be, while nothing is there.
fn reserve(dir: &StateDir, state: &State, handle: Option<Handle>) -> Result<Next, RotateError> {
    let location = Location {
        tcti: state.location.tcti.clone(),
        handle: handle.unwrap_or_else(|| state.location.handle.partner()),
    };
    if location == state.location {
        return Err(RotateError::SameHandle(location.handle));
    }
    if TpmKey::open(&location)?.is_some() {
        return Err(RotateError::Occupied(location));
    }
    let next = Next {
        location,
        certificate: None,
    };
    dir.save_next(&next)?;
    Ok(next)
}

/// Makes what is missing of key and certificate.
fn complete(dir: &StateDir, state: &State, next: Next) -> Result<Next, RotateError> {
    if let Some((leaf, _)) = &next.certificate {
        return match TpmKey::open(&next.location)? {
            Some(key) if certificate::spki(&key)? == leaf.spki => Ok(next),
            _ => Err(RotateError::Lost(next.location)),
        };
    }
    let key = if let Some(key) = TpmKey::open(&next.location)? {
        pin::unlock(&key)?;
        key
    } else {
        // As well kept as the old one.
        let old = TpmKey::open(&state.location)?;
        let new_pin = if old.is_some_and(|old| old.wants_pin()) {
            NewPin::Wanted
        } else {
            NewPin::IfSet
        };
        pin::open_or_create(&next.location, new_pin)?
    };
    let certificate = issue(&state.leaf.identity, &key, SystemTime::now())?;
    let next = Next {
        certificate: Some(certificate),
        ..next
    };
    dir.save_next(&next)?;
    Ok(next)
}

/// Gives the new key up.
fn cancel(dir: &StateDir, as_json: bool) -> Result<(), RotateError> {
    let _changing = dir.lock_changes()?;
    let state = load(dir)?;
    let next = dir.next()?.ok_or(RotateError::NoneBegun)?;
    if is_in_place(&next, &state) {
        return Err(RotateError::NoneBegun);
    }
    if let Some(key) = TpmKey::open(&next.location)? {
        let ours = match &next.certificate {
            Some((leaf, _)) => certificate::spki(&key)? == leaf.spki,
            None => true,
        };
        // Another key is somebody else's business.
        if ours {
            pin::remove(key)?;
        }
    }
    dir.remove_next()?;
    Ok(if as_json {
        print_json(&json!({ "cancelled": next.location.to_string() }))
    } else {
        print(&format!(
            "cancelled: the key {} is gone, {} stays in use\n",
            next.location, state.location
        ))
    }?)
}

fn report(dir: &StateDir, next: &Next, args: &RotateArgs) -> Result<(), OutputError> {
    let Some((leaf, pem)) = &next.certificate else {
        return Ok(());
    };
    if args.json {
        return print_json(&json!({
            "identity": leaf.identity.as_str(),
            "tcti": next.location.tcti.to_string(),
            "handle": next.location.handle.to_string(),
            "spki": leaf.spki.to_hex(),
            "certificate": pem,
        }));
    }
    print(&request(leaf, pem))?;
    say(format_args!(
        "the new key is {}; the old one stays in use\n\
         next: a principal grants to this request what the old key may, then\n  \
         agent-gateway-sidecar rotate --state {}{} --finish --destination HOST:PORT",
        next.location,
        dir.path().display(),
        gateway(args)
    ));
    Ok(())
}

/// The options that say how the gateway is reached, as they are in force, or what is to be put there.
fn gateway(args: &RotateArgs) -> String {
    let gateways = args.gateways.iter().map(ToString::to_string);
    let gateways = gateways.collect::<Vec<_>>().join(",");
    let gateways = if gateways.is_empty() {
        "GATEWAY"
    } else {
        &gateways
    };
    let ca = args.ca.as_deref().unwrap_or(Path::new("FILE"));
    let name = args.server_name.as_ref();
    let name = name.map(|name| format!(" --server-name {}", name.to_str()));
    let name = name.unwrap_or_default();
    format!(" --gateway {gateways} --ca {}{name}", ca.display())
}
