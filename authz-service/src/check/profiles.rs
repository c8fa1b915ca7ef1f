//! What a Check is about, and how it is read: Envoy's route says by which profile it asks.

use std::collections::HashMap;

use envoy_types::pb::envoy::service::auth::v3::AttributeContext;
use permission::{Destination, ExtensionOid, IdentitySource, Leaf, Reason};
use serde::Deserialize;

use super::certificates::Certificates;
use crate::decision_point::Denial;

/// The profile that always exists: CONNECT, by our own Envoy and the sidecar's certificates.
pub const TUNNEL: &str = "tunnel";

/// Where a route names its profile: a key of `check_settings.context_extensions`.
const CONTEXT_EXTENSION: &str = "profile";

/// A profile as it is configured.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProfileOptions {
    /// Which requests are answered; others are denied.
    pub requests: Requests,
    /// Where the client's certificate is.
    pub certificate: CertificateFrom,
    /// Where the certificate names its holder.
    pub identity: IdentityFrom,
    /// The ports that destinations of HTTP requests may have.
    pub ports: Vec<u16>,
    /// Whether the destination is resolved and its address judged. Tunnels' always are.
    pub resolve: bool,
}

/// As [`TUNNEL`].
impl Default for ProfileOptions {
    fn default() -> Self {
        Self {
            requests: Requests::Connect,
            certificate: CertificateFrom::Connection,
            identity: IdentityFrom::Extension,
            ports: vec![443],
            resolve: true,
        }
    }
}

/// Which requests are answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Requests {
    /// CONNECT, to the authority that it names.
    #[default]
    Connect,
    /// All others, to their authority, at the port of their scheme if it names none.
    Http,
}

/// Where the client's certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateFrom {
    /// `source.certificate`: from the handshake with the Envoy that asks.
    Connection,
    /// `x-forwarded-client-cert`, which the hop in front of it must set (`SANITIZE_SET`).
    Xfcc,
}

/// Where a certificate names its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityFrom {
    /// `policy.client_ext_oid`.
    Extension,
    /// The only URI among its alternative names.
    SpiffeId,
    /// The only common name of its subject.
    CommonName,
}

/// A profile at work.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(super) requests: Requests,
    pub(super) certificate: CertificateFrom,
    pub(super) certificates: Certificates,
    ports: Vec<u16>,
    pub(crate) resolve: bool,
}

impl Profile {
    pub(super) fn new(options: &ProfileOptions, oid: &ExtensionOid) -> Self {
        let source = match options.identity {
            IdentityFrom::Extension => IdentitySource::Extension(oid.clone()),
            IdentityFrom::SpiffeId => IdentitySource::SpiffeId,
            IdentityFrom::CommonName => IdentitySource::CommonName,
        };
        Self {
            requests: options.requests,
            certificate: options.certificate,
            certificates: Certificates::new(source),
            ports: options.ports.clone(),
            resolve: options.resolve,
        }
    }

    /// The client's certificate, as a PEM text.
    pub(crate) fn leaf(&self, pem: &[u8]) -> Result<Leaf, Reason> {
        self.certificates.leaf(pem)
    }

    /// Where a request goes. Of HTTP requests both scheme and authority are the client's words: that
    /// they lead where Envoy's route does is what the ports are for.
    pub(crate) fn destination(&self, scheme: &str, host: &str) -> Result<Destination, Denial> {
        let invalid = |cause: String| Denial {
            reason: Reason::DestinationInvalid,
            cause: Some(cause),
        };
        if self.requests == Requests::Connect {
            return host.parse().map_err(|_| Reason::DestinationInvalid.into());
        }
        let port = match scheme {
            "https" => 443,
            "http" => 80,
            _ => return Err(invalid("its scheme is neither http nor https".to_owned())),
        };
        let destination = Destination::with_default_port(host, port)
            .map_err(|error| invalid(error.to_string()))?;
        if !self.ports.contains(&destination.port()) {
            let port = destination.port();
            return Err(invalid(format!("port {port} is none of the profile's")));
        }
        Ok(destination)
    }
}

/// All of them.
#[derive(Debug, Clone)]
pub struct Profiles {
    named: HashMap<String, Profile>,
    default: Option<Profile>,
    tunnel: Certificates,
}

impl Profiles {
    /// `default` is for Checks whose route names none.
    pub fn new<'a>(
        configured: impl IntoIterator<Item = (&'a String, &'a ProfileOptions)>,
        default: &str,
        oid: &ExtensionOid,
    ) -> Self {
        let tunnel = Profile::new(&ProfileOptions::default(), oid);
        let certificates = tunnel.certificates.clone();
        let configured = configured.into_iter();
        let named = configured.map(|(name, options)| (name.clone(), Profile::new(options, oid)));
        let named: HashMap<_, _> = named.chain([(TUNNEL.to_owned(), tunnel)]).collect();
        Self {
            default: named.get(default).cloned(),
            named,
            tunnel: certificates,
        }
    }

    /// How agents' own certificates are read, by whichever lane they come.
    pub(super) fn tunnel(&self) -> &Certificates {
        &self.tunnel
    }

    /// The one that the route names; none if it names one that isn't there.
    pub(super) fn of(&self, attributes: &AttributeContext) -> Option<&Profile> {
        let name = attributes.context_extensions.get(CONTEXT_EXTENSION);
        self.named(name.map(String::as_str))
    }

    /// The one of this name, or else the default.
    pub(crate) fn named(&self, name: Option<&str>) -> Option<&Profile> {
        match name {
            Some(name) => self.named.get(name),
            None => self.default.as_ref(),
        }
    }
}
