//! Which rows are meant: all that is given must match.

use permission::{Destination, Id, Identity};
use poca::PublicKey;
use registry::Filter;

use crate::arguments::{destination, id};
use crate::cli::{PocaKeySelectors, Selectors};
use crate::failure::Failure;
use crate::poca_key;
use crate::subject::Subject;

/// Reads the options; none given match everything.
pub(crate) fn read(selectors: &Selectors) -> Result<Filter, Failure> {
    let Selectors {
        id: row_id,
        key,
        identity,
        spki,
        destination: to,
    } = selectors;
    let id = read_id("id", row_id.as_ref())?;
    let key_id = read_id("key id", key.as_ref())?;
    let identity: Option<Identity> = identity.as_deref().map(Identity::parse).transpose()?;
    let to: Option<Destination> = to.as_deref().map(destination).transpose()?;
    let subject = spki.as_deref().map(Subject::read).transpose()?;
    if let (Some(subject), Some(identity)) = (&subject, &identity) {
        subject.must_be(identity)?;
    }
    Ok(Filter {
        id,
        key_id,
        identity,
        spki: subject.map(|subject| subject.spki),
        destination: to,
        ..Filter::default()
    })
}

/// As [`read`], of agents' keys for proofs of context.
pub(crate) fn read_poca_key(selectors: &PocaKeySelectors) -> Result<Filter, Failure> {
    let PocaKeySelectors {
        id,
        key,
        identity,
        public_key,
    } = selectors;
    let public_key = public_key.as_deref().map(poca_key::read).transpose()?;
    Ok(Filter {
        id: read_id("PoCA key id", id.as_ref())?,
        key_id: read_id("key id", key.as_ref())?,
        identity: identity.as_deref().map(Identity::parse).transpose()?,
        ed25519_public_key: public_key.map(PublicKey::to_bytes),
        ..Filter::default()
    })
}

fn read_id(what: &'static str, text: Option<&String>) -> Result<Option<Id>, Failure> {
    text.map(|text| id(what, text)).transpose()
}
