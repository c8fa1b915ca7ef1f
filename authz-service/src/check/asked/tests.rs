use std::fmt::Write as _;

use envoy_types::pb::envoy::service::auth::v3::attribute_context;
use testbed::ClientCertificate;

use permission::{ExtensionOid, certificate::MAX_PEM_BYTES};

use super::super::profiles::{IdentityFrom, ProfileOptions};
use super::*;

/// What Envoy sends about a CONNECT to `host` on a connection with this certificate.
fn connect(certificate: &str, host: &str) -> AttributeContext {
    AttributeContext {
        source: Some(attribute_context::Peer {
            certificate: certificate.to_owned(),
            ..Default::default()
        }),
        request: Some(attribute_context::Request {
            http: Some(HttpRequest {
                method: "CONNECT".to_owned(),
                host: host.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn read_now(attributes: &AttributeContext) -> (Result<Request, Reason>, Asked) {
    read_by(attributes, &ProfileOptions::default())
}

fn read_by(
    attributes: &AttributeContext,
    options: &ProfileOptions,
) -> (Result<Request, Reason>, Asked) {
    let mut asked = Asked::default();
    let profile = Profile::new(options, &ExtensionOid::default());
    let request = read(attributes, &profile, &mut asked).map_err(|denial| denial.reason);
    (request, asked)
}

fn agent() -> ClientCertificate {
    ClientCertificate::for_identity("agent-alpha").unwrap()
}

/// As Envoy writes a certificate: each byte that isn't unreserved, and here even those.
fn url_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        write!(encoded, "%{byte:02X}").unwrap();
        encoded
    })
}

#[test]
fn a_certificate_is_read_however_it_is_url_encoded() {
    let agent = agent();
    let pem = agent.pem();
    let as_envoy = pem
        .replace('+', "%2B")
        .replace(' ', "%20")
        .replace('\n', "%0A");
    // `+` is a digit of base64, never a space here.
    let plain = pem.to_owned();
    for encoded in [as_envoy, plain, url_encoded(pem)] {
        let (request, asked) = read_now(&connect(&encoded, "DocStore"));
        let request = request.unwrap();
        assert_eq!(request.identity.as_str(), "agent-alpha");
        assert_eq!(request.spki.as_der(), agent.spki_der());
        assert_eq!(request.destination.to_string(), "docstore:443");
        assert_eq!(asked.identity.unwrap(), request.identity);
        assert_eq!(asked.spki.unwrap(), request.spki);
        assert_eq!(asked.destination.unwrap(), request.destination);
    }
}

#[test]
fn what_is_no_certificate_is_unparseable() {
    let agent = agent();
    let pem = agent.pem();
    let two = format!("{pem}{}", self::agent().pem());
    let truncated = pem.get(..pem.len() / 2).unwrap();
    let long = format!("{pem}{}", "\n".repeat(MAX_PEM_BYTES));
    for certificate in [
        "garbage",
        "%",
        "%FF%FE%00",
        "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        &two,
        truncated,
        &long,
        &url_encoded(&long),
        &"%41".repeat(MAX_PEM_BYTES + 1),
    ] {
        let (request, asked) = read_now(&connect(certificate, "docstore"));
        assert_eq!(request.unwrap_err(), Reason::CertificateUnparseable);
        assert!(asked.identity.is_none() && asked.spki.is_none());
    }
}

#[test]
fn the_first_fault_is_the_one_that_is_told() {
    let agent = agent();
    let good = connect(agent.pem(), "docstore");
    assert!(read_now(&good).0.is_ok());

    let mut get = connect("", "not a host");
    get.request.as_mut().unwrap().http.as_mut().unwrap().method = "GET".to_owned();
    let no_http = AttributeContext {
        request: Some(attribute_context::Request::default()),
        ..good.clone()
    };
    let no_source = AttributeContext {
        source: None,
        ..good.clone()
    };
    for (attributes, reason) in [
        (AttributeContext::default(), Reason::MethodNotAllowed),
        (no_http, Reason::MethodNotAllowed),
        (get, Reason::MethodNotAllowed),
        (no_source, Reason::NoClientCertificate),
        (connect("", "not a host"), Reason::NoClientCertificate),
        (
            connect("garbage", "not a host"),
            Reason::CertificateUnparseable,
        ),
        (connect(agent.pem(), ""), Reason::DestinationInvalid),
        (
            connect(agent.pem(), "not a host"),
            Reason::DestinationInvalid,
        ),
        (
            connect(agent.pem(), &"a".repeat(100_000)),
            Reason::DestinationInvalid,
        ),
    ] {
        assert_eq!(read_now(&attributes).0.unwrap_err(), reason);
    }
    let (_, asked) = read_now(&connect(agent.pem(), "not a host"));
    assert_eq!(asked.identity.unwrap().as_str(), "agent-alpha");
    assert!(asked.destination.is_none());
}

#[test]
fn methods_are_compared_exactly() {
    for method in ["connect", "CONNECT ", "", "CONNECT-UDP"] {
        let mut attributes = connect(agent().pem(), "docstore");
        let http = attributes.request.as_mut().unwrap().http.as_mut().unwrap();
        method.clone_into(&mut http.method);
        assert_eq!(
            read_now(&attributes).0.unwrap_err(),
            Reason::MethodNotAllowed
        );
    }
}

#[test]
fn only_the_handshakes_certificate_says_who_asks() {
    let mut attributes = connect("", "docstore");
    let pem = agent().pem().to_owned();
    attributes.source.as_mut().unwrap().principal = "agent-alpha".to_owned();
    let http = attributes.request.as_mut().unwrap().http.as_mut().unwrap();
    let forwarded = format!("Cert=\"{}\"", url_encoded(&pem));
    http.headers
        .insert("x-forwarded-client-cert".to_owned(), forwarded);
    attributes.destination = Some(attribute_context::Peer {
        certificate: pem,
        ..Default::default()
    });
    assert_eq!(
        read_now(&attributes).0.unwrap_err(),
        Reason::NoClientCertificate
    );
}

mod mesh;
