//! Where the registry is, as given on the command line.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use url::Url;

/// A URL that may hold a password, and is never shown. Whether it is one, the connection tells.
#[derive(Clone)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Before the host, or as libpq's parameter.
    pub(crate) fn holds_password(&self) -> bool {
        Url::parse(&self.0).is_ok_and(|url| {
            url.password().is_some() || url.query_pairs().any(|(name, _)| name == "password")
        })
    }
}

impl FromStr for DatabaseUrl {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseUrl(_)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_is_seen_wherever_it_is_and_never_shown() {
        for (text, holds) in [
            ("postgres://alice@host/registry", false),
            ("postgres://alice:hunter2@host/registry", true),
            ("postgres://alice@host/registry?password=hunter2", true),
            ("postgres:///registry?host=/run/postgresql", false),
            ("hunter2", false),
        ] {
            let url: DatabaseUrl = text.parse().unwrap();
            assert_eq!(url.holds_password(), holds, "{text}");
            assert!(!format!("{url:?}").contains("hunter2"));
        }
    }
}
