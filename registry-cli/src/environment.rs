//! The environment variables of this program, and nowhere else are any read; and the one option
//! that goes before them in every command.

use std::env::{self, VarError};
use std::sync::OnceLock;

use tpm::{Pin, Tcti};
use zeroize::Zeroizing;

use crate::cli::DatabaseUrl;
use crate::failure::{Failure, PinFailure};
use crate::terminal::say;

const DATABASE_URLS: [&str; 2] = ["AGENT_GATEWAY_DATABASE_URL", "DATABASE_URL"];
const TCTI: &str = "AGENT_GATEWAY_TCTI";
const USER_PIN: &str = "AGENT_GATEWAY_TPM_USER_PIN";
const OWNER_PIN: &str = "AGENT_GATEWAY_TPM_SO_PIN";
const TRUST_ROOTS: &str = "AGENT_GATEWAY_TRUST_ROOTS";
const REGISTRY_ID: &str = "AGENT_GATEWAY_REGISTRY_ID";

/// What `--database-url` says: set once, before anything asks.
static NAMED: OnceLock<DatabaseUrl> = OnceLock::new();

/// Takes the registry of the command line instead of the environment's.
pub(crate) fn name_database(url: &DatabaseUrl) {
    if url.holds_password() {
        let advice = "other users of this machine can see the password in --database-url; put the \
                      URL into AGENT_GATEWAY_DATABASE_URL instead";
        say("warning", advice);
    }
    // The first stays; there is only one command line.
    let _ = NAMED.set(url.clone());
}

/// Where the registry is. It holds a password: never to be shown.
pub(crate) fn database_url() -> Result<String, Failure> {
    if let Some(url) = NAMED.get() {
        return Ok(url.as_str().to_owned());
    }
    for name in DATABASE_URLS {
        if let Some(url) = read(name)? {
            return Ok(url);
        }
    }
    Err(Failure::NoDatabaseUrl)
}

/// Where the TPM is.
pub(crate) fn tcti() -> Result<Tcti, Failure> {
    let text = read(TCTI)?;
    text.as_deref()
        .unwrap_or(Tcti::DEFAULT)
        .parse()
        .map_err(|source| Failure::Tcti {
            variable: TCTI,
            source,
        })
}

/// The PIN of the key in the TPM. Unlike elsewhere, a variable that is set to nothing counts: it
/// is the PIN of keys that have none.
pub(crate) fn user_pin() -> Result<Option<Pin>, Failure> {
    pin(USER_PIN)
}

/// The PIN of the TPM's owner, which makes keys.
pub(crate) fn owner_pin() -> Result<Option<Pin>, Failure> {
    pin(OWNER_PIN)
}

fn pin(variable: &'static str) -> Result<Option<Pin>, Failure> {
    let text = match env::var(variable) {
        Ok(text) => Zeroizing::new(text),
        Err(VarError::NotPresent) => return Ok(None),
        Err(VarError::NotUnicode(_)) => return Err(Failure::NotText { variable }),
    };
    let read = text.parse().map(Some);
    read.map_err(|source| PinFailure::Variable { variable, source }.into())
}

/// The roots of trust, as hex or files.
pub(crate) fn trust_roots() -> Result<Vec<String>, Failure> {
    let text = read(TRUST_ROOTS)?.unwrap_or_default();
    Ok(text
        .split(',')
        .map(|root| root.trim().to_owned())
        .filter(|root| !root.is_empty())
        .collect())
}

/// The registry that is meant.
pub(crate) fn registry_id() -> Result<Option<String>, Failure> {
    read(REGISTRY_ID)
}

/// A variable's value; an empty one counts as unset.
fn read(name: &'static str) -> Result<Option<String>, Failure> {
    match env::var(name) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(Failure::NotText { variable: name }),
    }
}
