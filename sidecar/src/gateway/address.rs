//! Where the gateway is.

use std::fmt;
use std::str::FromStr;

use http::uri::Authority;
use rustls::pki_types::ServerName;

/// Host and port of the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayAddress {
    /// Without brackets; also a valid name for a certificate.
    host: String,
    port: u16,
}

/// The text names no gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not HOST:PORT or [IPV6]:PORT")]
pub struct ParseGatewayAddressError;

impl GatewayAddress {
    /// As [`tokio::net::lookup_host`] takes it.
    pub(crate) fn host_and_port(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// The name that the gateway's certificate holds.
    pub(crate) fn server_name(&self) -> Option<ServerName<'static>> {
        ServerName::try_from(self.host.clone()).ok()
    }
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for GatewayAddress {
    type Err = ParseGatewayAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let authority: Authority = text.parse().map_err(|_| ParseGatewayAddressError)?;
        let port = authority.port_u16().filter(|port| *port != 0);
        let host = authority.host();
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let address = Self {
            host: bare.to_owned(),
            port: port.ok_or(ParseGatewayAddressError)?,
        };
        // User info, a scoped address, a bracketed name and what else an authority may hold.
        if address.to_string() != text || address.server_name().is_none() {
            return Err(ParseGatewayAddressError);
        }
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_display_as_they_parse() {
        for text in [
            "gateway:8443",
            "gw.example.org:443",
            "127.0.0.1:1",
            "[::1]:8443",
        ] {
            let address: GatewayAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        let address: GatewayAddress = "[::1]:8443".parse().unwrap();
        assert_eq!(address.host_and_port(), ("::1", 8443));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "gateway",
            ":8443",
            "gateway:",
            "gateway:0",
            "gateway:65536",
            "gateway:+1",
            "gateway:08443",
            "::1:8443",
            "[::1]",
            "[gateway]:8443",
            "[127.0.0.1]:8443",
            "user@gateway:8443",
            "https://gateway:8443",
            "gateway:8443/",
            "gate way:8443",
        ] {
            assert_eq!(
                text.parse::<GatewayAddress>(),
                Err(ParseGatewayAddressError),
                "{text:?}"
            );
        }
    }
}
