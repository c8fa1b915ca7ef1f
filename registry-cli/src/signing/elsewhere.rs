//! What was signed elsewhere: by a PKCS#11 token, an HSM, or openssl.

use std::io;
use std::path::Path;

use permission::{CanonicalError, Reason};
use registry::OnExisting;

use super::{Grant, Grounds};
use crate::arguments;
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
    /// Not a text that is signed.
    #[error(transparent)]
    Text(#[from] CanonicalError),
    /// No trust root's signature over the text.
    #[error("no trust root made this signature over the text")]
    NoRoot,
    /// It would not count at the gateway.
    #[error("the signed {kind} would be denied: {reason}")]
    Denied {
        /// Of what.
        kind: &'static str,
        /// Why.
        reason: Reason,
    },
}

/// Stores what `--text FILE --signature FILE` hold.
pub(super) async fn run<G: Grant>(
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
    let grant = G::from_canonical(&bytes).map_err(|source| failed(text, source.into()))?;
    let signature_der = read(signature).map_err(|source| failed(signature, source))?;

    let mut registry = database::open(trust).await?;
    let now = within(registry.now()).await?;
    let key_id = grant.signing_key_id();
    let signer = within(registry.signer(key_id)).await?;
    let grounds = Grounds {
        signer: signer.ok_or_else(|| Failure::KeyUnknown(key_id.clone()))?,
        scopes: within(registry.scopes(key_id)).await?,
        roots: registry.trust_roots().cloned(),
    };
    let at = now.max(grant.window().not_before());
    grant
        .judge(&signature_der, &grounds, at)
        .map_err(|reason| {
            let kind = G::KIND;
            failed(signature, ElsewhereError::Denied { kind, reason })
        })?;
    let granted = [(grant, signature_der)];
    within(G::store(&mut registry, &granted, on_existing)).await?;
    Ok(G::report(&granted, &grounds, now))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ElsewhereError> {
    arguments::file(path, MAX_BYTES)?.ok_or(ElsewhereError::TooLarge)
}
