//! The resolver against a real hosts file and a DNS server with chosen answers.

mod name_servers;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use testbed::DnsServer;
use testbed::dns::Answer;

use crate::addresses::PrivateRule;

use super::*;

const NX_DOMAIN: ResolveError = ResolveError::Unresolvable(Absence::NxDomain);
const NO_RECORDS: ResolveError = ResolveError::Unresolvable(Absence::NoRecords);

/// A DNS server, a hosts file, and what is resolved with them.
struct Fixture {
    server: DnsServer,
    options: DnsOptions,
    has_ipv6_route: fn() -> bool,
    policy: AddressPolicy,
    _hosts: tempfile::NamedTempFile,
}

impl Fixture {
    async fn new(hosts: &str) -> Self {
        let server = DnsServer::start().await.unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), hosts).unwrap();
        let options = DnsOptions {
            hosts_file: Some(file.path().to_owned()),
            nameservers: vec![server.addr()],
            timeout: Duration::from_secs(20),
            ..DnsOptions::default()
        };
        let rule = PrivateRule {
            destination: destination("docstore:8443"),
            cidrs: vec!["10.0.0.0/8".parse().unwrap(), "fd12::/16".parse().unwrap()],
        };
        let policy = AddressPolicy::new(vec![rule], Vec::new(), |_| false);
        Self {
            server,
            options,
            has_ipv6_route: || false,
            policy,
            _hosts: file,
        }
    }

    /// With a DNS server that knows these names.
    async fn with_names(names: &[(&str, &[&str])]) -> Self {
        let fixture = Self::new("").await;
        for (name, addresses) in names {
            fixture
                .server
                .answer(name, Answer::Addresses(ips(addresses)));
        }
        fixture
    }

    fn resolver(&self) -> Resolver {
        Resolver::with_ipv6_route(&self.options, self.has_ipv6_route).unwrap()
    }

    /// What a fresh resolver says, once.
    async fn resolve(&self, to: &str) -> Result<Target, ResolveError> {
        self.ask(&self.resolver(), to).await
    }

    async fn ask(&self, resolver: &Resolver, to: &str) -> Result<Target, ResolveError> {
        resolver.resolve(&destination(to), &self.policy).await
    }
}

fn destination(text: &str) -> Destination {
    text.parse().unwrap()
}

fn ips(addresses: &[&str]) -> Vec<IpAddr> {
    addresses
        .iter()
        .map(|address| address.parse().unwrap())
        .collect()
}

fn public(address: &str) -> Target {
    Target {
        address: address.parse().unwrap(),
        private: false,
    }
}

fn private(address: &str) -> Target {
    Target {
        address: address.parse().unwrap(),
        private: true,
    }
}

fn forbidden(address: &str, why: Why) -> Result<Target, ResolveError> {
    Err(ResolveError::AllForbidden {
        address: address.parse().unwrap(),
        why,
    })
}

#[tokio::test]
async fn names_resolve_whatever_their_case() {
    let fixture = Fixture::with_names(&[("Api.Example.com", &["9.9.9.9"])]).await;
    assert_eq!(
        fixture.resolve("API.example.COM").await,
        Ok(public("9.9.9.9:443"))
    );
    assert_eq!(
        fixture.resolve("api.example.com:8443").await,
        Ok(public("9.9.9.9:8443"))
    );
}

#[tokio::test]
async fn a_name_in_the_hosts_file_is_not_asked_of_dns_for_either_family() {
    let fixture = Fixture::new("10.0.0.5 DocStore\n9.9.9.9 pinned.example\n").await;
    for name in ["docstore", "pinned.example"] {
        fixture
            .server
            .answer(name, Answer::Addresses(ips(&["8.8.8.8", "2600::8"])));
    }
    assert_eq!(
        fixture.resolve("docstore:8443").await,
        Ok(private("10.0.0.5:8443"))
    );
    assert_eq!(
        fixture.resolve("pinned.example").await,
        Ok(public("9.9.9.9:443"))
    );
    assert_eq!(fixture.server.queries("docstore"), 0);
    assert_eq!(fixture.server.queries("pinned.example"), 0);
}

#[tokio::test]
async fn a_pinned_name_with_a_forbidden_address_does_not_fall_back_to_dns() {
    let fixture = Fixture::new("10.0.0.5 docstore\n").await;
    fixture
        .server
        .answer("docstore", Answer::Addresses(ips(&["8.8.8.8"])));
    let expected = forbidden("10.0.0.5", Why::PrivateNetwork);
    assert_eq!(fixture.resolve("docstore:443").await, expected);
}

#[tokio::test]
async fn a_single_label_is_asked_as_it_is() {
    let fixture = Fixture::with_names(&[
        ("docstore", &["10.0.0.6"]),
        ("docstore.local", &["9.9.9.9"]),
    ])
    .await;
    assert_eq!(
        fixture.resolve("docstore:8443").await,
        Ok(private("10.0.0.6:8443"))
    );
    assert_eq!(fixture.resolve("messaging").await, Err(NX_DOMAIN));
}

#[tokio::test]
async fn literals_are_judged_without_dns() {
    let mut fixture = Fixture::new("").await;
    let rule = PrivateRule {
        destination: destination("10.0.0.5:8443"),
        cidrs: vec!["10.0.0.5/32".parse().unwrap()],
    };
    fixture.policy = AddressPolicy::new(vec![rule], Vec::new(), |_| false);
    for (to, expected) in [
        ("9.9.9.9", Ok(public("9.9.9.9:443"))),
        ("[::ffff:9.9.9.9]:80", Ok(public("9.9.9.9:80"))),
        ("[2600::8]:8443", Ok(public("[2600::8]:8443"))),
        ("10.0.0.5:8443", Ok(private("10.0.0.5:8443"))),
        ("[::ffff:10.0.0.5]:8443", Ok(private("10.0.0.5:8443"))),
        ("10.0.0.5:443", forbidden("10.0.0.5", Why::PrivateNetwork)),
        ("10.0.0.6:8443", forbidden("10.0.0.6", Why::PrivateNetwork)),
        ("[::1]:443", forbidden("::1", Why::Loopback)),
        (
            "169.254.169.254:80",
            forbidden("169.254.169.254", Why::CloudMetadata),
        ),
        (
            "[64:ff9b::a00:5]:8443",
            forbidden("64:ff9b::a00:5", Why::Ipv4Translation),
        ),
    ] {
        assert_eq!(fixture.resolve(to).await, expected, "{to}");
    }
}

#[tokio::test]
async fn localhost_needs_a_rule_like_any_other_name() {
    let fixture = Fixture::new("").await;
    for to in ["localhost:8443", "x.localhost:8443"] {
        assert_eq!(
            fixture.resolve(to).await,
            forbidden("127.0.0.1", Why::Loopback),
            "{to}"
        );
    }
}

#[tokio::test]
async fn bad_addresses_are_dropped_from_mixed_answers() {
    let mixed: &[&str] = &[
        "169.254.169.254",
        "10.0.0.5",
        "9.9.9.9",
        "127.0.0.1",
        "::1",
        "fd00:ec2::254",
    ];
    let fixture = Fixture::with_names(&[("mixed.example", mixed), ("docstore", mixed)]).await;
    let resolver = fixture.resolver();
    for _ in 0..6 {
        assert_eq!(
            fixture.ask(&resolver, "mixed.example").await,
            Ok(public("9.9.9.9:443"))
        );
    }
    // The same answer for a destination with a rule.
    assert_eq!(
        fixture.ask(&resolver, "docstore:8443").await,
        Ok(public("9.9.9.9:8443"))
    );
    assert_eq!(
        fixture.ask(&resolver, "docstore:8443").await,
        Ok(private("10.0.0.5:8443"))
    );
    assert_eq!(
        fixture.ask(&resolver, "docstore:8443").await,
        Ok(public("9.9.9.9:8443"))
    );
}

#[tokio::test]
async fn a_good_address_of_the_other_family_is_found_behind_bad_ones() {
    let fixture = Fixture::with_names(&[
        ("six.example", &["10.0.0.5", "2600::8"]),
        ("four.example", &["9.9.9.9", "fd00:ec2::254"]),
    ])
    .await;
    assert_eq!(
        fixture.resolve("six.example").await,
        Ok(public("[2600::8]:443"))
    );
    let fixture = Fixture {
        has_ipv6_route: || true,
        ..fixture
    };
    assert_eq!(
        fixture.resolve("four.example").await,
        Ok(public("9.9.9.9:443"))
    );
}

#[tokio::test]
async fn a_name_with_forbidden_addresses_alone_is_forbidden() {
    let fixture = Fixture::with_names(&[
        ("metadata.example", &["169.254.169.254"]),
        ("private.example", &["10.0.0.5"]),
        ("six.example", &["fe80::1"]),
        ("mapped.example", &["::ffff:9.9.9.9"]),
        ("docstore", &["::ffff:10.0.0.5"]),
    ])
    .await;
    for (to, expected) in [
        (
            "metadata.example",
            forbidden("169.254.169.254", Why::CloudMetadata),
        ),
        (
            "private.example",
            forbidden("10.0.0.5", Why::PrivateNetwork),
        ),
        ("six.example", forbidden("fe80::1", Why::LinkLocal)),
        (
            "mapped.example",
            forbidden("::ffff:9.9.9.9", Why::Ipv4Mapped),
        ),
        (
            "docstore:8443",
            forbidden("::ffff:10.0.0.5", Why::Ipv4Mapped),
        ),
    ] {
        assert_eq!(fixture.resolve(to).await, expected, "{to}");
    }
}

#[tokio::test]
async fn a_name_that_moves_is_judged_again() {
    let fixture = Fixture::new("").await;
    let steps = [["9.9.9.9"], ["169.254.169.254"], ["127.0.0.1"], ["9.9.9.8"]];
    let steps = steps.iter().map(|step| ips(step)).collect();
    fixture
        .server
        .answer("moving.example", Answer::Sequence(steps));
    let resolver = fixture.resolver();
    for expected in [
        Ok(public("9.9.9.9:443")),
        forbidden("169.254.169.254", Why::CloudMetadata),
        forbidden("127.0.0.1", Why::Loopback),
        Ok(public("9.9.9.8:443")),
    ] {
        assert_eq!(fixture.ask(&resolver, "moving.example").await, expected);
    }
}

#[tokio::test]
async fn an_answer_is_kept_for_its_ttl_but_judged_each_time() {
    let fixture = Fixture::new("").await;
    fixture.server.set_ttl(3600);
    let steps = vec![ips(&["10.0.0.5"]), ips(&["10.0.0.6"])];
    fixture.server.answer("docstore", Answer::Sequence(steps));
    let resolver = fixture.resolver();
    assert_eq!(
        fixture.ask(&resolver, "docstore:8443").await,
        Ok(private("10.0.0.5:8443"))
    );
    assert_eq!(
        fixture.ask(&resolver, "docstore:8443").await,
        Ok(private("10.0.0.5:8443"))
    );
    let other_port = forbidden("10.0.0.5", Why::PrivateNetwork);
    assert_eq!(fixture.ask(&resolver, "docstore:443").await, other_port);
}

#[tokio::test]
async fn an_answer_is_kept_no_longer_than_the_cap() {
    let mut fixture = Fixture::new("").await;
    fixture.options.max_ttl = Duration::ZERO;
    fixture.server.set_ttl(3600);
    let steps = vec![ips(&["9.9.9.9"]), ips(&["9.9.9.8"])];
    fixture
        .server
        .answer("api.example", Answer::Sequence(steps));
    let resolver = fixture.resolver();
    assert_eq!(
        fixture.ask(&resolver, "api.example").await,
        Ok(public("9.9.9.9:443"))
    );
    assert_eq!(
        fixture.ask(&resolver, "api.example").await,
        Ok(public("9.9.9.8:443"))
    );
}

#[tokio::test]
async fn ipv4_comes_first_without_an_ipv6_route_and_ipv6_with_one() {
    let both: &[&str] = &["2600::8", "9.9.9.9"];
    let mut fixture =
        Fixture::with_names(&[("both.example", both), ("six.example", &both[..1])]).await;
    assert_eq!(
        fixture.resolve("both.example").await,
        Ok(public("9.9.9.9:443"))
    );
    assert_eq!(
        fixture.resolve("six.example").await,
        Ok(public("[2600::8]:443"))
    );
    fixture.has_ipv6_route = || true;
    assert_eq!(
        fixture.resolve("both.example").await,
        Ok(public("[2600::8]:443"))
    );
}

#[tokio::test]
async fn addresses_in_the_hosts_file_come_in_the_same_order() {
    let mut fixture = Fixture::new("2600::8 both.example\n9.9.9.9 both.example\n").await;
    assert_eq!(
        fixture.resolve("both.example").await,
        Ok(public("9.9.9.9:443"))
    );
    fixture.has_ipv6_route = || true;
    assert_eq!(
        fixture.resolve("both.example").await,
        Ok(public("[2600::8]:443"))
    );
}

#[tokio::test]
async fn each_call_takes_the_next_address() {
    let fixture = Fixture::with_names(&[
        ("one.example", &["9.9.9.3", "9.9.9.1", "9.9.9.2", "2600::8"]),
        ("two.example", &["9.9.9.5", "9.9.9.4"]),
    ])
    .await;
    let resolver = fixture.resolver();
    for (one, two) in [
        ("9.9.9.1:443", "9.9.9.4:443"),
        ("9.9.9.2:443", "9.9.9.5:443"),
    ] {
        assert_eq!(fixture.ask(&resolver, "one.example").await, Ok(public(one)));
        assert_eq!(fixture.ask(&resolver, "two.example").await, Ok(public(two)));
    }
    assert_eq!(
        fixture.ask(&resolver, "one.example").await,
        Ok(public("9.9.9.3:443"))
    );
    assert_eq!(
        fixture.ask(&resolver, "one.example").await,
        Ok(public("9.9.9.1:443"))
    );
}

#[tokio::test]
async fn only_so_many_addresses_of_an_answer_are_looked_at() {
    let fixture = Fixture::new("").await;
    let many = (0..=39)
        .map(|last| IpAddr::V4(Ipv4Addr::new(9, 9, 9, last)))
        .collect();
    fixture
        .server
        .answer("many.example", Answer::Addresses(many));
    let resolver = fixture.resolver();
    let mut seen = BTreeSet::new();
    for _ in 0..80 {
        seen.insert(
            fixture
                .ask(&resolver, "many.example")
                .await
                .unwrap()
                .address
                .ip(),
        );
    }
    assert_eq!(seen.len(), MAX_ADDRESSES);
}

#[tokio::test]
async fn what_does_not_exist_is_told_apart_from_what_has_no_address() {
    let fixture = Fixture::with_names(&[("empty.example", &[])]).await;
    assert_eq!(fixture.resolve("nothing.example").await, Err(NX_DOMAIN));
    assert_eq!(fixture.resolve("empty.example").await, Err(NO_RECORDS));
}

#[test]
fn of_two_errors_the_one_that_says_more_is_told() {
    let forbidden = forbidden("10.0.0.5", Why::PrivateNetwork).unwrap_err();
    let told = [
        NO_RECORDS,
        ResolveError::ServerFailure,
        ResolveError::TimedOut,
        NX_DOMAIN,
        forbidden,
    ];
    assert!(told.is_sorted_by_key(|error| error.weight()));
}
