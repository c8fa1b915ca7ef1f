//! Certificates that name nobody, or somebody else.

use testbed::certificate::{printable_string, utf8_string};
use testbed::gateway::AGENT;
use testbed::raw::Outcome;
use testbed::{ClientCertificate, RawClient};

use super::{Scene, assert_denied};

#[tokio::test]
async fn without_a_certificate_the_connection_is_closed() {
    let scene = Scene::granted().await;
    let gateway = &scene.gateway;
    let mut client = RawClient::connect(gateway.envoy.addr(), &gateway.pki, None)
        .await
        .unwrap();
    let outcome = client
        .open(scene.destination.as_bytes(), &[])
        .await
        .unwrap();
    assert!(
        matches!(outcome, Outcome::ConnectionClosed(_)),
        "{outcome:?}"
    );
    assert_eq!(scene.service.connections(), 0);
}

#[tokio::test]
async fn the_right_identity_with_another_key_is_a_stranger() {
    let scene = Scene::granted().await;
    let stranger = ClientCertificate::for_identity(AGENT).unwrap();
    let answer = scene
        .gateway
        .connect(&stranger, &scene.destination)
        .await
        .unwrap();
    assert_denied(&answer, 403, "no_permission");
    assert_eq!(scene.connect().await.status, 200);
}

#[tokio::test]
async fn the_right_key_with_another_identity_is_a_stranger() {
    let scene = Scene::granted().await;
    for identity in [
        "agent-beta",
        "Agent-alpha",
        "agent-alpha ",
        "agent-alpha\u{0}",
    ] {
        let other = ClientCertificate::builder()
            .identity(identity)
            .key(scene.agent.key_pkcs8_der())
            .build()
            .unwrap();
        assert_eq!(other.spki_der(), scene.agent.spki_der());
        let answer = scene
            .gateway
            .connect(&other, &scene.destination)
            .await
            .unwrap();
        let reason = if identity.contains('\0') {
            "identity_extension_invalid"
        } else {
            "no_permission"
        };
        assert_denied(&answer, 403, reason);
    }
}

#[tokio::test]
async fn the_extension_must_be_exactly_one_utf8_string() {
    let scene = Scene::granted().await;
    let trailing = [utf8_string(AGENT), b"!".to_vec()].concat();
    let two_in_one = [utf8_string(AGENT), utf8_string("agent-beta")].concat();
    let twice_in_one = [utf8_string(AGENT), utf8_string(AGENT)].concat();
    let values: [(&[Vec<u8>], &str); 10] = [
        (&[], "identity_extension_missing"),
        (&[printable_string(AGENT)], "identity_extension_invalid"),
        (&[trailing], "identity_extension_invalid"),
        (&[two_in_one], "identity_extension_invalid"),
        (&[twice_in_one], "identity_extension_invalid"),
        (
            &[utf8_string(AGENT), utf8_string(AGENT)],
            "identity_extension_invalid",
        ),
        (
            &[utf8_string(AGENT), utf8_string("agent-beta")],
            "identity_extension_invalid",
        ),
        (&[utf8_string("")], "identity_extension_invalid"),
        (&[Vec::new()], "identity_extension_invalid"),
        (
            &[utf8_string(&"a".repeat(3000))],
            "identity_extension_invalid",
        ),
    ];
    for (values, reason) in values {
        let mut builder = ClientCertificate::builder().key(scene.agent.key_pkcs8_der());
        for value in values {
            builder = builder.extension_value(value);
        }
        let agent = builder.build().unwrap();
        let answer = scene
            .gateway
            .connect(&agent, &scene.destination)
            .await
            .unwrap();
        assert_denied(&answer, 403, reason);
    }
    assert_eq!(scene.service.connections(), 0);
}

#[tokio::test]
async fn an_expired_certificate_is_a_carrier_like_any_other() {
    let scene = Scene::granted().await;
    for validity in [((2001, 1, 1), (2002, 1, 1)), ((2090, 1, 1), (2091, 1, 1))] {
        let agent = ClientCertificate::builder()
            .identity(AGENT)
            .key(scene.agent.key_pkcs8_der())
            .validity(validity.0, validity.1)
            .build()
            .unwrap();
        let answer = scene
            .gateway
            .connect(&agent, &scene.destination)
            .await
            .unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[tokio::test]
async fn a_forged_forwarded_certificate_changes_nothing() {
    let scene = Scene::granted().await;
    let gateway = &scene.gateway;
    let stranger = ClientCertificate::for_identity(AGENT).unwrap();
    let encoded = scene
        .agent
        .pem()
        .replace('\n', "%0A")
        .replace(' ', "%20")
        .replace('+', "%2B");
    let forged = format!("Hash=00;Cert=\"{encoded}\";Subject=\"CN=agent\"");
    let headers = [("x-forwarded-client-cert", forged.as_bytes())];
    let mut client = RawClient::connect(gateway.envoy.addr(), &gateway.pki, Some(&stranger))
        .await
        .unwrap();
    let outcome = client
        .open(scene.destination.as_bytes(), &headers)
        .await
        .unwrap();
    assert_eq!(outcome.status(), Some(403), "{outcome:?}");
    assert_eq!(scene.service.connections(), 0);
}
