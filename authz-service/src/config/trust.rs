//! The roots of trust as configured.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use permission::{Id, RootKey, TrustRoots};

use super::error::{ConfigError, TrustRootFault};

/// Far more than a public key takes.
const MAX_FILE_BYTES: u64 = 16 * 1024;

/// Reads the keys; none without any, and no registry's id either.
pub(super) fn roots(
    entries: &[String],
    registry_id: Option<&str>,
) -> Result<Option<TrustRoots>, ConfigError> {
    let registry_id = match (entries.is_empty(), registry_id) {
        (true, None) => return Ok(None),
        (false, Some(id)) => Id::parse(id)?,
        _ => return Err(ConfigError::HalfTrust),
    };
    let keys: Result<Vec<_>, _> = entries
        .iter()
        .zip(1..)
        .map(|(text, entry)| key(text).map_err(|fault| ConfigError::TrustRoot { entry, fault }))
        .collect();
    Ok(Some(TrustRoots::new(registry_id, keys?)?))
}

fn key(text: &str) -> Result<RootKey, TrustRootFault> {
    let read = |bytes: &[u8]| RootKey::parse(bytes).map_err(TrustRootFault::NotAKey);
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if text.contains("-----BEGIN ") || is_hex(text.trim()) {
        read(text.as_bytes())
    } else if Path::new(text).is_absolute() {
        read(&contents(Path::new(text))?)
    } else {
        Err(TrustRootFault::NeitherKeyNorPath)
    }
}

fn contents(path: &Path) -> Result<Vec<u8>, TrustRootFault> {
    let file = File::open(path).map_err(TrustRootFault::Unreadable)?;
    let mode = file.metadata().map_err(TrustRootFault::Unreadable)?;
    if mode.permissions().mode() & 0o022 != 0 {
        return Err(TrustRootFault::Exposed);
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(TrustRootFault::Unreadable)?;
    Ok(bytes)
}
