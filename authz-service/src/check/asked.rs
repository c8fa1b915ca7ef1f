//! Reads Envoy's `CheckRequest`: foreign bytes in, a typed request or the reason of a deny out.

mod xfcc;

use std::borrow::Cow;
use std::sync::Arc;

use envoy_types::pb::envoy::service::auth::v3::AttributeContext;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::HttpRequest;
use permission::{Destination, Identity, Leaf, Reason, Request, Spki};

use self::xfcc::Forwarded;
use super::profiles::{CertificateFrom, Profile, Requests};
use crate::decision_point::Denial;

/// As much of a request as could be read; a deny names what is known.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// From the certificate.
    pub(super) identity: Option<Identity>,
    /// From the certificate.
    pub(super) spki: Option<Spki>,
    /// From the authority.
    pub(super) destination: Option<Destination>,
    /// Which requests are answered.
    pub(super) requests: Requests,
}

/// Reads `attributes`; on the way, notes in `asked` what could be read.
///
/// Identity and key come from the certificate that Envoy saw in the handshake, never from
/// `source.principal` or a header: those the client chooses. The one exception is a profile that
/// takes `x-forwarded-client-cert`, from a hop that replaces the client's.
pub(super) fn read(
    attributes: &AttributeContext,
    profile: &Profile,
    asked: &mut Asked,
) -> Result<Request, Denial> {
    asked.requests = profile.requests;
    let http = http(attributes).ok_or(Reason::MethodNotAllowed)?;
    let connects = http.method == "CONNECT";
    match profile.requests {
        Requests::Connect if connects => {}
        Requests::Http if !connects && !http.method.is_empty() => refuse_upgrade(http)?,
        Requests::Connect | Requests::Http => return Err(Reason::MethodNotAllowed.into()),
    }
    let leaf = match profile.certificate {
        CertificateFrom::Connection => {
            let source = attributes.source.as_ref();
            let encoded = source.map_or("", |source| source.certificate.as_str());
            profile.certificates.read(encoded)?
        }
        CertificateFrom::Xfcc => forwarded(http, profile)?,
    };
    asked.identity = Some(leaf.identity.clone());
    asked.spki = Some(leaf.spki.clone());
    let destination = profile.destination(&http.scheme, &http.host)?;
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

/// The certificate that the hop in front saw.
fn forwarded(http: &HttpRequest, profile: &Profile) -> Result<Arc<Leaf>, Denial> {
    let header = header(http, "x-forwarded-client-cert").ok_or(Reason::NoClientCertificate)?;
    let read = xfcc::read(&header).map_err(|error| Denial {
        reason: Reason::CertificateUnparseable,
        cause: Some(error.to_string()),
    })?;
    Ok(match read {
        Some(Forwarded::Leaf(encoded)) => profile.certificates.read(&encoded)?,
        Some(Forwarded::Chain(encoded)) => profile.certificates.read_first(&encoded)?,
        None => return Err(Reason::NoClientCertificate.into()),
    })
}

/// What a request becomes after an upgrade nobody looks at, and it has no end.
fn refuse_upgrade(http: &HttpRequest) -> Result<(), Reason> {
    match header(http, "upgrade") {
        None => Ok(()),
        Some(_) => Err(Reason::UpgradeNotAllowed),
    }
}

/// A header's values, joined by commas as Envoy does it. With `encode_raw_headers` they are in
/// another place.
fn header<'a>(http: &'a HttpRequest, name: &str) -> Option<Cow<'a, str>> {
    let Some(raw) = &http.header_map else {
        return http.headers.get(name).map(Into::into);
    };
    let named = raw.headers.iter().filter(|header| header.key == name);
    let values: Vec<_> = named
        .map(|header| match &*header.raw_value {
            [] => Cow::from(&header.value),
            raw => String::from_utf8_lossy(raw),
        })
        .collect();
    (!values.is_empty()).then(|| values.join(",").into())
}

#[cfg(test)]
mod tests;
