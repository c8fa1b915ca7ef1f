//! The egress list: which URLs calls may go to, whatever the list of tools says.
//!
//! A second key to the same door, held by whoever keeps `egress.yaml`: a tool that is moved or
//! added in `tools.yaml` is called only if its new place is listed here too.

use serde::Deserialize;

use super::tools::ToolUrl;

/// `egress.yaml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// What holds for all others; there is only one answer.
    #[expect(dead_code, reason = "said so that the file reads as what it is")]
    default: Default,
    /// What may be called.
    #[serde(default)]
    allow: Vec<Allowed>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Default {
    Deny,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allowed {
    /// For people.
    #[expect(dead_code, reason = "said for whoever reads the file")]
    name: String,
    #[serde(deserialize_with = "crate::config::from_text")]
    url: ToolUrl,
}

impl Egress {
    /// Whether calls may go there: scheme, host, port and path are compared, all of each.
    pub fn allows(&self, url: &ToolUrl) -> bool {
        self.allow.iter().any(|allowed| {
            allowed.url.scheme == url.scheme
                && allowed.url.destination == url.destination
                && allowed.url.path() == url.path()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(yaml: &str) -> Result<Egress, serde_saphyr::Error> {
        serde_saphyr::from_str(yaml)
    }

    #[test]
    fn only_the_very_url_is_allowed() {
        let list = list(
            "default: deny\nallow:\n- {name: echo, url: 'http://echo:8081/echo'}\n\
             - {name: mail, url: 'https://mail.test/send'}\n",
        )
        .unwrap();
        for (url, allowed) in [
            ("http://echo:8081/echo", true),
            ("http://ECHO:8081/echo?trace=1", true),
            ("https://mail.test:443/send", true),
            ("https://echo:8081/echo", false),
            ("http://echo:8082/echo", false),
            ("http://echo2:8081/echo", false),
            ("http://echo:8081/echo/", false),
            ("http://echo:8081/Echo", false),
            ("http://echo:8081/", false),
            ("http://mail.test:443/send", false),
        ] {
            assert_eq!(list.allows(&url.parse().unwrap()), allowed, "{url}");
        }
    }

    #[test]
    fn nothing_listed_allows_nothing_and_no_other_default_can_be_said() {
        let empty = list("default: deny\n").unwrap();
        assert!(!empty.allows(&"http://echo/".parse().unwrap()));
        for bad in [
            "default: allow\n",
            "allow: []\n",
            "default: deny\nallow: [{name: a, url: nonsense}]\n",
            "default: deny\nalow: []\n",
            "default: deny\ndefault: deny\n",
            "",
        ] {
            assert!(list(bad).is_err(), "{bad:?}");
        }
    }
}
