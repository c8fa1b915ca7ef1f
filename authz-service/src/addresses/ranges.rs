//! The ranges of the IANA special-purpose address registries, and the metadata services of clouds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Why;

/// What no rule opens. The metadata addresses stand before the ranges that hold some of them.
const NEVER: &[(IpNet, Why)] = &[
    // Amazon, Azure, Google, and most others.
    (v4([169, 254, 169, 254], 32), Why::CloudMetadata),
    // Amazon: credentials of a container task.
    (v4([169, 254, 170, 2], 32), Why::CloudMetadata),
    // Alibaba.
    (v4([100, 100, 100, 200], 32), Why::CloudMetadata),
    // Oracle.
    (v4([192, 0, 0, 192], 32), Why::CloudMetadata),
    // Azure's platform services, on an otherwise public address.
    (v4([168, 63, 129, 16], 32), Why::CloudMetadata),
    // Amazon over IPv6: the instance's, and a Kubernetes pod's.
    (
        v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128),
        Why::CloudMetadata,
    ),
    (
        v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128),
        Why::CloudMetadata,
    ),
    // Google over IPv6.
    (
        v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
        Why::CloudMetadata,
    ),
    // Scaleway over IPv6.
    (
        v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42], 128),
        Why::CloudMetadata,
    ),
    (v4([0, 0, 0, 0], 8), Why::Unspecified),
    (v4([169, 254, 0, 0], 16), Why::LinkLocal),
    (v4([224, 0, 0, 0], 4), Why::Multicast),
    (v4([255, 255, 255, 255], 32), Why::Broadcast),
    (v6([0; 8], 128), Why::Unspecified),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), Why::LinkLocal),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), Why::Multicast),
];

/// What isn't public, and open only to a destination that a rule lists it for.
const NOT_PUBLIC: &[(IpNet, Why)] = &[
    (v4([10, 0, 0, 0], 8), Why::PrivateNetwork),
    (v4([100, 64, 0, 0], 10), Why::SharedAddressSpace),
    (v4([127, 0, 0, 0], 8), Why::Loopback),
    (v4([172, 16, 0, 0], 12), Why::PrivateNetwork),
    (v4([192, 0, 0, 0], 24), Why::ProtocolAssignment),
    (v4([192, 0, 2, 0], 24), Why::Documentation),
    // Anycast address of the retired 6to4 relays (RFC 7526).
    (v4([192, 88, 99, 0], 24), Why::Ipv4Translation),
    (v4([192, 168, 0, 0], 16), Why::PrivateNetwork),
    (v4([198, 18, 0, 0], 15), Why::Benchmarking),
    (v4([198, 51, 100, 0], 24), Why::Documentation),
    (v4([203, 0, 113, 0], 24), Why::Documentation),
    (v4([240, 0, 0, 0], 4), Why::NotAssigned),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), Why::Loopback),
    (v6([0; 8], 96), Why::Ipv4Translation),
    (
        v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96),
        Why::Ipv4Translation,
    ),
    (
        v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
        Why::Ipv4Translation,
    ),
    // RFC 2928: holds Teredo, benchmarking and both ORCHIDs.
    (
        v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
        Why::ProtocolAssignment,
    ),
    (
        v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
        Why::Documentation,
    ),
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), Why::Ipv4Translation),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), Why::Documentation),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), Why::PrivateNetwork),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), Why::PrivateNetwork),
];

/// The only part of IPv6 that public addresses are assigned from (RFC 4291, section 2.4).
const GLOBAL_UNICAST: IpNet = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// Why no rule can open this address.
pub(super) fn never(ip: IpAddr) -> Option<Why> {
    let IpAddr::V6(v6) = ip else {
        return find(NEVER, ip);
    };
    if v6.to_ipv4_mapped().is_some() {
        return Some(Why::Ipv4Mapped);
    }
    find(NEVER, ip).or_else(|| find(NEVER, IpAddr::V4(translated(v6)?)))
}

/// Why this address isn't a public one.
pub(super) fn not_public(ip: IpAddr) -> Option<Why> {
    let outside = ip.is_ipv6() && !GLOBAL_UNICAST.contains(&ip);
    find(NOT_PUBLIC, ip).or_else(|| outside.then_some(Why::NotAssigned))
}

/// The IPv4 address that a translator would send a packet for this address to.
fn translated(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let (high, low) = match v6.segments() {
        _ if v6 == Ipv6Addr::LOCALHOST => return None,
        // IPv4-compatible, NAT64 with a 96-bit prefix (RFC 6052, section 2.2), and 6to4 (RFC 3056,
        // section 2).
        [0, 0, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, _, _, _, high, low]
        | [0x2002, high, low, ..] => (high, low),
        // Teredo: inverted (RFC 4380, section 4).
        [0x2001, 0, _, _, _, _, high, low] => (!high, !low),
        _ => return None,
    };
    Some(Ipv4Addr::from_bits(
        (u32::from(high) << 16) | u32::from(low),
    ))
}

fn find(table: &[(IpNet, Why)], ip: IpAddr) -> Option<Why> {
    table
        .iter()
        .find(|(net, _)| net.contains(&ip))
        .map(|(_, why)| *why)
}

const fn v4(octets: [u8; 4], prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from_octets(octets), prefix))
}

const fn v6(segments: [u16; 8], prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::from_segments(segments),
        prefix,
    ))
}
