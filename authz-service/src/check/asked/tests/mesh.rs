//! Ordinary requests, as Envoys of a mesh ask about them.

use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue};

use super::*;

fn mesh() -> ProfileOptions {
    ProfileOptions {
        requests: Requests::Http,
        ..ProfileOptions::default()
    }
}

fn by_xfcc() -> ProfileOptions {
    ProfileOptions {
        certificate: CertificateFrom::Xfcc,
        ..mesh()
    }
}

/// A GET of `scheme` at `host`.
fn get(certificate: &str, scheme: &str, host: &str) -> AttributeContext {
    let mut attributes = connect(certificate, host);
    let http = http_mut(&mut attributes);
    http.method = "GET".to_owned();
    http.scheme = scheme.to_owned();
    http.path = "/".to_owned();
    attributes
}

fn http_mut(attributes: &mut AttributeContext) -> &mut HttpRequest {
    let request = attributes.request.as_mut().unwrap();
    request.http.as_mut().unwrap()
}

fn with_header(mut attributes: AttributeContext, name: &str, value: &str) -> AttributeContext {
    let headers = &mut http_mut(&mut attributes).headers;
    headers.insert(name.to_owned(), value.to_owned());
    attributes
}

#[test]
fn the_port_is_the_hosts_or_the_schemes_and_one_of_the_profiles() {
    let agent = agent();
    let options = |ports: &[u16]| ProfileOptions {
        ports: ports.to_vec(),
        ..mesh()
    };
    for (scheme, host, ports, expected) in [
        ("https", "DocStore", &[443][..], Ok("docstore:443")),
        ("https", "docstore:443", &[443], Ok("docstore:443")),
        ("http", "docstore", &[80], Ok("docstore:80")),
        ("http", "docstore", &[443, 80], Ok("docstore:80")),
        ("https", "docstore:8443", &[443, 8443], Ok("docstore:8443")),
        ("https", "[fd00::1]", &[443], Ok("[fd00::1]:443")),
        // A host or a scheme that disagrees with the ports that are served.
        (
            "https",
            "docstore:8443",
            &[443],
            Err(Reason::DestinationInvalid),
        ),
        (
            "https",
            "docstore:80",
            &[443],
            Err(Reason::DestinationInvalid),
        ),
        ("http", "docstore", &[443], Err(Reason::DestinationInvalid)),
        (
            "http",
            "docstore:443",
            &[80],
            Err(Reason::DestinationInvalid),
        ),
        (
            "ftp",
            "docstore:443",
            &[443],
            Err(Reason::DestinationInvalid),
        ),
        ("", "docstore:443", &[443], Err(Reason::DestinationInvalid)),
        ("https", "", &[443], Err(Reason::DestinationInvalid)),
        (
            "https",
            "docstore:",
            &[443],
            Err(Reason::DestinationInvalid),
        ),
        (
            "https",
            "user@docstore",
            &[443],
            Err(Reason::DestinationInvalid),
        ),
        (
            "https",
            "docstore.",
            &[443],
            Err(Reason::DestinationInvalid),
        ),
    ] {
        let (request, asked) = read_by(&get(agent.pem(), scheme, host), &options(ports));
        let request = request.map(|request| request.destination.to_string());
        assert_eq!(
            request,
            expected.map(str::to_owned),
            "{scheme}://{host} {ports:?}"
        );
        assert_eq!(asked.identity.unwrap().as_str(), "agent-alpha");
    }
}

#[test]
fn each_kind_of_profile_answers_its_own_requests() {
    let agent = agent();
    let tunnel = connect(agent.pem(), "docstore:443");
    assert_eq!(read_by(&tunnel, &mesh()).0, Err(Reason::MethodNotAllowed));
    let request = get(agent.pem(), "https", "docstore");
    assert_eq!(read_now(&request).0, Err(Reason::MethodNotAllowed));
    for method in ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"] {
        let mut request = request.clone();
        method.clone_into(&mut http_mut(&mut request).method);
        assert!(read_by(&request, &mesh()).0.is_ok(), "{method}");
    }
    let mut without = request;
    http_mut(&mut without).method.clear();
    assert_eq!(read_by(&without, &mesh()).0, Err(Reason::MethodNotAllowed));
}

#[test]
fn an_upgrade_is_refused() {
    let agent = agent();
    let request = get(agent.pem(), "https", "docstore");
    for protocol in ["websocket", "h2c", ""] {
        let upgrade = with_header(request.clone(), "upgrade", protocol);
        assert_eq!(read_by(&upgrade, &mesh()).0, Err(Reason::UpgradeNotAllowed));
        let mut raw = request.clone();
        http_mut(&mut raw).header_map = Some(HeaderMap {
            headers: vec![HeaderValue {
                key: "upgrade".to_owned(),
                raw_value: protocol.as_bytes().to_vec(),
                ..HeaderValue::default()
            }],
        });
        assert_eq!(read_by(&raw, &mesh()).0, Err(Reason::UpgradeNotAllowed));
    }
}

#[test]
fn a_forwarded_certificate_counts_only_where_the_profile_says_so() {
    let (agent, other) = (
        agent(),
        ClientCertificate::for_identity("agent-beta").unwrap(),
    );
    let forwarded = format!("Hash=00;Cert=\"{}\"", url_encoded(agent.pem()));
    let name = "x-forwarded-client-cert";
    let direct = get("", "https", "docstore");
    let request = with_header(direct.clone(), name, &forwarded);
    let read = read_by(&request, &by_xfcc()).0.unwrap();
    assert_eq!(read.identity.as_str(), "agent-alpha");
    assert_eq!(read.spki.as_der(), agent.spki_der());

    // Forged, with the option off: the connection's certificate is what counts, or nothing does.
    assert_eq!(
        read_by(&request, &mesh()).0,
        Err(Reason::NoClientCertificate)
    );
    let both = get(other.pem(), "https", "docstore");
    let both = with_header(both, name, &forwarded);
    assert_eq!(
        read_by(&both, &mesh()).0.unwrap().identity.as_str(),
        "agent-beta"
    );
    // And with the option on, that of the hop in front does not.
    assert_eq!(
        read_by(&both, &by_xfcc()).0.unwrap().identity.as_str(),
        "agent-alpha"
    );

    let only_ours = get(agent.pem(), "https", "docstore");
    let read = read_by(&only_ours, &by_xfcc()).0;
    assert_eq!(read, Err(Reason::NoClientCertificate));
    for (header, reason) in [
        ("Hash=00".to_owned(), Reason::NoClientCertificate),
        ("Cert=\"\"".to_owned(), Reason::NoClientCertificate),
        (
            format!("{forwarded},{forwarded}"),
            Reason::CertificateUnparseable,
        ),
        (
            format!("Hash=1,{forwarded}"),
            Reason::CertificateUnparseable,
        ),
        (
            format!("{forwarded};{forwarded}"),
            Reason::CertificateUnparseable,
        ),
        (
            "Cert=\"nonsense\"".to_owned(),
            Reason::CertificateUnparseable,
        ),
        (String::new(), Reason::CertificateUnparseable),
    ] {
        let request = with_header(direct.clone(), name, &header);
        assert_eq!(read_by(&request, &by_xfcc()).0, Err(reason), "{header}");
    }
}

#[test]
fn two_headers_are_two_hops_also_where_they_are_sent_raw() {
    let forwarded = format!("Cert=\"{}\"", url_encoded(agent().pem()));
    let header = |value: &str| HeaderValue {
        key: "x-forwarded-client-cert".to_owned(),
        raw_value: value.as_bytes().to_vec(),
        ..HeaderValue::default()
    };
    let mut request = get("", "https", "docstore");
    for (headers, expected) in [
        (vec![header(&forwarded)], Ok("agent-alpha".to_owned())),
        (
            vec![header(&forwarded), header(&forwarded)],
            Err(Reason::CertificateUnparseable),
        ),
        (vec![], Err(Reason::NoClientCertificate)),
    ] {
        http_mut(&mut request).header_map = Some(HeaderMap { headers });
        let read = read_by(&request, &by_xfcc()).0;
        assert_eq!(read.map(|request| request.identity.to_string()), expected);
    }
}

#[test]
fn of_a_forwarded_chain_the_leaf_counts() {
    let agent = agent();
    let ca = ClientCertificate::for_identity("ca").unwrap();
    let chain = url_encoded(&format!("{}{}", agent.pem(), ca.pem()));
    let request = get("", "https", "docstore");
    let request = with_header(
        request,
        "x-forwarded-client-cert",
        &format!("Chain=\"{chain}\""),
    );
    let read = read_by(&request, &by_xfcc()).0.unwrap();
    assert_eq!(read.spki.as_der(), agent.spki_der());
}

#[test]
fn the_identity_is_where_the_profile_looks() {
    let agent = agent();
    let request = get(agent.pem(), "https", "docstore");
    for (identity, expected) in [
        (IdentityFrom::Extension, Ok("agent-alpha")),
        (
            IdentityFrom::SpiffeId,
            Err(Reason::IdentityExtensionMissing),
        ),
        // That of each such certificate.
        (IdentityFrom::CommonName, Ok("agent")),
    ] {
        let options = ProfileOptions { identity, ..mesh() };
        let read = read_by(&request, &options).0;
        let read = read.map(|request| request.identity.to_string());
        assert_eq!(read, expected.map(str::to_owned));
    }
}
