//! Where an agent wants to go: `host:port` in one canonical spelling, read by one parser.
//!
//! What another component could read as another host (userinfo, odd IPv4 spellings, a trailing
//! dot, escapes) is refused here, so that the host that was authorised, the host that is resolved
//! and the address that is dialled cannot differ. This module resolves nothing and judges no
//! addresses.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

/// The port of a destination that names none.
const DEFAULT_PORT: u16 = 443;
/// Longest host name and label, in octets (RFC 1035, section 2.3.4).
const MAX_HOST: usize = 253;
const MAX_LABEL: usize = 63;

/// A host and a port, normalised. `Display` gives the form that permissions are signed over.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    host: Host,
    port: u16,
}

/// The host of a destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A DNS name: lower case, no trailing dot.
    Name(Arc<str>),
    /// An IPv4 literal, also where the input was the IPv4-mapped IPv6 address.
    Ipv4(Ipv4Addr),
    /// An IPv6 literal.
    Ipv6(Ipv6Addr),
}

/// Why a text is no destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// No host before the port.
    #[error("host is empty")]
    EmptyHost,
    /// A character that no host has: white space, `@`, `/`, `%`, non-ASCII, controls, …
    #[error("host holds a character that is not a letter, digit, '-', '_' or '.'")]
    ForbiddenCharacter,
    /// Two dots in a row, or one at the start or the end.
    #[error("host has an empty label (two dots in a row, or one at its start or end)")]
    EmptyLabel,
    /// Over 63 octets between two dots.
    #[error("host has a label over {MAX_LABEL} octets")]
    LabelTooLong,
    /// Over 253 octets.
    #[error("host is over {MAX_HOST} octets")]
    HostTooLong,
    /// `127.1`, `2130706433`, `0x7f.1`: some resolvers read these as addresses.
    #[error("host ends in a number but is not a plain dotted IPv4 address")]
    AmbiguousNumber,
    /// Brackets that are unbalanced, misplaced or not around an IPv6 address.
    #[error("brackets must enclose an IPv6 address, followed by nothing or ':port'")]
    BadBrackets,
    /// Several colons without brackets, and not an IPv6 address.
    #[error("several colons, but not an IPv6 address")]
    NotIpv6,
    /// Not a decimal number from 1 to 65535 without sign or leading zero.
    #[error("port must be a number from 1 to 65535, digits alone")]
    BadPort,
}

impl Destination {
    /// The host, normalised.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port, 1 to 65535.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Reads a destination that a person typed: white space around it is ignored.
    pub fn from_user_input(text: &str) -> Result<Self, DestinationError> {
        text.trim().parse()
    }

    /// Reads an authority whose port, if it names none, is another one than 443.
    pub fn with_default_port(text: &str, default: u16) -> Result<Self, DestinationError> {
        if let Some(rest) = text.strip_prefix('[') {
            let (inside, after) = rest.split_once(']').ok_or(DestinationError::BadBrackets)?;
            let port = match after.strip_prefix(':') {
                Some(port) => parse_port(port)?,
                None if after.is_empty() => default,
                None => return Err(DestinationError::BadBrackets),
            };
            let address = inside.parse().map_err(|_| DestinationError::BadBrackets)?;
            return Ok(Self {
                host: Host::from_ipv6(address),
                port,
            });
        }
        if text.bytes().filter(|byte| *byte == b':').count() > 1 {
            let address = text.parse().map_err(|_| DestinationError::NotIpv6)?;
            return Ok(Self {
                host: Host::from_ipv6(address),
                port: default,
            });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (parse_host(host)?, parse_port(port)?),
            None => (parse_host(text)?, default),
        };
        Ok(Self { host, port })
    }

    /// Takes a stored text only if it already is in the one normal form.
    pub fn from_normal_form(text: &str) -> Option<Self> {
        text.parse::<Self>()
            .ok()
            .filter(|destination| destination.to_string() == text)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ipv4(address) => address.fmt(f),
            // Rust writes IPv6 addresses in RFC 5952 form.
            Self::Ipv6(address) => write!(f, "[{address}]"),
        }
    }
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::with_default_port(text, DEFAULT_PORT)
    }
}

impl Host {
    /// An IPv4-mapped address is the IPv4 address: the kernel dials the same host for both.
    fn from_ipv6(address: Ipv6Addr) -> Self {
        address
            .to_ipv4_mapped()
            .map_or(Self::Ipv6(address), Self::Ipv4)
    }
}

fn parse_port(text: &str) -> Result<u16, DestinationError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    match text.parse() {
        Ok(port) if plain => Ok(port),
        _ => Err(DestinationError::BadPort),
    }
}

fn parse_host(text: &str) -> Result<Host, DestinationError> {
    if text.is_empty() {
        return Err(DestinationError::EmptyHost);
    }
    if text.len() > MAX_HOST {
        return Err(DestinationError::HostTooLong);
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !text.bytes().all(allowed) {
        return Err(DestinationError::ForbiddenCharacter);
    }
    let mut last = "";
    for label in text.split('.') {
        if label.is_empty() {
            return Err(DestinationError::EmptyLabel);
        }
        if label.len() > MAX_LABEL {
            return Err(DestinationError::LabelTooLong);
        }
        last = label;
    }
    if !is_number(last) {
        return Ok(Host::Name(text.to_ascii_lowercase().into()));
    }
    // Rust's parser takes four decimal numbers without leading zeros and nothing else.
    text.parse()
        .map(Host::Ipv4)
        .map_err(|_| DestinationError::AmbiguousNumber)
}

/// What the WHATWG URL standard ("ends in a number") would try to read as part of an IPv4 address.
fn is_number(label: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let hex = label
        .strip_prefix("0x")
        .or_else(|| label.strip_prefix("0X"));
    digits(label) || hex.is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal(text: &str) -> String {
        text.parse::<Destination>()
            .unwrap_or_else(|error| panic!("{text:?}: {error}"))
            .to_string()
    }

    #[test]
    fn spellings_of_one_destination_have_one_normal_form() {
        for (input, expected) in [
            ("API.Example.com", "api.example.com:443"),
            ("api.example.com:443", "api.example.com:443"),
            ("docstore", "docstore:443"),
            ("_srv.a-b.example:8443", "_srv.a-b.example:8443"),
            ("1.2.3.4", "1.2.3.4:443"),
            ("1.2.3.4:80", "1.2.3.4:80"),
            ("[2001:DB8:0:0:0:0:0:1]", "[2001:db8::1]:443"),
            ("[2001:db8::1]:8443", "[2001:db8::1]:8443"),
            ("2001:db8::1", "[2001:db8::1]:443"),
            ("::1", "[::1]:443"),
            ("::", "[::]:443"),
            ("[::ffff:1.2.3.4]:443", "1.2.3.4:443"),
            ("::ffff:102:304", "1.2.3.4:443"),
            // Several colons without brackets are an address, never an address and a port.
            ("2001:db8::1:443", "[2001:db8::1:443]:443"),
            ("a1.b2c:65535", "a1.b2c:65535"),
            ("0xzz:1", "0xzz:1"),
        ] {
            assert_eq!(normal(input), expected, "{input:?}");
        }
    }

    #[test]
    fn another_default_port_is_for_what_names_none() {
        for (input, expected) in [
            ("DocStore", "docstore:80"),
            ("docstore:443", "docstore:443"),
            ("[::1]", "[::1]:80"),
            ("[::1]:443", "[::1]:443"),
            ("2001:db8::1", "[2001:db8::1]:80"),
        ] {
            let read = Destination::with_default_port(input, 80).unwrap();
            assert_eq!(read.to_string(), expected);
        }
        assert_eq!(
            Destination::with_default_port("docstore:", 80),
            Err(DestinationError::BadPort)
        );
    }

    #[test]
    fn what_another_parser_could_read_differently_is_refused() {
        use DestinationError::*;
        let long_label = format!("{}.example", "a".repeat(64));
        let long_host = format!("{}example", "a.".repeat(124));
        for (input, expected) in [
            ("", EmptyHost),
            (":443", EmptyHost),
            ("user@host", ForbiddenCharacter),
            ("user:pw@host", BadPort),
            ("host/path", ForbiddenCharacter),
            ("host?q", ForbiddenCharacter),
            ("host#f", ForbiddenCharacter),
            ("ho%73t", ForbiddenCharacter),
            ("ho\\st", ForbiddenCharacter),
            (" host", ForbiddenCharacter),
            ("host\t", ForbiddenCharacter),
            ("host\n:443", ForbiddenCharacter),
            ("host\0", ForbiddenCharacter),
            ("höst", ForbiddenCharacter),
            ("host。example", ForbiddenCharacter),
            ("host*", ForbiddenCharacter),
            ("host.", EmptyLabel),
            ("host.:443", EmptyLabel),
            (".host", EmptyLabel),
            ("a..b", EmptyLabel),
            (".", EmptyLabel),
            (&long_label, LabelTooLong),
            (&long_host, HostTooLong),
            ("2130706433", AmbiguousNumber),
            ("0x7f000001", AmbiguousNumber),
            ("0X7F.1", AmbiguousNumber),
            ("127.1", AmbiguousNumber),
            ("127.0.0.01", AmbiguousNumber),
            ("010.0.0.1", AmbiguousNumber),
            ("0177.0.0.1", AmbiguousNumber),
            ("1.2.3.4.5", AmbiguousNumber),
            ("256.1.1.1", AmbiguousNumber),
            ("example.0x", AmbiguousNumber),
            ("example.1", AmbiguousNumber),
            ("[::1", BadBrackets),
            ("[]", BadBrackets),
            ("[1.2.3.4]", BadBrackets),
            ("[::1]443", BadBrackets),
            ("[::1]]:443", BadBrackets),
            ("[[::1]]", BadBrackets),
            ("[fe80::1%eth0]:443", BadBrackets),
            ("[ ::1]", BadBrackets),
            ("fe80::1%eth0", NotIpv6),
            ("a:1:2", NotIpv6),
            ("::1]", NotIpv6),
            ("host]", ForbiddenCharacter),
            ("host:", BadPort),
            ("host:0", BadPort),
            ("host:65536", BadPort),
            ("host:99999999999", BadPort),
            ("host:abc", BadPort),
            ("host:+443", BadPort),
            ("host:-1", BadPort),
            ("host:0443", BadPort),
            ("host: 443", BadPort),
            ("host:４４３", BadPort),
            ("[::1]:", BadPort),
        ] {
            assert_eq!(input.parse::<Destination>(), Err(expected), "{input:?}");
        }
    }

    #[test]
    fn longest_host_and_label_are_accepted() {
        let label = "a".repeat(63);
        let host = format!("{label}.{label}.{label}.{}", "b".repeat(61));
        assert_eq!(host.len(), 253);
        assert_eq!(normal(&host), format!("{host}:443"));
    }

    #[test]
    fn white_space_is_trimmed_only_from_what_a_person_typed() {
        assert_eq!(
            Destination::from_user_input(" a:1\n").unwrap().to_string(),
            "a:1"
        );
        assert!(" a:1".parse::<Destination>().is_err());
    }

    #[test]
    fn only_the_normal_form_counts_as_stored() {
        assert!(Destination::from_normal_form("a.example:443").is_some());
        for other in [
            "A.example:443",
            "a.example",
            "[::0]:443",
            "[::ffff:1.2.3.4]:443",
        ] {
            assert_eq!(Destination::from_normal_form(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn whatever_parses_is_its_own_normal_form(text in "\\PC{0,40}|[\\[\\]a-zA-Z0-9:.x_-]{1,40}") {
            if let Ok(destination) = text.parse::<Destination>() {
                let shown = destination.to_string();
                prop_assert_eq!(shown.parse::<Destination>().unwrap(), destination);
                prop_assert!(Destination::from_normal_form(&shown).is_some());
            }
        }

        #[test]
        fn every_spelling_of_an_ipv6_address_is_one_destination(octets: [u8; 16], port in 1u16..) {
            let address = Ipv6Addr::from(octets);
            let groups: Vec<String> = address.segments().iter().map(|g| format!("{g:04X}")).collect();
            let long = format!("[{}]:{port}", groups.join(":"));
            prop_assert_eq!(normal(&long), normal(&format!("[{address}]:{port}")));
        }

        #[test]
        fn case_of_a_name_does_not_matter(name in "[a-zA-Z][a-zA-Z0-9-]{0,10}(\\.[a-zA-Z][a-zA-Z0-9]{0,5}){0,3}") {
            prop_assert_eq!(normal(&name), normal(&name.to_uppercase()));
        }
    }
}
