//! Which rows are meant: all that is given must match.

use permission::{Destination, Id, Identity};
use registry::Filter;

use crate::arguments::{destination, id};
use crate::cli::Selectors;
use crate::failure::Failure;
use crate::subject::Subject;

/// Reads the options; none given match everything.
pub(crate) fn read(selectors: &Selectors) -> Result<Filter, Failure> {
    let Selectors {
        id: permission_id,
        key,
        identity,
        spki,
        destination: to,
    } = selectors;
    let read_id = |what, text: &Option<String>| -> Result<Option<Id>, Failure> {
        text.as_deref().map(|text| id(what, text)).transpose()
    };
    let permission_id = read_id("permission id", permission_id)?;
    let key_id = read_id("key id", key)?;
    let identity: Option<Identity> = identity.as_deref().map(Identity::parse).transpose()?;
    let to: Option<Destination> = to.as_deref().map(destination).transpose()?;
    let subject = spki.as_deref().map(Subject::read).transpose()?;
    if let (Some(subject), Some(identity)) = (&subject, &identity) {
        subject.must_be(identity)?;
    }
    Ok(Filter {
        permission_id,
        key_id,
        identity,
        spki: subject.map(|subject| subject.spki),
        destination: to,
    })
}
