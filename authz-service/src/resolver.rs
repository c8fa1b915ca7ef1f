//! Finds the one address that a tunnel dials: hosts file or DNS, then the address policy.
//!
//! What is returned was judged, and is what Envoy then dials: nothing is looked up a second time
//! between the check and the connection, so an answer that changes in between changes nothing.
//! Names are absolute: no search list, and `docstore` is asked as `docstore.`.

mod dns;
mod hosts;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use permission::{Destination, Host};
use tokio::pin;

use crate::addresses::{self, AddressPolicy, Verdict, Why};

use self::dns::{Dns, Family};
use self::hosts::Hosts;

/// Addresses of one name and family that are looked at; further ones are left aside.
const MAX_ADDRESSES: usize = 32;

/// Turn counters. Destinations share them by hash; at worst one skips a turn of the other's.
const TURNS: usize = 64;

/// Where names are looked up, and the bounds on that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOptions {
    /// Read once, at start. `None`: `/etc/hosts`, which alone may be missing.
    pub hosts_file: Option<PathBuf>,
    /// Its name servers are used, and nothing else in it. Read once, at start. `None`:
    /// `/etc/resolv.conf`, which alone may be missing or empty: then only the hosts file is left.
    pub resolv_conf: Option<PathBuf>,
    /// Name servers to ask instead of those in `resolv_conf`.
    pub nameservers: Vec<SocketAddr>,
    /// For one resolution in all.
    pub timeout: Duration,
    /// Answers that are kept.
    pub cache_entries: u64,
    /// An answer is kept for its TTL, but no longer than this.
    pub max_ttl: Duration,
    /// The same for the answer that there is no such name or no address.
    pub max_negative_ttl: Duration,
}

impl Default for DnsOptions {
    fn default() -> Self {
        Self {
            hosts_file: None,
            resolv_conf: None,
            nameservers: Vec::new(),
            timeout: Duration::from_secs(1),
            cache_entries: 1024,
            max_ttl: Duration::from_mins(1),
            max_negative_ttl: Duration::from_secs(5),
        }
    }
}

/// Resolves destinations. Meant to be made once: it owns the cache.
#[derive(Debug)]
pub struct Resolver {
    hosts: Hosts,
    dns: Dns,
    ipv6_route: Ipv6Route,
    turns: [AtomicUsize; TURNS],
}

/// An address that may be dialled for the destination that it was resolved for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The address to dial, as it was judged.
    pub address: SocketAddr,
    /// Whether it isn't public, but listed for this destination.
    pub private: bool,
}

/// Why there is no address to dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// An authoritative no.
    #[error("{0}")]
    Unresolvable(Absence),
    /// No name server answered in time.
    #[error("name servers did not answer in time")]
    TimedOut,
    /// The name servers could not be reached, or answered that they can't.
    #[error("name servers failed")]
    ServerFailure,
    /// There are addresses, and none may be dialled; this is one of them.
    #[error("address {address} is forbidden: {why}")]
    AllForbidden {
        /// A forbidden address of the destination.
        address: IpAddr,
        /// Why it is forbidden.
        why: Why,
    },
}

/// What DNS says there isn't.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Absence {
    /// The name doesn't exist.
    #[error("name does not exist")]
    NxDomain,
    /// The name exists, but has no address.
    #[error("name has no address")]
    NoRecords,
}

/// Why a [`Resolver`] can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ResolverConfigError {
    /// The chosen file can't be read.
    #[error("could not read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The chosen file names no name server.
    #[error("{} names no name server", path.display())]
    NoNameServer {
        /// The file.
        path: PathBuf,
    },
    /// The resolver library refused its configuration.
    #[error("could not set up name resolution")]
    Setup(#[source] hickory_resolver::net::NetError),
}

impl Resolver {
    /// Reads the files that the options name. IPv6 addresses are preferred while this machine has
    /// an IPv6 route.
    pub fn new(options: &DnsOptions) -> Result<Self, ResolverConfigError> {
        Self::with_ipv6_route(options, has_ipv6_route)
    }

    fn with_ipv6_route(
        options: &DnsOptions,
        has_ipv6_route: fn() -> bool,
    ) -> Result<Self, ResolverConfigError> {
        Ok(Self {
            hosts: Hosts::read(options.hosts_file.as_deref())?,
            dns: Dns::new(options)?,
            ipv6_route: Ipv6Route {
                look: has_ipv6_route,
                seen: Mutex::new(None),
            },
            turns: [const { AtomicUsize::new(0) }; TURNS],
        })
    }

    /// An address that `policy` lets a tunnel to `destination` dial. Among equally good ones each
    /// call takes the next, so that a retry gets past one that is down.
    pub async fn resolve(
        &self,
        destination: &Destination,
        policy: &AddressPolicy,
    ) -> Result<Target, ResolveError> {
        let choice = Choice {
            destination,
            policy,
            preferred: Family::preferred(self.ipv6_route.is_there()),
            turn: self.next_turn(destination),
        };
        match destination.host() {
            Host::Ipv4(ip) => choice.of(&[IpAddr::V4(*ip)]),
            Host::Ipv6(ip) => choice.of(&[IpAddr::V6(*ip)]),
            Host::Name(name) => match self.hosts.find(name) {
                Some(addresses) => choice.of(addresses),
                None => Box::pin(self.ask(name, &choice)).await,
            },
        }
    }

    /// Asks for both families at once, and waits for the other one only if the preferred one has
    /// nothing to dial.
    async fn ask(&self, name: &str, choice: &Choice<'_>) -> Result<Target, ResolveError> {
        let first = self.dns.ask(name, choice.preferred);
        let second = self.dns.ask(name, choice.preferred.other());
        pin!(first, second);
        let (first, early) = tokio::select! {
            // In this order: what the cache answers sends no second question.
            biased;
            answer = &mut first => (answer, None),
            answer = &mut second => (first.await, Some(answer)),
        };
        let first = match first.and_then(|addresses| choice.of(&addresses)) {
            Ok(target) => return Ok(target),
            Err(error) => error,
        };
        let second = match early {
            Some(answer) => answer,
            None => second.await,
        };
        match second.and_then(|addresses| choice.of(&addresses)) {
            Ok(target) => Ok(target),
            Err(second) if second.weight() > first.weight() => Err(second),
            Err(_) => Err(first),
        }
    }

    /// Counts per destination, so that two destinations asked for in turn don't each get the same
    /// address every time.
    fn next_turn(&self, destination: &Destination) -> usize {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(destination);
        let slot = usize::try_from(hash % TURNS as u64).unwrap_or_default();
        self.turns
            .get(slot)
            .map_or(0, |turns| turns.fetch_add(1, Ordering::Relaxed))
    }
}

impl ResolveError {
    /// Of the errors of both families the heavier one is told: an address that was seen, then a
    /// name that doesn't exist (which holds for both families), then what may yet change.
    fn weight(self) -> u8 {
        match self {
            Self::AllForbidden { .. } => 4,
            Self::Unresolvable(Absence::NxDomain) => 3,
            Self::TimedOut => 2,
            Self::ServerFailure => 1,
            Self::Unresolvable(Absence::NoRecords) => 0,
        }
    }
}

/// How one of several addresses is chosen for a destination.
struct Choice<'a> {
    destination: &'a Destination,
    policy: &'a AddressPolicy,
    preferred: Family,
    turn: usize,
}

impl Choice<'_> {
    /// One that may be dialled: of the preferred family if there is any, and the `turn`th of
    /// those.
    fn of(&self, addresses: &[IpAddr]) -> Result<Target, ResolveError> {
        let mut good = Vec::new();
        let mut error = ResolveError::Unresolvable(Absence::NoRecords);
        for ip in addresses.iter().take(MAX_ADDRESSES).copied() {
            let address = SocketAddr::new(ip, self.destination.port());
            match self.policy.judge(self.destination, address) {
                Verdict::Public => good.push(Target {
                    address,
                    private: false,
                }),
                Verdict::Private => good.push(Target {
                    address,
                    private: true,
                }),
                Verdict::Forbidden(why) => error = ResolveError::AllForbidden { address: ip, why },
            }
        }
        // Name servers rotate their answers too; without an order of our own the two could
        // cancel out.
        good.sort_by_key(|target| {
            let family = Family::of(target.address.ip());
            (family != self.preferred, target.address)
        });
        good.dedup();
        let of_one_family = good
            .chunk_by(|a, b| a.address.is_ipv4() == b.address.is_ipv4())
            .next()
            .unwrap_or_default();
        let turn = self
            .turn
            .checked_rem(of_one_family.len())
            .unwrap_or_default();
        of_one_family.get(turn).copied().ok_or(error)
    }
}

/// Looked up once a second at most: it takes the kernel longer than all the rest of a warm Check.
#[derive(Debug)]
struct Ipv6Route {
    look: fn() -> bool,
    seen: Mutex<Option<(Instant, bool)>>,
}

impl Ipv6Route {
    fn is_there(&self) -> bool {
        const KEPT: Duration = Duration::from_secs(1);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match *seen {
            Some((looked, is_there)) if looked.elapsed() < KEPT => is_there,
            _ => {
                let is_there = (self.look)();
                *seen = Some((Instant::now(), is_there));
                is_there
            }
        }
    }
}

/// Whether a packet to a public IPv6 address would leave this machine, from a public address of
/// its own. Connecting a UDP socket looks up the route and sends nothing.
fn has_ipv6_route() -> bool {
    // Any public address will do; this is a DNS root server's (a.root-servers.net).
    let public = Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30);
    let source = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((public, 53))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| addresses::is_public(source.ip()))
}
