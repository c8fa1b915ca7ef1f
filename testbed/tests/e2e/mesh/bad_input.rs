//! What no honest client of a mesh sends, and no careful operator sets up.

use rustls::version::TLS13;
use testbed::tls::{client_config, connect};
use testbed::{ClientCertificate, RawClient};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::*;

const ANY_HOST: (&str, &str) = ("domains: [docstore, \"docstore:443\"]", "domains: [\"*\"]");

/// Sends these bytes over HTTP/1.x, and reads the answer until the connection ends.
async fn http1(mesh: &Mesh, request: &str) -> String {
    let Gateway { envoy, pki, .. } = &mesh.gateway;
    let mut config = client_config(pki, Some(&mesh.agent), &[&TLS13]).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut stream = connect(envoy.addr(), config).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = timeout(
        testbed::process::PATIENCE,
        stream.read_to_string(&mut answer),
    );
    // Envoy may leave out the last TLS message.
    let _ = read.await.expect("no end");
    answer
}

#[track_caller]
fn assert_refused(answer: &str, status: u16, reason: &str) {
    let line = format!("HTTP/1.1 {status} ");
    assert!(answer.starts_with(&line), "{answer}");
    assert!(
        answer.contains(&format!("\"reason\":\"{reason}\"")),
        "{answer}"
    );
}

#[tokio::test]
async fn a_client_without_a_certificate_is_denied() {
    let mesh = Mesh::start().await;
    let Gateway { envoy, pki, .. } = &mesh.gateway;
    let mut config = client_config(pki, None, &[&TLS13]).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut stream = connect(envoy.addr(), config).await.unwrap();
    let forged = xfcc(&mesh.agent);
    let request = format!(
        "GET / HTTP/1.1\r\nhost: docstore\r\nx-forwarded-client-cert: {forged}\r\n\
         connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert_refused(&answer, 403, "no_client_certificate");
    assert_eq!(mesh.upstream.requests(), 0);
}

#[tokio::test]
async fn a_forged_xfcc_changes_nothing_where_the_option_is_off() {
    // Nor does it where Envoy forwards it as it comes.
    let forwarding = "forward_client_cert_details: ALWAYS_FORWARD_ONLY";
    let as_it_comes = [("forward_client_cert_details: SANITIZE", forwarding)];
    for replace in [&[][..], &as_it_comes] {
        let mesh = Mesh::start_with(&[], replace).await;
        let stranger = ClientCertificate::for_identity(AGENT).unwrap();
        let forged = xfcc(&mesh.agent);
        let headers = [("x-forwarded-client-cert", &*forged)];
        let answer = mesh.get(&stranger, &headers).await;
        assert_denied(&answer, 403, "no_permission");
        assert_eq!(mesh.upstream.requests(), 0);
    }
}

#[tokio::test]
async fn the_word_of_several_hops_is_refused() {
    let appending = "forward_client_cert_details: APPEND_FORWARD\n          \
                     set_current_client_cert_details: {cert: true}";
    let allowed = "{exact: upgrade}]";
    let replace = [
        ("forward_client_cert_details: SANITIZE", appending),
        (
            allowed,
            "{exact: upgrade}, {exact: x-forwarded-client-cert}]",
        ),
    ];
    let setting = [("PROFILES__MESH__CERTIFICATE", "xfcc")];
    let mesh = Mesh::start_with(&setting, &replace).await;
    // One hop: this Envoy's own word.
    let answer = mesh.get(&mesh.agent, &[]).await;
    mesh.let_through(&answer);
    let stranger = ClientCertificate::for_identity(AGENT).unwrap();
    let forged = xfcc(&mesh.agent);
    for agent in [&stranger, &mesh.agent] {
        for hop in ["By=spiffe://example.org/x;Hash=00", &forged] {
            let answer = mesh.get(agent, &[("x-forwarded-client-cert", hop)]).await;
            assert_denied(&answer, 403, "certificate_unparseable");
        }
    }
    assert_eq!(mesh.upstream.requests(), 1);
}

#[tokio::test]
async fn a_host_or_scheme_of_another_port_is_refused() {
    let mesh = Mesh::start_with(&[], &[ANY_HOST]).await;
    for uri in [
        "https://docstore:8443/",
        "https://docstore:80/",
        "http://docstore/",
        "http://docstore:80/",
        "https://docstore./",
    ] {
        let answer = mesh.get_from(&mesh.agent, uri, &[]).await;
        assert_denied(&answer, 400, "destination_invalid");
    }
    // Which nothing was signed for, so it is not what the route leads to that counts.
    let answer = mesh.get_from(&mesh.agent, "https://other/", &[]).await;
    assert_denied(&answer, 403, "no_permission");
    for uri in ["https://DocStore:443/", "http://docstore:443/"] {
        let answer = mesh.get_from(&mesh.agent, uri, &[]).await;
        mesh.let_through(&answer);
    }
    assert_eq!(mesh.upstream.requests(), 2);
}

#[tokio::test]
async fn http_1_0_without_a_host_is_refused() {
    let old = "http_protocol_options: {accept_http_10: true}\n          stat_prefix: mesh\n";
    let mesh = Mesh::start_with(&[], &[ANY_HOST, ("stat_prefix: mesh\n", old)]).await;
    let answer = http1(&mesh, "GET / HTTP/1.0\r\n\r\n").await;
    // By Envoy itself, which asks nobody; the service would say the same.
    assert!(answer.starts_with("HTTP/1.0 400 "), "{answer}");
    assert_eq!(mesh.upstream.requests(), 0);
    let answer = http1(&mesh, "GET / HTTP/1.0\r\nhost: docstore\r\n\r\n").await;
    assert!(
        answer.contains(" 200 ") && answer.ends_with("pages"),
        "{answer}"
    );
    assert_eq!(mesh.upstream.requests(), 1);
}

#[tokio::test]
async fn upgrades_are_refused() {
    let upgrades = "upgrade_configs: [{upgrade_type: websocket}]\n          stat_prefix: mesh\n";
    let mesh = Mesh::start_with(&[], &[("stat_prefix: mesh\n", upgrades)]).await;
    let request = "GET / HTTP/1.1\r\nhost: docstore\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    let answer = http1(&mesh, request).await;
    assert_refused(&answer, 403, "upgrade_not_allowed");
    assert_eq!(mesh.upstream.requests(), 0);
}

#[tokio::test]
async fn a_tunnel_is_refused_and_so_is_an_unknown_profile() {
    let tunnels = "upgrade_configs: [{upgrade_type: CONNECT}]\n          \
                   http2_protocol_options: {allow_connect: true}\n          stat_prefix: mesh\n";
    let connect = "match: {connect_matcher: {}}";
    let replace = [
        ANY_HOST,
        ("stat_prefix: mesh\n", tunnels),
        ("match: {prefix: /}", connect),
    ];
    let mesh = Mesh::start_with(&[], &replace).await;
    let Gateway { envoy, pki, .. } = &mesh.gateway;
    let client = RawClient::connect(envoy.addr(), pki, Some(&mesh.agent)).await;
    let outcome = client.unwrap().open(b"docstore:443", &[]).await.unwrap();
    assert_eq!(outcome.status(), Some(405), "{outcome:?}");

    let other = [("{profile: mesh}", "{profile: other}")];
    let mesh = Mesh::start_with(&[], &other).await;
    let answer = mesh.get(&mesh.agent, &[]).await;
    assert_denied(&answer, 403, "profile_unknown");
    // And where none is named, the one for tunnels counts.
    let none = [("{context_extensions: {profile: mesh}}", "{}")];
    let mesh = Mesh::start_with(&[], &none).await;
    let answer = mesh.get(&mesh.agent, &[]).await;
    assert_denied(&answer, 405, "method_not_allowed");
    assert_eq!(mesh.upstream.requests(), 0);
}
