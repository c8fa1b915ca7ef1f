//! The tools that agents may call, as `tools.yaml` lists them.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use http::Uri;
use ipnet::IpNet;
use permission::Destination;
use serde::Deserialize;

use crate::addresses::{AddressPolicy, PrivateRule, is_this_machine};

/// Most tools.
const MAX_TOOLS: usize = 1000;
/// Longest a tool may take to answer, whatever its entry says: the route's own limit in
/// `envoy.yaml`.
pub const MAX_TIME: Duration = Duration::from_secs(5);
/// Longest URL, in bytes.
const MAX_URL: usize = 2048;

/// The tool that a body without envelope is for.
const BARE_BODY_TOOL: &str = "echo";

/// A tool's name: 1 to 64 letters, digits, `.`, `_`, `-` and `/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ToolName(Box<str>);

/// A text that names no tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tool's name is 1 to 64 letters, digits, '.', '_', '-' and '/'")]
pub struct ToolNameError;

/// Something that is called.
#[derive(Debug, Clone)]
pub struct Tool {
    /// How agents call it.
    pub name: ToolName,
    /// Where it is.
    pub url: ToolUrl,
    /// The contract that every payload for it must meet, by `$id`.
    pub contract: Option<String>,
    /// Longest it may take to answer; [`MAX_TIME`] if it has no limit of its own.
    pub time_limit: Duration,
    /// Which addresses it may have.
    pub addresses: AddressPolicy,
}

/// Where a tool is, in one spelling. `Display` gives the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolUrl {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// Its host and port; what a caller needs a permission for.
    pub destination: Destination,
    /// From its first `/`, query included; sent as it is.
    pub path_and_query: String,
}

/// How a tool is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// TLS, with a certificate for the URL's host.
    Https,
}

/// A text that is no tool's URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ToolUrlError {
    /// Not `http://…` or `https://…`, or too long.
    #[error("a tool's URL is http://host[:port]/path or https://…, at most {MAX_URL} bytes")]
    NotHttp,
    /// Not a host and port that permissions can name.
    #[error("the URL's host and port: {0}")]
    Destination(#[from] permission::DestinationError),
    /// What would have to be escaped, or is read in more than one way.
    #[error(
        "the URL's path must be plain ASCII, percent-encoded, without '.' or '..' segments, '\\' or '#'"
    )]
    Path,
}

/// The tools by name.
#[derive(Debug, Clone, Default)]
pub struct Tools(HashMap<ToolName, Tool>);

/// Why a list of tools is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ToolsError {
    /// Two of one name.
    #[error("tool {0} is listed twice")]
    Twice(ToolName),
    /// Zero, or longer than Envoy waits.
    #[error("tool {0}: time_limit_ms must be from 1 to 5000")]
    TimeLimit(ToolName),
    /// More than anybody needs.
    #[error("more than {MAX_TOOLS} tools")]
    TooMany,
}

/// `tools.yaml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolsFile {
    /// The tools.
    pub tools: Vec<Entry>,
}

/// One of its entries.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// How agents call it.
    #[serde(deserialize_with = "crate::config::from_text")]
    pub name: ToolName,
    /// Where it is.
    #[serde(deserialize_with = "crate::config::from_text")]
    pub url: ToolUrl,
    /// The `$id` of a contract that always applies.
    #[serde(default)]
    pub contract: Option<String>,
    /// Longest it may take, in milliseconds; 5000 if not set.
    #[serde(default)]
    pub time_limit_ms: Option<u64>,
    /// Addresses that it may have although they are not public.
    #[serde(default)]
    pub private: Vec<IpNet>,
}

impl Entry {
    /// A tool of which only this is known.
    pub fn new(name: ToolName, url: ToolUrl) -> Self {
        Self {
            name,
            url,
            contract: None,
            time_limit_ms: None,
            private: Vec::new(),
        }
    }
}

impl Tools {
    /// Takes the entries; `own_listeners` are the gateway's own, which no tool may be.
    pub fn new(entries: Vec<Entry>, own_listeners: &[SocketAddr]) -> Result<Self, ToolsError> {
        if entries.len() > MAX_TOOLS {
            return Err(ToolsError::TooMany);
        }
        let mut tools = HashMap::new();
        for entry in entries {
            let tool = Tool::new(entry, own_listeners)?;
            if let Some(twice) = tools.insert(tool.name.clone(), tool) {
                return Err(ToolsError::Twice(twice.name));
            }
        }
        Ok(Self(tools))
    }

    /// The tool of that name.
    pub fn find(&self, name: &ToolName) -> Option<&Tool> {
        self.0.get(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Tool> {
        self.0.values()
    }
}

impl Tool {
    fn new(entry: Entry, own_listeners: &[SocketAddr]) -> Result<Self, ToolsError> {
        let time_limit = entry.time_limit_ms.map_or(MAX_TIME, Duration::from_millis);
        if time_limit.is_zero() || time_limit > MAX_TIME {
            return Err(ToolsError::TimeLimit(entry.name));
        }
        // Its own rule alone: what a tunnel to the same place may reach opens nothing for a tool,
        // nor the other way round.
        let rule = PrivateRule {
            destination: entry.url.destination.clone(),
            cidrs: entry.private,
        };
        Ok(Self {
            name: entry.name,
            url: entry.url,
            contract: entry.contract,
            time_limit,
            addresses: AddressPolicy::new(vec![rule], own_listeners.to_vec(), is_this_machine),
        })
    }
}

impl ToolName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of the tool that a body without envelope is for.
pub fn bare_body_tool() -> ToolName {
    ToolName(BARE_BODY_TOOL.into())
}

impl FromStr for ToolName {
    type Err = ToolNameError;

    fn from_str(text: &str) -> Result<Self, ToolNameError> {
        let allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/');
        if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(ToolNameError)
        }
    }
}

impl fmt::Display for ToolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Scheme {
    /// As in a URL; also the name of Envoy's lane.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl ToolUrl {
    /// Host and, where it isn't the scheme's own, port: what the tool sees as `Host`.
    pub fn authority(&self) -> String {
        if self.destination.port() == self.scheme.default_port() {
            self.destination.host().to_string()
        } else {
            self.destination.to_string()
        }
    }

    /// The path alone.
    pub fn path(&self) -> &str {
        let path = self.path_and_query.split_once('?');
        path.map_or(&*self.path_and_query, |(path, _)| path)
    }
}

impl FromStr for ToolUrl {
    type Err = ToolUrlError;

    fn from_str(text: &str) -> Result<Self, ToolUrlError> {
        if text.len() > MAX_URL {
            return Err(ToolUrlError::NotHttp);
        }
        let uri: Uri = text.parse().map_err(|_| ToolUrlError::NotHttp)?;
        let (scheme, rest) = match uri.scheme_str() {
            Some("http") => (Scheme::Http, text.get("http://".len()..)),
            Some("https") => (Scheme::Https, text.get("https://".len()..)),
            _ => return Err(ToolUrlError::NotHttp),
        };
        let rest = rest.ok_or(ToolUrlError::NotHttp)?;
        // Cut here, and not by the URI's parser: that drops a fragment without a word.
        let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let destination = destination(authority, scheme)?;
        let path_and_query = match path {
            "" => "/".to_owned(),
            path if is_plain(path) => path.to_owned(),
            _ => return Err(ToolUrlError::Path),
        };
        Ok(Self {
            scheme,
            destination,
            path_and_query,
        })
    }
}

/// The one parser of destinations reads the authority; only the default port is the scheme's.
fn destination(authority: &str, scheme: Scheme) -> Result<Destination, ToolUrlError> {
    let has_port = match authority.rsplit_once(']') {
        Some((_, after)) => !after.is_empty(),
        None => authority.contains(':'),
    };
    if has_port {
        return Ok(authority.parse()?);
    }
    Ok(format!("{authority}:{}", scheme.default_port()).parse()?)
}

/// RFC 3986's `path-absolute [ "?" query ]`, without segments that a server might resolve.
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte);
    let escaped = |at: usize| {
        let digits = bytes.get(at + 1..at + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    path.starts_with('/')
        && bytes
            .iter()
            .enumerate()
            .all(|(at, byte)| plain(*byte) && (*byte != b'%' || escaped(at)))
        && !path.split('/').any(|segment| {
            matches!(
                segment.to_ascii_lowercase().replace("%2e", ".").as_str(),
                "." | ".."
            )
        })
}

impl fmt::Display for ToolUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, authority) = (self.scheme.as_str(), self.authority());
        write!(f, "{scheme}://{authority}{}", self.path_and_query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_one_spelling() {
        for (text, expected, destination, authority) in [
            (
                "http://Echo:8081/echo",
                "http://echo:8081/echo",
                "echo:8081",
                "echo:8081",
            ),
            ("http://echo", "http://echo/", "echo:80", "echo"),
            ("http://echo:80/a", "http://echo/a", "echo:80", "echo"),
            (
                "https://echo:80/a",
                "https://echo:80/a",
                "echo:80",
                "echo:80",
            ),
            (
                "https://a.test/x%20y?z=1",
                "https://a.test/x%20y?z=1",
                "a.test:443",
                "a.test",
            ),
            (
                "https://[2001:DB8::1]/x",
                "https://[2001:db8::1]/x",
                "[2001:db8::1]:443",
                "[2001:db8::1]",
            ),
            (
                "http://[::1]:8080/",
                "http://[::1]:8080/",
                "[::1]:8080",
                "[::1]:8080",
            ),
            ("HTTP://echo/", "http://echo/", "echo:80", "echo"),
        ] {
            let url: ToolUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), expected);
            assert_eq!(url.destination.to_string(), destination);
            assert_eq!(url.authority(), authority);
        }
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_no_url() {
        for text in [
            "",
            "echo:8081/echo",
            "//echo/echo",
            "ftp://echo/",
            "http:///echo",
            "http://user@echo/",
            "http://user:pw@echo:80/",
            "http://echo:0/",
            "http://echo:99999/",
            "http://echo:/",
            "http://0x7f.1/",
            "http://echo./",
            "http://echo/a#b",
            "http://echo#b",
            "http://echo/a b",
            "http://echo/ä",
            "http://echo/a\\b",
            "http://echo\\b",
            "http://echo?a=b",
            "http://echo/a/../b",
            "http://echo/a/%2e%2E/b",
            "http://echo/./b",
            "http://echo/%zz",
            "http://echo/%2",
            "http://echo/a\r\nx: y",
            " http://echo/",
        ] {
            assert!(text.parse::<ToolUrl>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_are_plain() {
        for good in ["echo", "a", "mcp/tools.read_file-1", &"a".repeat(64)] {
            assert_eq!(good.parse::<ToolName>().unwrap().as_str(), good);
        }
        for bad in ["", "a b", "ä", "a\n", "a\u{202e}", "a:b", &"a".repeat(65)] {
            assert_eq!(bad.parse::<ToolName>(), Err(ToolNameError), "{bad:?}");
        }
    }

    #[test]
    fn a_list_is_taken_only_as_a_whole() {
        let url = || "http://echo:8081/echo".parse().unwrap();
        let entry = |name: &str| Entry::new(name.parse().unwrap(), url());
        let late = Entry {
            time_limit_ms: Some(5001),
            ..entry("late")
        };
        let never = Entry {
            time_limit_ms: Some(0),
            ..entry("never")
        };
        assert!(Tools::new(vec![entry("a"), entry("b")], &[]).is_ok());
        for bad in [vec![entry("a"), entry("a")], vec![late], vec![never]] {
            assert!(Tools::new(bad, &[]).is_err());
        }
    }
}
