//! The hosts file: names that the operator pins to addresses. DNS is never asked for these, for
//! neither family, so nobody's DNS can add an address to them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::{fs, io};

use super::ResolverConfigError;

const SYSTEM_HOSTS_FILE: &str = "/etc/hosts";

/// The addresses of each name, in lower case as destinations have them.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    by_name: HashMap<String, Vec<IpAddr>>,
}

impl Hosts {
    /// Reads `chosen`, or else the system's file if there is one.
    pub(super) fn read(chosen: Option<&Path>) -> Result<Self, ResolverConfigError> {
        let system = Path::new(SYSTEM_HOSTS_FILE);
        let path = chosen.unwrap_or(system);
        match fs::read(path) {
            Ok(bytes) => Ok(Self::parse(&String::from_utf8_lossy(&bytes))),
            Err(error) if path == system && error.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(source) => Err(ResolverConfigError::Unreadable {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// The addresses of a name in lower case, if the file has it.
    pub(super) fn find(&self, name: &str) -> Option<&[IpAddr]> {
        self.by_name.get(name).map(Vec::as_slice)
    }

    /// Lines of an address and its names, `#` begins a comment. As elsewhere, a line that doesn't
    /// begin with an address is passed over (`fe80::1%lo0` is one).
    fn parse(text: &str) -> Self {
        let mut hosts = Self::default();
        for line in text.trim_start_matches('\u{feff}').lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            let Some(first) = words.next() else { continue };
            let Ok(address) = first.parse() else {
                tracing::warn!(
                    line,
                    "hosts file: no address at the start of a line, ignored"
                );
                continue;
            };
            for name in words {
                let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
                hosts.by_name.entry(name).or_default().push(address);
            }
        }
        hosts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_is_read_as_other_programs_read_it() {
        let hosts = Hosts::parse(
            "\u{feff}127.0.0.1\tlocalhost\n\
             # 10.0.0.9 commented\n\
             \n\
             127.0.0.2 DocStore docstore.example. # the store\n\
             ::1 docstore\r\n\
             fe80::1%lo0 scoped\n\
             10.0.0.1\n\
             not-an-address nobody\n\
             2001:db8::1 a_b",
        );
        let find = |name| {
            hosts.find(name).map(|found| {
                found
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
        };
        for (name, expected) in [
            ("localhost", Some("127.0.0.1")),
            ("docstore", Some("127.0.0.2 ::1")),
            ("docstore.example", Some("127.0.0.2")),
            ("a_b", Some("2001:db8::1")),
            ("commented", None),
            ("scoped", None),
            ("nobody", None),
            ("store", None),
        ] {
            assert_eq!(find(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_chosen_file_that_is_missing_is_an_error() {
        let error = Hosts::read(Some(Path::new("/nonexistent/hosts"))).unwrap_err();
        assert_eq!(error.to_string(), "could not read /nonexistent/hosts");
    }
}
