//! Where the local proxy is, and the token without which it serves nobody.
//!
//! Loopback is open to every process of the machine, and whoever may use the proxy acts as the
//! agent. So each start makes a token, which the URL carries as a password: HTTP clients take it
//! from there. The URL is a secret; it is in a file of its owner alone, and in the environment of
//! what `exec` runs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderMap;
use http::header::PROXY_AUTHORIZATION;
use subtle::ConstantTimeEq as _;

/// Clients send a user's name too; it counts for nothing, but has to be the same for all.
const USER: &str = "agent";

/// Bytes of randomness in a token.
const TOKEN_BYTES: usize = 32;

/// What a client of the local proxy must know; gone when the sidecar ends.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; TOKEN_BYTES]);

/// The local proxy, as its clients reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entrance {
    /// Where it listens.
    pub address: SocketAddr,
    /// `None` if it is open to everybody.
    pub token: Option<Token>,
}

/// The text is no proxy URL of ours.
#[derive(Debug, thiserror::Error)]
#[error("not a proxy's URL")]
pub struct ParseEntranceError;

impl Token {
    /// Of 256 random bits.
    pub fn new(random: [u8; TOKEN_BYTES]) -> Self {
        Self(random)
    }

    /// The credentials of a client that knows it.
    pub(crate) fn basic(&self) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(self.user_and_password()))
    }

    fn user_and_password(&self) -> String {
        format!("{USER}:{}", hex::encode(self.0))
    }

    /// Whether a request with such headers comes from somebody who knows the token (RFC 9110,
    /// section 11.7.2; RFC 7617). Two answers to one question are none.
    pub(crate) fn is_in(&self, headers: &HeaderMap) -> bool {
        let mut given = headers.get_all(PROXY_AUTHORIZATION).iter();
        let (Some(given), None) = (given.next(), given.next()) else {
            return false;
        };
        let mut words = given.as_bytes().splitn(2, |byte| *byte == b' ');
        let (Some(scheme), Some(credentials)) = (words.next(), words.next()) else {
            return false;
        };
        let expected = BASE64_STANDARD.encode(self.user_and_password());
        scheme.eq_ignore_ascii_case(b"basic")
            && bool::from(credentials.trim_ascii().ct_eq(expected.as_bytes()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Entrance {
    /// A proxy that listens on every address is reached on loopback.
    pub(crate) fn reachable(&self) -> SocketAddr {
        let ip = match self.address.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, self.address.port())
    }

    /// For `HTTPS_PROXY` and its like. Not by `Display`, which would end up in a log.
    pub fn url(&self) -> String {
        let address = self.reachable();
        match &self.token {
            Some(token) => format!("http://{}@{address}", token.user_and_password()),
            None => format!("http://{address}"),
        }
    }
}

impl FromStr for Entrance {
    type Err = ParseEntranceError;

    /// Reads what [`Entrance::url`] wrote, and nothing else.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("http://").ok_or(ParseEntranceError)?;
        let (token, address) = match rest.split_once('@') {
            None => (None, rest),
            Some((user, address)) => {
                let password = user
                    .strip_prefix(USER)
                    .and_then(|rest| rest.strip_prefix(':'));
                let mut bytes = [0; TOKEN_BYTES];
                hex::decode_to_slice(password.ok_or(ParseEntranceError)?, &mut bytes)
                    .map_err(|_| ParseEntranceError)?;
                (Some(Token(bytes)), address)
            }
        };
        let address = address.parse().map_err(|_| ParseEntranceError)?;
        Ok(Self { address, token })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn entrance(address: &str, token: Option<u8>) -> Entrance {
        Entrance {
            address: address.parse().unwrap(),
            token: token.map(|byte| Token([byte; TOKEN_BYTES])),
        }
    }

    #[test]
    fn url_reads_back() {
        let password = "07".repeat(TOKEN_BYTES);
        for (entrance, url) in [
            (
                entrance("127.0.0.1:3128", None),
                "http://127.0.0.1:3128".to_owned(),
            ),
            (
                entrance("127.0.0.1:1", Some(7)),
                format!("http://agent:{password}@127.0.0.1:1"),
            ),
            (
                entrance("[::1]:1", Some(7)),
                format!("http://agent:{password}@[::1]:1"),
            ),
        ] {
            assert_eq!(entrance.url(), url);
            assert_eq!(url.parse::<Entrance>().unwrap(), entrance);
        }
        assert_eq!(entrance("0.0.0.0:1", None).url(), "http://127.0.0.1:1");
        assert_eq!(entrance("[::]:1", None).url(), "http://[::1]:1");
    }

    #[test]
    fn nothing_else_is_read() {
        let password = "07".repeat(TOKEN_BYTES);
        for text in [
            String::new(),
            "127.0.0.1:1".to_owned(),
            "https://127.0.0.1:1".to_owned(),
            "http://@127.0.0.1:1".to_owned(),
            "http://agent:@127.0.0.1:1".to_owned(),
            "http://agent:07@127.0.0.1:1".to_owned(),
            format!("http://other:{password}@127.0.0.1:1"),
            format!("http://agent:{password}0@127.0.0.1:1"),
            format!("http://agent:{password}@localhost:1"),
            format!("http://agent:{password}@127.0.0.1:1/"),
        ] {
            assert!(text.parse::<Entrance>().is_err(), "{text}");
        }
    }

    #[test]
    fn token_is_in_no_debug_output() {
        let shown = format!("{:?}", entrance("127.0.0.1:1", Some(0xab)));
        assert!(!shown.contains("abab") && !shown.contains("171"), "{shown}");
    }

    #[test]
    fn only_exactly_the_token_is_taken() {
        let basic = |text: &str| BASE64_STANDARD.encode(text);
        let (right, wrong) = ("07".repeat(TOKEN_BYTES), "08".repeat(TOKEN_BYTES));
        let credentials = basic(&format!("agent:{right}"));
        for (given, expected) in [
            (vec![], false),
            (vec![format!("Basic {credentials}")], true),
            (vec![format!("bASIC  {credentials} ")], true),
            (
                vec![format!("Basic {}", basic(&format!("agent:{wrong}")))],
                false,
            ),
            (
                vec![format!("Basic {}", basic(&format!("other:{right}")))],
                false,
            ),
            (vec![format!("Basic {}", basic(&right))], false),
            (
                vec![format!("Basic {}", basic(&format!("agent:{right} ")))],
                false,
            ),
            (vec![format!("Basic agent:{right}")], false),
            (vec![format!("Bearer {credentials}")], false),
            (vec![credentials.clone()], false),
            (vec!["Basic".to_owned()], false),
            (vec!["Basic ".to_owned()], false),
            (vec![format!("Basic {credentials}"); 2], false),
        ] {
            let mut headers = HeaderMap::new();
            for value in &given {
                headers.append(PROXY_AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            }
            assert_eq!(
                Token([7; TOKEN_BYTES]).is_in(&headers),
                expected,
                "{given:?}"
            );
        }
    }
}
