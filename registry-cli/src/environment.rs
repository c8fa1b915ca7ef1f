//! The environment variables of this program, and nowhere else are any read.

use std::env::{self, VarError};

use tpm::Tcti;

use crate::failure::Failure;

const DATABASE_URLS: [&str; 2] = ["AGENT_GATEWAY_DATABASE_URL", "DATABASE_URL"];
const TCTI: &str = "AGENT_GATEWAY_TCTI";

/// Where the registry is. It holds a password: never to be shown.
pub(crate) fn database_url() -> Result<String, Failure> {
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

/// A variable's value; an empty one counts as unset.
fn read(name: &'static str) -> Result<Option<String>, Failure> {
    match env::var(name) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(Failure::NotText { variable: name }),
    }
}
