//! `init`: makes, or finds, the agent's key and the certificate that carries it.

use std::time::SystemTime;

use permission::{Identity, Leaf};
use serde_json::json;
use tpm::{Location, SigningKey, TpmError, TpmKey};

use crate::certificate::{self, IssueError};
use crate::cli::InitArgs;
use crate::failure::Failure;
use crate::output::{OutputError, print, print_json, say};
use crate::pin::{self, NewPin, PinError};
use crate::state::{State, StateDir, StateError};

/// Why an agent can't be set up; nothing that was there has been changed.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The state can't be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The TPM gives no key.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The key doesn't sign, or can't be made, for want of a PIN.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The key can't carry a certificate.
    #[error("can't make the certificate: {0}")]
    Issue(#[from] IssueError),
    /// The folder belongs to another agent.
    #[error("the state is that of another identity, {:?}", stored.as_str())]
    OtherIdentity {
        /// Whose it is.
        stored: Identity,
    },
    /// The TPM holds another key than the certificate.
    #[error("the key {location} is not the one that the state was made for")]
    OtherKey {
        /// Where a key was found.
        location: Location,
    },
    /// The TPM does not hold the certificate's key any more.
    #[error("there is no key {location}, but the state was made for one")]
    KeyGone {
        /// Where nothing was found.
        location: Location,
    },
}

/// Runs the command.
pub fn run(args: &InitArgs) -> Result<(), Failure> {
    let location = Location {
        tcti: args.tcti.clone(),
        handle: args.handle,
    };
    let dir = StateDir::new(&args.state.dir);
    let new_pin = if args.pin {
        NewPin::Wanted
    } else {
        NewPin::IfSet
    };
    let (state, outcome) = set_up(&dir, &args.identity, location, new_pin, SystemTime::now())?;
    Ok(report(&dir, &state, outcome, args.json)?)
}

/// Whether `init` had anything to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was no key; now there is.
    KeyMade,
    /// The TPM held a key already.
    KeyFound,
}

/// Makes what is missing of an agent's key, certificate and state.
fn set_up(
    dir: &StateDir,
    identity: &Identity,
    location: Location,
    new_pin: NewPin,
    now: SystemTime,
) -> Result<(State, Outcome), InitError> {
    dir.create()?;
    let _changing = dir.lock_changes()?;
    let held = dir.load()?;
    if let Some(state) = &held
        && state.leaf.identity != *identity
    {
        return Err(InitError::OtherIdentity {
            stored: state.leaf.identity.clone(),
        });
    }
    let (key, outcome) = match TpmKey::open(&location)? {
        Some(key) => {
            pin::unlock(&key)?;
            (key, Outcome::KeyFound)
        }
        None if held.is_some() => return Err(InitError::KeyGone { location }),
        None => (pin::open_or_create(&location, new_pin)?, Outcome::KeyMade),
    };
    let state = match held {
        Some(state) if state.leaf.spki != certificate::spki(&key)? => {
            return Err(InitError::OtherKey { location });
        }
        Some(state) if state.location == location => {
            dir.export(&state)?;
            return Ok((state, outcome));
        }
        Some(state) => State { location, ..state },
        None => {
            let (leaf, certificate_pem) = issue(identity, &key, now)?;
            State {
                leaf,
                certificate_pem,
                location,
                retired: None,
            }
        }
    };
    dir.save(&state)?;
    Ok((state, outcome))
}

/// A certificate for the key, and what is in it.
pub(crate) fn issue(
    identity: &Identity,
    key: &dyn SigningKey,
    now: SystemTime,
) -> Result<(Leaf, String), IssueError> {
    let pem = certificate::issue(identity, key, now)?;
    let leaf = certificate::read(pem.as_bytes()).map_err(|_| IssueError::Encoding)?;
    Ok((leaf, pem))
}

fn report(
    dir: &StateDir,
    state: &State,
    outcome: Outcome,
    as_json: bool,
) -> Result<(), OutputError> {
    let spki = state.leaf.spki.to_hex();
    let spki_file = dir.spki_path();
    let certificate_file = dir.certificate_path();
    let verb = match outcome {
        Outcome::KeyMade => "made",
        Outcome::KeyFound => "found",
    };
    if as_json {
        return print_json(&json!({
            "identity": state.leaf.identity.as_str(),
            "spki": spki,
            "spki_file": spki_file,
            "certificate_file": certificate_file,
            "tcti": state.location.tcti.to_string(),
            "handle": state.location.handle.to_string(),
            "key": verb,
        }));
    }
    // An identity has no control characters, but may have some that reorder a terminal's line.
    let identity = state.leaf.identity.as_str().escape_debug();
    print(&format!(
        "identity     {identity}\n\
         key          {} ({verb})\n\
         spki         {spki}\n\
         spki file    {}\n\
         certificate  {}\n",
        state.location,
        spki_file.display(),
        certificate_file.display()
    ))?;
    say(format_args!(
        "next: a principal permits a destination to this identity and key, with\n  \
         agent-gateway-registry grant --key KEY --identity {identity} --spki {} \
         --destination HOST:PORT --valid 30d",
        spki_file.display()
    ));
    Ok(())
}
