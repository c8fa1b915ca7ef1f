//! A permission that was signed elsewhere: by a PKCS#11 token, an HSM, or openssl.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use permission::{Candidate, CanonicalError, Permission, Reason, judge};
use registry::OnExisting;

use super::report;
use crate::audit::own_request;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::terminal::Report;
use crate::trust::Trust;

/// Far more than the longest text or signature takes.
const MAX_BYTES: u64 = 16 * 1024;

/// Why a text and a signature are not taken.
#[derive(Debug, thiserror::Error)]
pub enum ElsewhereError {
    /// The file is not there, or not ours to read.
    #[error("can't be read")]
    Read(#[from] io::Error),
    /// Neither is that large.
    #[error("is over {MAX_BYTES} bytes")]
    TooLarge,
    /// Not a text that permissions are signed over.
    #[error(transparent)]
    Text(#[from] CanonicalError),
    /// No trust root's signature over the text.
    #[error("no trust root made this signature over the text")]
    NoRoot,
    /// The gateway would deny it.
    #[error("the signed permission would be denied: {0}")]
    Denied(Reason),
}

/// Runs `grant --text FILE --signature FILE`.
pub(super) async fn run(
    text: &Path,
    signature: &Path,
    on_existing: OnExisting,
    trust: &Trust,
) -> Result<Report, Failure> {
    let failed = |path: &Path, source| Failure::Elsewhere {
        path: path.to_owned(),
        source,
    };
    let bytes = read(text).map_err(|source| failed(text, source))?;
    let permission =
        Permission::from_canonical(&bytes).map_err(|source| failed(text, source.into()))?;
    let signature_der = read(signature).map_err(|source| failed(signature, source))?;

    let mut registry = database::open(trust).await?;
    let now = within(registry.now()).await?;
    let key_id = &permission.signing_key_id;
    let signer = within(registry.signer(key_id)).await?;
    let signer = signer.ok_or_else(|| Failure::KeyUnknown(key_id.clone()))?;
    let scopes = within(registry.scopes(key_id, &permission.destination)).await?;
    let candidate = Candidate::new(
        permission.clone(),
        false,
        &signature_der,
        Some(&signer),
        &scopes,
        registry.trust_roots(),
    );
    let at = now.max(permission.window.not_before());
    judge(&candidate, &own_request(&candidate), at)
        .map_err(|reason| failed(signature, ElsewhereError::Denied(reason)))?;
    let granted = [(permission, signature_der)];
    within(registry.grant(&granted, on_existing)).await?;
    Ok(report(&granted, now))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ElsewhereError> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ElsewhereError::TooLarge);
    }
    Ok(bytes)
}
