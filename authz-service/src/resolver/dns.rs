//! DNS as the resolver uses it: one absolute name and one address family at a time, within a
//! deadline, answers cached for their TTL up to a cap. CNAMEs are followed.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};

use super::{Absence, DnsOptions, ResolveError, ResolverConfigError};

const SYSTEM_RESOLV_CONF: &str = "/etc/resolv.conf";

const DNS_PORT: u16 = 53;

/// What other resolvers read from a resolv.conf (resolv.conf(5), MAXNS).
const MAX_NAME_SERVERS: usize = 3;

/// The client of the name servers, with its cache.
#[derive(Debug)]
pub(super) struct Dns {
    client: TokioResolver,
    timeout: Duration,
}

/// Which addresses to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Ipv4,
    Ipv6,
}

impl Dns {
    pub(super) fn new(options: &DnsOptions) -> Result<Self, ResolverConfigError> {
        let servers = match options.nameservers.as_slice() {
            [] => read_name_servers(options.resolv_conf.as_deref())?,
            chosen => chosen.iter().copied().map(name_server).collect(),
        };
        if servers.is_empty() {
            tracing::warn!("no name server is configured: only names in the hosts file resolve");
        }
        let config = ResolverConfig::from_name_servers(servers);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        bound(builder.options_mut(), options);
        let client = builder.build().map_err(ResolverConfigError::Setup)?;
        Ok(Self {
            client,
            timeout: options.timeout,
        })
    }

    /// The addresses of `name` that are of this family; at least one, else it is an error.
    pub(super) async fn ask(
        &self,
        name: &str,
        family: Family,
    ) -> Result<Vec<IpAddr>, ResolveError> {
        // The dot at the end keeps every search list away. What can't be a DNS name isn't one.
        let name = Name::from_ascii(format!("{name}."))
            .map_err(|_| ResolveError::Unresolvable(Absence::NxDomain))?;
        let lookup = self.client.lookup(name, family.record_type());
        let lookup = match tokio::time::timeout(self.timeout, lookup).await {
            Ok(Ok(lookup)) => lookup,
            Ok(Err(error)) => return Err(resolve_error(&error)),
            Err(_) => return Err(ResolveError::TimedOut),
        };
        let addresses = lookup
            .answers()
            .iter()
            .filter_map(|record| record.data.ip_addr());
        Ok(addresses.filter(|ip| Family::of(*ip) == family).collect())
    }
}

impl Family {
    pub(super) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    /// IPv6 where it has a way out, as RFC 6724 has it.
    pub(super) fn preferred(has_ipv6_route: bool) -> Self {
        if has_ipv6_route {
            Self::Ipv6
        } else {
            Self::Ipv4
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Ipv4 => Self::Ipv6,
            Self::Ipv6 => Self::Ipv4,
        }
    }

    fn record_type(self) -> RecordType {
        match self {
            Self::Ipv4 => RecordType::A,
            Self::Ipv6 => RecordType::AAAA,
        }
    }
}

fn bound(library: &mut ResolverOpts, options: &DnsOptions) {
    // Ours is read in its place: the library's would ask DNS for the family that a name in the
    // hosts file has no address of.
    library.use_hosts_file = ResolveHosts::Never;
    // Two servers are asked at once; half of the time is left for a third.
    library.timeout = options.timeout / 2;
    library.attempts = 1;
    library.cache_size = options.cache_entries;
    library.positive_max_ttl = Some(options.max_ttl);
    library.negative_max_ttl = Some(options.max_negative_ttl);
}

/// The name servers of `chosen`, or else of the system's file if there is one.
fn read_name_servers(chosen: Option<&Path>) -> Result<Vec<NameServerConfig>, ResolverConfigError> {
    let system = Path::new(SYSTEM_RESOLV_CONF);
    let path = chosen.unwrap_or(system);
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if path == system && error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => {
            return Err(ResolverConfigError::Unreadable {
                path: path.to_owned(),
                source,
            });
        }
    };
    let servers = parse_name_servers(&text);
    if servers.is_empty() && path != system {
        return Err(ResolverConfigError::NoNameServer {
            path: path.to_owned(),
        });
    }
    Ok(servers
        .into_iter()
        .map(|ip| name_server(SocketAddr::new(ip, DNS_PORT)))
        .collect())
}

/// The `nameserver` lines of a resolv.conf. No search list and no option is wanted from it.
fn parse_name_servers(text: &str) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        if let Ok(ip) = words.next().unwrap_or_default().parse() {
            servers.push(ip);
        } else {
            tracing::warn!(
                line,
                "resolv.conf: no address on a nameserver line, ignored"
            );
        }
    }
    servers.truncate(MAX_NAME_SERVERS);
    servers
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

fn resolve_error(error: &NetError) -> ResolveError {
    match error {
        NetError::Timeout => ResolveError::TimedOut,
        NetError::Dns(DnsError::NoRecordsFound(nothing)) => match nothing.response_code {
            ResponseCode::NXDomain => ResolveError::Unresolvable(Absence::NxDomain),
            ResponseCode::NoError => ResolveError::Unresolvable(Absence::NoRecords),
            _ => ResolveError::ServerFailure,
        },
        // The library's error is open-ended; nothing else in it says that there is no such name.
        _ => ResolveError::ServerFailure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_name_servers_are_read_from_resolv_conf() {
        let servers = parse_name_servers(
            "# nameserver 10.0.0.1\n\
             search corp.example evil.example\n\
             domain corp.example\n\
             nameserver 10.0.0.2\n\
             nameserver\t2001:db8::53 # the other\n\
             nameserver fe80::1%eth0\n\
             nameserver\n\
             options ndots:5 timeout:30 attempts:9\n\
             nameserver 10.0.0.3\n\
             nameserver 10.0.0.4\n",
        );
        let expected = ["10.0.0.2", "2001:db8::53", "10.0.0.3"];
        assert_eq!(servers, expected.map(|ip| ip.parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn a_chosen_resolv_conf_without_a_name_server_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = read_name_servers(Some(file.path())).unwrap_err();
        let expected = format!("{} names no name server", file.path().display());
        assert_eq!(error.to_string(), expected);
    }
}
