//! Which addresses a tunnel may lead to: the public ones, and others where a rule names this very
//! destination.
//!
//! A name that was granted is not trusted to stay where it was: whoever runs its DNS could point
//! it at a cloud's metadata service or at a neighbour of the gateway. So every address is judged
//! here after it was resolved and before it is dialled. A rule opens a range for one destination,
//! never for all of them. Nothing is resolved here and nothing is dialled.

mod ranges;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use ipnet::IpNet;
use permission::Destination;

/// Addresses that one destination may have although they aren't public.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateRule {
    /// The only destination, host and port, that the rule is for.
    pub destination: Destination,
    /// The addresses that it may have.
    pub cidrs: Vec<IpNet>,
}

/// Judges addresses.
#[derive(Debug, Clone)]
pub struct AddressPolicy {
    private: HashMap<Destination, Vec<IpNet>>,
    own_listeners: Vec<SocketAddr>,
    is_this_machine: fn(IpAddr) -> bool,
}

/// What the policy says about one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// On the public Internet: any destination may have it.
    Public,
    /// Not public, but a rule lists it for this destination.
    Private,
    /// Not to be dialled.
    Forbidden(Why),
}

/// Why an address is forbidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// `0.0.0.0/8` or `::`: on Linux these lead to the machine itself. No rule allows it.
    Unspecified,
    /// On the gateway's own network segment. No rule allows it.
    LinkLocal,
    /// A cloud's metadata service, which hands out credentials. No rule allows it.
    CloudMetadata,
    /// A group of machines. No rule allows it.
    Multicast,
    /// `255.255.255.255`. No rule allows it.
    Broadcast,
    /// One of the gateway's own listeners: a tunnel to it would speak from inside. No rule allows
    /// it.
    OwnListener,
    /// `::ffff:1.2.3.4`, a second spelling of an IPv4 address. No rule allows it.
    Ipv4Mapped,
    /// The gateway's own machine.
    Loopback,
    /// A private network (RFC 1918, RFC 4193, and the older site-local addresses).
    PrivateNetwork,
    /// Shared by a provider and its customers (RFC 6598).
    SharedAddressSpace,
    /// Set aside for protocols (RFC 6890, RFC 2928), among them Teredo and ORCHID.
    ProtocolAssignment,
    /// For examples in documents.
    Documentation,
    /// For measurements of devices (RFC 2544).
    Benchmarking,
    /// Translated to an IPv4 address on its way: 6to4, NAT64, IPv4-compatible.
    Ipv4Translation,
    /// Never assigned to anyone on the public Internet.
    NotAssigned,
}

impl AddressPolicy {
    /// `own_listeners` are the sockets that the gateway listens on, Envoy's among them; one with
    /// an unspecified address covers every address that `is_this_machine` says yes to (the
    /// function of that name in this module, outside tests).
    pub fn new(
        private: Vec<PrivateRule>,
        own_listeners: Vec<SocketAddr>,
        is_this_machine: fn(IpAddr) -> bool,
    ) -> Self {
        let mut by_destination: HashMap<_, Vec<IpNet>> = HashMap::new();
        for rule in private {
            by_destination
                .entry(rule.destination)
                .or_default()
                .extend(rule.cidrs);
        }
        let own_listeners = own_listeners
            .into_iter()
            .map(|listener| SocketAddr::new(listener.ip().to_canonical(), listener.port()))
            .collect();
        Self {
            private: by_destination,
            own_listeners,
            is_this_machine,
        }
    }

    /// Whether a tunnel to `destination` may dial `address`.
    pub fn judge(&self, destination: &Destination, address: SocketAddr) -> Verdict {
        let ip = address.ip();
        if let Some(why) = ranges::never(ip) {
            return Verdict::Forbidden(why);
        }
        if self.is_own_listener(address) {
            return Verdict::Forbidden(Why::OwnListener);
        }
        match ranges::not_public(ip) {
            None => Verdict::Public,
            Some(_) if self.is_listed(destination, ip) => Verdict::Private,
            Some(why) => Verdict::Forbidden(why),
        }
    }

    fn is_own_listener(&self, address: SocketAddr) -> bool {
        self.own_listeners.iter().any(|listener| {
            let any = listener.ip().is_unspecified();
            listener.port() == address.port()
                && (listener.ip() == address.ip() || any && (self.is_this_machine)(address.ip()))
        })
    }

    fn is_listed(&self, destination: &Destination, ip: IpAddr) -> bool {
        let cidrs = self
            .private
            .get(destination)
            .map(Vec::as_slice)
            .unwrap_or_default();
        cidrs.iter().any(|cidr| cidr.contains(&ip))
    }
}

/// Whether an address is one on the public Internet.
pub fn is_public(ip: IpAddr) -> bool {
    ranges::never(ip).is_none() && ranges::not_public(ip).is_none()
}

/// Whether this machine has the address, found by binding a socket to it. Where that can't be
/// found out the answer is yes.
pub fn is_this_machine(ip: IpAddr) -> bool {
    match UdpSocket::bind((ip, 0)) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "an unspecified address",
            Self::LinkLocal => "a link-local address",
            Self::CloudMetadata => "a cloud metadata service",
            Self::Multicast => "a multicast address",
            Self::Broadcast => "the broadcast address",
            Self::OwnListener => "one of the gateway's own listeners",
            Self::Ipv4Mapped => "an IPv4-mapped IPv6 address",
            Self::Loopback => "a loopback address",
            Self::PrivateNetwork => "in a private network",
            Self::SharedAddressSpace => "in the shared address space of providers",
            Self::ProtocolAssignment => "set aside for protocols",
            Self::Documentation => "a documentation address",
            Self::Benchmarking => "a benchmarking address",
            Self::Ipv4Translation => "an IPv6 address that is translated to IPv4",
            Self::NotAssigned => "not assigned on the public Internet",
        })
    }
}
