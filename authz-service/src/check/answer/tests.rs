use std::collections::BTreeMap;
use std::net::SocketAddr;

use permission::{Destination, Id, Identity, Spki};

use super::*;
use crate::resolver::Target;

const ID: &str = "0a1b2c3d";

fn time(micros: i64) -> Timestamp {
    Timestamp::from_unix_micros(micros).unwrap()
}

fn leave(ends_at: Timestamp) -> Leave {
    Leave {
        permission_id: Id::parse("permission-1").unwrap(),
        signing_key_id: Id::parse("org-alice").unwrap(),
        ends_at,
        target: Some(Target {
            address: "127.0.0.1:8443".parse::<SocketAddr>().unwrap(),
            private: true,
        }),
    }
}

/// An SPKI, DER.
fn spki() -> Spki {
    let certificate = testbed::ClientCertificate::for_identity("agent-alpha").unwrap();
    Spki::from_der(certificate.spki_der()).unwrap()
}

fn asked(spki: &Spki) -> Asked {
    Asked {
        identity: Some(Identity::parse("agent-alpha").unwrap()),
        spki: Some(spki.clone()),
        destination: Some("docstore:8443".parse::<Destination>().unwrap()),
        requests: Requests::Connect,
    }
}

fn headers(set: &[HeaderValueOption]) -> BTreeMap<String, String> {
    let overwrite = i32::from(HeaderAppendAction::OverwriteIfExistsOrAdd);
    let pairs = set.iter().map(|option| {
        assert_eq!(option.append_action, overwrite);
        let header = option.header.clone().unwrap();
        (header.key, header.value)
    });
    pairs.collect()
}

fn denied(response: &CheckResponse) -> &DeniedHttpResponse {
    match &response.http_response {
        Some(HttpResponse::DeniedResponse(denied)) => denied,
        other => panic!("{other:?}"),
    }
}

fn allowed(response: &CheckResponse) -> &OkHttpResponse {
    match &response.http_response {
        Some(HttpResponse::OkResponse(ok)) => ok,
        other => panic!("{other:?}"),
    }
}

/// Dynamic metadata as text.
fn metadata(response: &CheckResponse) -> BTreeMap<&str, String> {
    let fields = &response.dynamic_metadata.as_ref().unwrap().fields;
    let shown = fields.iter().map(|(key, value)| {
        let value = match value.kind.as_ref().unwrap() {
            Kind::StringValue(text) => text.clone(),
            Kind::BoolValue(flag) => flag.to_string(),
            other => panic!("{other:?}"),
        };
        (key.as_str(), value)
    });
    shown.collect()
}

#[test]
fn every_reason_has_its_status_and_proxy_error() {
    let blocked = (403, "http_request_denied", "blocked by policy");
    for (reason, (status, proxy_error, error)) in [
        (Reason::NoClientCertificate, blocked),
        (Reason::CertificateUnparseable, blocked),
        (Reason::IdentityExtensionMissing, blocked),
        (Reason::IdentityExtensionInvalid, blocked),
        (Reason::NoPermission, blocked),
        (Reason::PermissionNotYetValid, blocked),
        (Reason::PermissionExpired, blocked),
        (Reason::PermissionRevoked, blocked),
        (Reason::SigningKeyUnknown, blocked),
        (Reason::SigningKeyUntrusted, blocked),
        (Reason::SigningKeyInactive, blocked),
        (Reason::SignatureInvalid, blocked),
        (Reason::ScopeMissing, blocked),
        (Reason::ScopeUntrusted, blocked),
        (
            Reason::DestinationAddressForbidden,
            (403, "destination_ip_prohibited", "blocked by policy"),
        ),
        (
            Reason::DestinationInvalid,
            (400, "http_request_error", "malformed destination"),
        ),
        (
            Reason::MethodNotAllowed,
            (405, "http_request_error", "method not allowed"),
        ),
        (
            Reason::DestinationUnresolvable,
            (502, "dns_error", "destination not reached"),
        ),
        (
            Reason::RegistryUnavailable,
            (503, "proxy_internal_error", "no decision could be made"),
        ),
    ] {
        let response = deny(reason, &Asked::default(), ID);
        let rpc = response.status.as_ref().unwrap();
        assert_eq!((rpc.code, rpc.message.as_str()), (7, reason.code()));
        let denied = denied(&response);
        assert_eq!(denied.status.as_ref().unwrap().code, status, "{reason}");
        let body: serde_json::Value = serde_json::from_str(&denied.body).unwrap();
        let hint = body["hint"].as_str().unwrap();
        assert!(!hint.is_empty());
        assert_eq!(
            body,
            json!({"error": error, "reason": reason.code(), "decision_id": ID, "hint": hint})
        );
        let mut expected = BTreeMap::from([
            ("content-type", "application/json".to_owned()),
            ("x-agent-gateway-decision-id", ID.to_owned()),
            (
                "proxy-status",
                format!("agent-gateway; error={proxy_error}; details=\"{reason}\""),
            ),
        ]);
        if status == 405 {
            expected.insert("allow", "CONNECT".to_owned());
        }
        let headers = headers(&denied.headers);
        let headers: BTreeMap<_, _> = headers
            .iter()
            .map(|(key, value)| (key.as_str(), value.clone()))
            .collect();
        assert_eq!(headers, expected, "{reason}");
    }
}

#[test]
fn a_deny_tells_envoy_what_could_be_read() {
    let nothing = deny(Reason::NoClientCertificate, &Asked::default(), ID);
    assert_eq!(
        metadata(&nothing),
        BTreeMap::from([
            ("reason", "no_client_certificate".to_owned()),
            ("decision_id", ID.to_owned()),
        ])
    );
    let spki = spki();
    let all = deny(Reason::NoPermission, &asked(&spki), ID);
    assert_eq!(
        metadata(&all),
        BTreeMap::from([
            ("reason", "no_permission".to_owned()),
            ("decision_id", ID.to_owned()),
            ("identity", "agent-alpha".to_owned()),
            ("spki", spki.to_hex()),
            ("destination", "docstore:8443".to_owned()),
        ])
    );
}

#[test]
fn an_allow_tells_envoy_where_to_and_for_how_long() {
    let spki = spki();
    let response = allow(&leave(time(5_000_000)), &asked(&spki), time(0), ID);
    assert_eq!(response.status.as_ref().unwrap().code, 0);
    assert_eq!(
        metadata(&response),
        BTreeMap::from([
            ("reason", "allowed".to_owned()),
            ("decision_id", ID.to_owned()),
            ("identity", "agent-alpha".to_owned()),
            ("spki", spki.to_hex()),
            ("destination", "docstore:8443".to_owned()),
            ("permission_id", "permission-1".to_owned()),
            ("signing_key_id", "org-alice".to_owned()),
            ("dial", "127.0.0.1:8443".to_owned()),
            ("allow_private", "true".to_owned()),
        ])
    );
    let ok = allowed(&response);
    assert_eq!(
        headers(&ok.headers),
        BTreeMap::from([(
            "x-envoy-upstream-stream-duration-ms".to_owned(),
            "5000".to_owned()
        )])
    );
    assert_eq!(
        headers(&ok.response_headers_to_add),
        BTreeMap::from([("x-agent-gateway-decision-id".to_owned(), ID.to_owned())])
    );
}

#[test]
fn a_tunnels_duration_is_rounded_down_and_never_without_limit() {
    for (now, ends_at, millis) in [
        (0, 86_400_000_000, "86400000"),
        (0, 1_999, "1"),
        (0, 1_000, "1"),
        // 0 would mean no limit.
        (0, 999, "1"),
        (0, 1, "1"),
    ] {
        let response = allow(&leave(time(ends_at)), &Asked::default(), time(now), ID);
        let headers = headers(&allowed(&response).headers);
        assert_eq!(
            headers["x-envoy-upstream-stream-duration-ms"], millis,
            "{now} {ends_at}"
        );
    }
}

#[test]
fn the_destination_of_an_ordinary_request_is_told_who_called() {
    let spki = spki();
    let mut asked = asked(&spki);
    asked.identity = Some(Identity::parse("agent α,x").unwrap());
    let leave = leave(time(5_000_000));
    let tunnel = allow(&leave, &asked, time(0), ID);
    assert!(!headers(&allowed(&tunnel).headers).contains_key("x-agent-identity"));

    asked.requests = Requests::Http;
    let response = allow(&leave, &asked, time(0), ID);
    // In place of the client's own, which `headers` asserts of each.
    let headers = headers(&allowed(&response).headers);
    assert_eq!(headers["x-agent-identity"], "agent%20%CE%B1%2Cx");
    assert_eq!(headers["x-envoy-upstream-stream-duration-ms"], "5000");
}

#[test]
fn what_is_not_resolved_is_not_dialled() {
    let mut leave = leave(time(5_000_000));
    leave.target = None;
    let response = allow(&leave, &asked(&spki()), time(0), ID);
    let metadata = response.dynamic_metadata.unwrap().fields;
    assert!(!metadata.contains_key("dial") && !metadata.contains_key("allow_private"));
    assert!(metadata.contains_key("permission_id"));
}
