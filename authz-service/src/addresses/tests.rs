//! The address policy, with neighbours on both sides of every boundary.

use super::*;

fn destination(text: &str) -> Destination {
    text.parse().unwrap()
}

fn rule(to: &str, cidrs: &[&str]) -> PrivateRule {
    let cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
    PrivateRule {
        destination: destination(to),
        cidrs,
    }
}

/// Every address there is, listed for `docstore:8443`.
fn all_listed() -> Vec<PrivateRule> {
    vec![rule("docstore:8443", &["0.0.0.0/0", "::/0"])]
}

fn judge(private: Vec<PrivateRule>, to: &str, ip: &str) -> Verdict {
    let to = destination(to);
    let address = SocketAddr::new(ip.parse().unwrap(), to.port());
    AddressPolicy::new(private, Vec::new(), |_| false).judge(&to, address)
}

/// Neighbours on both sides of each range: what is said without a rule.
const BOUNDARIES: &[(&str, Verdict)] = &[
    ("0.0.0.0", Verdict::Forbidden(Why::Unspecified)),
    ("0.255.255.255", Verdict::Forbidden(Why::Unspecified)),
    ("1.0.0.0", Verdict::Public),
    ("9.255.255.255", Verdict::Public),
    ("10.0.0.0", Verdict::Forbidden(Why::PrivateNetwork)),
    ("10.255.255.255", Verdict::Forbidden(Why::PrivateNetwork)),
    ("11.0.0.0", Verdict::Public),
    ("100.63.255.255", Verdict::Public),
    ("100.64.0.0", Verdict::Forbidden(Why::SharedAddressSpace)),
    (
        "100.100.100.199",
        Verdict::Forbidden(Why::SharedAddressSpace),
    ),
    ("100.100.100.200", Verdict::Forbidden(Why::CloudMetadata)),
    (
        "100.100.100.201",
        Verdict::Forbidden(Why::SharedAddressSpace),
    ),
    (
        "100.127.255.255",
        Verdict::Forbidden(Why::SharedAddressSpace),
    ),
    ("100.128.0.0", Verdict::Public),
    ("126.255.255.255", Verdict::Public),
    ("127.0.0.0", Verdict::Forbidden(Why::Loopback)),
    ("127.255.255.255", Verdict::Forbidden(Why::Loopback)),
    ("128.0.0.0", Verdict::Public),
    ("168.63.129.15", Verdict::Public),
    ("168.63.129.16", Verdict::Forbidden(Why::CloudMetadata)),
    ("168.63.129.17", Verdict::Public),
    ("169.253.255.255", Verdict::Public),
    ("169.254.0.0", Verdict::Forbidden(Why::LinkLocal)),
    ("169.254.169.253", Verdict::Forbidden(Why::LinkLocal)),
    ("169.254.169.254", Verdict::Forbidden(Why::CloudMetadata)),
    ("169.254.170.2", Verdict::Forbidden(Why::CloudMetadata)),
    ("169.254.255.255", Verdict::Forbidden(Why::LinkLocal)),
    ("169.255.0.0", Verdict::Public),
    ("172.15.255.255", Verdict::Public),
    ("172.16.0.0", Verdict::Forbidden(Why::PrivateNetwork)),
    ("172.31.255.255", Verdict::Forbidden(Why::PrivateNetwork)),
    ("172.32.0.0", Verdict::Public),
    ("191.255.255.255", Verdict::Public),
    ("192.0.0.0", Verdict::Forbidden(Why::ProtocolAssignment)),
    ("192.0.0.192", Verdict::Forbidden(Why::CloudMetadata)),
    ("192.0.0.255", Verdict::Forbidden(Why::ProtocolAssignment)),
    ("192.0.1.255", Verdict::Public),
    ("192.0.2.0", Verdict::Forbidden(Why::Documentation)),
    ("192.0.2.255", Verdict::Forbidden(Why::Documentation)),
    ("192.0.3.0", Verdict::Public),
    ("192.88.98.255", Verdict::Public),
    ("192.88.99.0", Verdict::Forbidden(Why::Ipv4Translation)),
    ("192.88.99.255", Verdict::Forbidden(Why::Ipv4Translation)),
    ("192.88.100.0", Verdict::Public),
    ("192.167.255.255", Verdict::Public),
    ("192.168.0.0", Verdict::Forbidden(Why::PrivateNetwork)),
    ("192.168.255.255", Verdict::Forbidden(Why::PrivateNetwork)),
    ("192.169.0.0", Verdict::Public),
    ("198.17.255.255", Verdict::Public),
    ("198.18.0.0", Verdict::Forbidden(Why::Benchmarking)),
    ("198.19.255.255", Verdict::Forbidden(Why::Benchmarking)),
    ("198.20.0.0", Verdict::Public),
    ("198.51.99.255", Verdict::Public),
    ("198.51.100.0", Verdict::Forbidden(Why::Documentation)),
    ("198.51.100.255", Verdict::Forbidden(Why::Documentation)),
    ("198.51.101.0", Verdict::Public),
    ("203.0.112.255", Verdict::Public),
    ("203.0.113.0", Verdict::Forbidden(Why::Documentation)),
    ("203.0.113.255", Verdict::Forbidden(Why::Documentation)),
    ("203.0.114.0", Verdict::Public),
    ("223.255.255.255", Verdict::Public),
    ("224.0.0.0", Verdict::Forbidden(Why::Multicast)),
    ("239.255.255.255", Verdict::Forbidden(Why::Multicast)),
    ("240.0.0.0", Verdict::Forbidden(Why::NotAssigned)),
    ("255.255.255.254", Verdict::Forbidden(Why::NotAssigned)),
    ("255.255.255.255", Verdict::Forbidden(Why::Broadcast)),
    ("::", Verdict::Forbidden(Why::Unspecified)),
    ("::1", Verdict::Forbidden(Why::Loopback)),
    ("::2", Verdict::Forbidden(Why::Unspecified)),
    ("::8.8.8.8", Verdict::Forbidden(Why::Ipv4Translation)),
    ("::169.254.169.254", Verdict::Forbidden(Why::CloudMetadata)),
    ("::fffe:ffff:ffff", Verdict::Forbidden(Why::NotAssigned)),
    ("::ffff:0.0.0.0", Verdict::Forbidden(Why::Ipv4Mapped)),
    ("::ffff:8.8.8.8", Verdict::Forbidden(Why::Ipv4Mapped)),
    ("::ffff:10.0.0.1", Verdict::Forbidden(Why::Ipv4Mapped)),
    ("::1:0:0:0", Verdict::Forbidden(Why::NotAssigned)),
    ("64:ff9b::8.8.8.8", Verdict::Forbidden(Why::Ipv4Translation)),
    (
        "64:ff9b::169.254.169.254",
        Verdict::Forbidden(Why::CloudMetadata),
    ),
    ("64:ff9b::ffff:ffff", Verdict::Forbidden(Why::Broadcast)),
    ("64:ff9b::1:0:0", Verdict::Forbidden(Why::NotAssigned)),
    (
        "64:ff9b:1::8.8.8.8",
        Verdict::Forbidden(Why::Ipv4Translation),
    ),
    (
        "64:ff9b:1:fffe::169.254.0.1",
        Verdict::Forbidden(Why::LinkLocal),
    ),
    ("64:ff9b:2::8.8.8.8", Verdict::Forbidden(Why::NotAssigned)),
    ("100::", Verdict::Forbidden(Why::NotAssigned)),
    ("100:0:0:1::", Verdict::Forbidden(Why::NotAssigned)),
    (
        "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        Verdict::Forbidden(Why::NotAssigned),
    ),
    ("2000::", Verdict::Public),
    ("2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict::Public),
    // Teredo: the client's IPv4 address stands there inverted (RFC 4380, section 4).
    ("2001::", Verdict::Forbidden(Why::Broadcast)),
    (
        "2001::f7f7:f7f7",
        Verdict::Forbidden(Why::ProtocolAssignment),
    ),
    ("2001::5601:5601", Verdict::Forbidden(Why::CloudMetadata)),
    ("2001:2::1", Verdict::Forbidden(Why::ProtocolAssignment)),
    ("2001:10::1", Verdict::Forbidden(Why::ProtocolAssignment)),
    (
        "2001:2f:ffff::1",
        Verdict::Forbidden(Why::ProtocolAssignment),
    ),
    (
        "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
        Verdict::Forbidden(Why::ProtocolAssignment),
    ),
    ("2001:200::", Verdict::Public),
    ("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", Verdict::Public),
    ("2001:db8::", Verdict::Forbidden(Why::Documentation)),
    (
        "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
        Verdict::Forbidden(Why::Documentation),
    ),
    ("2001:db9::", Verdict::Public),
    ("2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict::Public),
    ("2002::", Verdict::Forbidden(Why::Unspecified)),
    ("2002:808:808::1", Verdict::Forbidden(Why::Ipv4Translation)),
    ("2002:a9fe:a9fe::1", Verdict::Forbidden(Why::CloudMetadata)),
    ("2003::", Verdict::Public),
    ("3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict::Public),
    ("3fff::", Verdict::Forbidden(Why::Documentation)),
    (
        "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
        Verdict::Forbidden(Why::Documentation),
    ),
    ("3fff:1000::", Verdict::Public),
    ("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Verdict::Public),
    ("4000::", Verdict::Forbidden(Why::NotAssigned)),
    ("5f00::1", Verdict::Forbidden(Why::NotAssigned)),
    (
        "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        Verdict::Forbidden(Why::NotAssigned),
    ),
    ("fc00::", Verdict::Forbidden(Why::PrivateNetwork)),
    ("fd00:42::42", Verdict::Forbidden(Why::CloudMetadata)),
    ("fd00:ec2::23", Verdict::Forbidden(Why::CloudMetadata)),
    ("fd00:ec2::253", Verdict::Forbidden(Why::PrivateNetwork)),
    ("fd00:ec2::254", Verdict::Forbidden(Why::CloudMetadata)),
    ("fd20:ce::254", Verdict::Forbidden(Why::CloudMetadata)),
    (
        "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        Verdict::Forbidden(Why::PrivateNetwork),
    ),
    ("fe00::", Verdict::Forbidden(Why::NotAssigned)),
    (
        "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        Verdict::Forbidden(Why::NotAssigned),
    ),
    ("fe80::", Verdict::Forbidden(Why::LinkLocal)),
    (
        "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        Verdict::Forbidden(Why::LinkLocal),
    ),
    ("fec0::", Verdict::Forbidden(Why::PrivateNetwork)),
    (
        "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        Verdict::Forbidden(Why::PrivateNetwork),
    ),
    ("ff00::", Verdict::Forbidden(Why::Multicast)),
    (
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        Verdict::Forbidden(Why::Multicast),
    ),
];

#[test]
fn ranges_end_where_they_should() {
    for (ip, expected) in BOUNDARIES {
        assert_eq!(judge(Vec::new(), "docstore:8443", ip), *expected, "{ip}");
    }
}

#[test]
fn a_rule_for_all_addresses_opens_only_what_a_rule_may_open() {
    for (ip, without) in BOUNDARIES {
        let expected = match without {
            Verdict::Forbidden(
                Why::Unspecified
                | Why::LinkLocal
                | Why::CloudMetadata
                | Why::Multicast
                | Why::Broadcast
                | Why::Ipv4Mapped,
            )
            | Verdict::Public => *without,
            _ => Verdict::Private,
        };
        assert_eq!(judge(all_listed(), "docstore:8443", ip), expected, "{ip}");
    }
}

#[test]
fn an_address_listed_for_one_destination_is_not_for_another() {
    let rules = || {
        vec![
            rule("docstore:8443", &["10.1.0.0/16", "fd12::/64"]),
            rule("messaging:443", &["10.2.0.7/32"]),
            rule("docstore:8443", &["127.0.0.1/32"]),
        ]
    };
    let private = Verdict::Forbidden(Why::PrivateNetwork);
    for (to, ip, expected) in [
        ("docstore:8443", "10.1.0.0", Verdict::Private),
        ("docstore:8443", "10.1.255.255", Verdict::Private),
        ("docstore:8443", "127.0.0.1", Verdict::Private),
        ("docstore:8443", "fd12::1", Verdict::Private),
        ("docstore:8443", "10.2.0.7", private),
        ("docstore:8443", "10.0.255.255", private),
        ("docstore:8443", "fd12:0:0:1::", private),
        (
            "docstore:8443",
            "127.0.0.2",
            Verdict::Forbidden(Why::Loopback),
        ),
        ("docstore:8443", "8.8.8.8", Verdict::Public),
        ("docstore:443", "10.1.0.1", private),
        ("docstore.example:8443", "10.1.0.1", private),
        ("messaging:443", "10.2.0.7", Verdict::Private),
        ("messaging:443", "10.1.0.1", private),
        ("10.1.0.1:8443", "10.1.0.1", private),
    ] {
        assert_eq!(judge(rules(), to, ip), expected, "{to} at {ip}");
    }
}

#[test]
fn own_listeners_are_forbidden_though_listed() {
    let listeners = ["127.0.0.1:8443", "[::1]:8443", "[::ffff:9.9.9.9]:8443"];
    let listeners = listeners
        .iter()
        .map(|address| address.parse().unwrap())
        .collect();
    let policy = AddressPolicy::new(all_listed(), listeners, |_| true);
    let own = Verdict::Forbidden(Why::OwnListener);
    for (address, expected) in [
        ("127.0.0.1:8443", own),
        ("[::1]:8443", own),
        ("9.9.9.9:8443", own),
        ("127.0.0.1:8444", Verdict::Private),
        ("127.0.0.2:8443", Verdict::Private),
        ("9.9.9.10:8443", Verdict::Public),
    ] {
        let verdict = policy.judge(&destination("docstore:8443"), address.parse().unwrap());
        assert_eq!(verdict, expected, "{address}");
    }
}

#[test]
fn a_listener_on_all_addresses_forbids_every_address_of_the_machine() {
    for listener in ["0.0.0.0:8443", "[::]:8443"] {
        let policy = AddressPolicy::new(all_listed(), vec![listener.parse().unwrap()], |ip| {
            ip.is_loopback() || ip == IpAddr::from([9, 9, 9, 9])
        });
        let own = Verdict::Forbidden(Why::OwnListener);
        for (address, expected) in [
            ("127.0.0.1:8443", own),
            ("[::1]:8443", own),
            ("9.9.9.9:8443", own),
            ("9.9.9.9:443", Verdict::Public),
            ("10.0.0.1:8443", Verdict::Private),
        ] {
            let verdict = policy.judge(&destination("docstore:8443"), address.parse().unwrap());
            assert_eq!(verdict, expected, "{address} with a listener on {listener}");
        }
    }
}

#[test]
fn the_machine_has_its_loopback_addresses_and_no_documentation_address() {
    assert!(is_this_machine(IpAddr::from([127, 0, 0, 1])));
    assert!(is_this_machine(IpAddr::from([127, 9, 9, 9])));
    assert!(!is_this_machine(IpAddr::from([203, 0, 113, 7])));
}
