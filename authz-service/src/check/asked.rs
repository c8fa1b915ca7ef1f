//! Reads Envoy's `CheckRequest`: foreign bytes in, a typed request or the reason of a deny out.

use envoy_types::pb::envoy::service::auth::v3::AttributeContext;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::HttpRequest;
use permission::{Destination, Identity, Reason, Request, Spki};

use super::certificates::Certificates;

/// As much of a request as could be read; a deny names what is known.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// From the certificate.
    pub(super) identity: Option<Identity>,
    /// From the certificate.
    pub(super) spki: Option<Spki>,
    /// From the authority.
    pub(super) destination: Option<Destination>,
}

/// Reads `attributes`; on the way, notes in `asked` what could be read.
///
/// Identity and key come from the certificate that Envoy saw in the handshake, never from
/// `source.principal` or a header: those the client chooses.
pub(super) fn read(
    attributes: &AttributeContext,
    certificates: &Certificates,
    asked: &mut Asked,
) -> Result<Request, Reason> {
    let http = http(attributes).ok_or(Reason::MethodNotAllowed)?;
    if http.method != "CONNECT" {
        return Err(Reason::MethodNotAllowed);
    }
    let encoded = attributes
        .source
        .as_ref()
        .map_or("", |source| source.certificate.as_str());
    let leaf = certificates.read(encoded)?;
    asked.identity = Some(leaf.identity.clone());
    asked.spki = Some(leaf.spki.clone());
    let destination: Destination = http.host.parse().map_err(|_| Reason::DestinationInvalid)?;
    asked.destination = Some(destination.clone());
    Ok(Request {
        identity: leaf.identity.clone(),
        spki: leaf.spki.clone(),
        destination,
    })
}

/// The HTTP part of a `CheckRequest`.
pub(super) fn http(attributes: &AttributeContext) -> Option<&HttpRequest> {
    attributes.request.as_ref()?.http.as_ref()
}

#[cfg(test)]
mod tests;
