//! `init`: makes, or finds, the agent's key and the certificate that carries it.

use std::time::SystemTime;

use permission::{Identity, Leaf};
use serde_json::json;
use tpm::{Location, Pins, SigningKey, TpmError, TpmKey};

use crate::certificate::{self, IssueError};
use crate::cli::InitArgs;
use crate::failure::Failure;
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
    /// The key can't carry a certificate.
    #[error("can't make the certificate: {0}")]
    Issue(#[from] IssueError),
    /// The folder belongs to another agent.
    #[error("the state is that of another identity, {stored:?}")]
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
    let (state, outcome) = set_up(&dir, &args.identity, location, SystemTime::now())?;
    report(&dir, &state, outcome, args.json);
    Ok(())
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
pub fn set_up(
    dir: &StateDir,
    identity: &Identity,
    location: Location,
    now: SystemTime,
) -> Result<(State, Outcome), InitError> {
    dir.create()?;
    let complete = dir.load()?.is_some_and(|state| state.location == location);
    let held = dir.certificate()?;
    if let Some((leaf, _)) = &held
        && leaf.identity != *identity
    {
        return Err(InitError::OtherIdentity {
            stored: leaf.identity.clone(),
        });
    }
    let (key, outcome) = match TpmKey::open(&location)? {
        Some(key) => (key, Outcome::KeyFound),
        None if held.is_some() => return Err(InitError::KeyGone { location }),
        None => (
            TpmKey::open_or_create(&location, &Pins::default())?,
            Outcome::KeyMade,
        ),
    };
    let (leaf, certificate_pem) = match held {
        Some((leaf, _)) if leaf.spki != certificate::spki(&key)? => {
            return Err(InitError::OtherKey { location });
        }
        Some(held) => held,
        None => issue(identity, &key, now)?,
    };
    let state = State {
        leaf,
        certificate_pem,
        location,
    };
    if !complete {
        dir.save(&state)?;
    }
    Ok((state, outcome))
}

fn issue(
    identity: &Identity,
    key: &dyn SigningKey,
    now: SystemTime,
) -> Result<(Leaf, String), IssueError> {
    let pem = certificate::issue(identity, key, now)?;
    let leaf = certificate::read(pem.as_bytes()).map_err(|_| IssueError::Encoding)?;
    Ok((leaf, pem))
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the command's output"
)]
fn report(dir: &StateDir, state: &State, outcome: Outcome, as_json: bool) {
    let spki = state.leaf.spki.to_hex();
    let spki_file = dir.spki_path();
    let certificate_file = dir.certificate_path();
    if as_json {
        let result = json!({
            "identity": state.leaf.identity.as_str(),
            "spki": spki,
            "spki_file": spki_file,
            "certificate_file": certificate_file,
            "tcti": state.location.tcti.to_string(),
            "handle": state.location.handle.to_string(),
            "key": match outcome { Outcome::KeyMade => "made", Outcome::KeyFound => "found" },
        });
        println!("{result}");
        return;
    }
    let verb = match outcome {
        Outcome::KeyMade => "made",
        Outcome::KeyFound => "found",
    };
    // An identity has no control characters, but may have some that reorder a terminal's line.
    let identity = state.leaf.identity.as_str().escape_debug();
    println!("identity     {identity}");
    println!("key          {} ({verb})", state.location);
    println!("spki         {spki}");
    println!("spki file    {}", spki_file.display());
    println!("certificate  {}", certificate_file.display());
    eprintln!("next: a principal permits a destination to this identity and key, with");
    eprintln!(
        "  agent-gateway-registry grant --key KEY --identity {identity} --spki {} \
         --destination HOST:PORT --valid 30d",
        spki_file.display()
    );
}
