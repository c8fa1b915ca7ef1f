//! Between Envoy and the service: mTLS, or a Unix socket.

use std::path::Path;
use std::time::Duration;

use testbed::ca::{Ca, Issued};
use testbed::process::Signal;
use testbed::{Envoy, EnvoyOptions, scratch};
use tokio::time::{sleep, timeout};

use super::open_tunnels::{PATIENCE, ends, lives, settings};
use super::{Scene, assert_undecided};

/// The service's name in `envoy/mesh/authorization-mtls.yaml`.
const NAME: &str = "authz.example.internal";
const REVOKE: &str = "UPDATE permission_registry SET revoked_at = now()";

/// A gateway whose Envoy and service prove to each other who they are.
struct Mtls {
    scene: Scene,
    /// For both.
    ca: Ca,
    server: Issued,
    envoy: Issued,
}

impl Mtls {
    async fn start() -> Self {
        let ca = Ca::new("service CA").unwrap();
        let server = ca.issue("authz", &[NAME]).unwrap();
        let envoy = ca.issue("envoy", &["envoy.example.internal"]).unwrap();
        let scene = Scene::start_with(settings(&[
            ("SERVER__TLS__CERT", text(&server.certificate)),
            ("SERVER__TLS__KEY", text(&server.key)),
            ("SERVER__TLS__CLIENT_CA", text(&ca.file())),
            ("SERVER__TLS__CLIENT_NAMES", "[\"envoy.example.internal\"]"),
        ]));
        let mut mtls = Self {
            scene: scene.await,
            ca,
            server,
            envoy,
        };
        mtls.scene.allow();
        mtls.scene.gateway.envoy = mtls.envoy(&[]).await;
        mtls
    }

    /// An Envoy with the documented cluster, in which these texts are others.
    async fn envoy(&self, changed: &[(&str, &str)]) -> Envoy {
        let address = self.scene.gateway.authz.grpc_addr();
        let there = format!(
            "{{address: {}, port_value: {}}}",
            address.ip(),
            address.port()
        );
        let mut replace = changed.to_vec();
        let ca = self.ca.file();
        // What a test has changed is not there to be replaced any more.
        for (theirs, ours) in [
            (
                "{address: authz.example.internal, port_value: 50051}",
                &*there,
            ),
            ("certs/envoy.pem", text(&self.envoy.certificate)),
            ("certs/envoy-key.pem", text(&self.envoy.key)),
            ("certs/authz-ca.pem", text(&ca)),
        ] {
            if !changed.iter().any(|(changed, _)| changed.contains(theirs)) {
                replace.push((theirs, ours));
            }
        }
        let gateway = &self.scene.gateway;
        let envoy = Envoy::start(EnvoyOptions {
            authorization: Some(("authorization-mtls.yaml", &replace)),
            ..EnvoyOptions::new(address, &gateway.pki)
        });
        envoy.await.unwrap()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn over_mtls_tunnels_are_opened_and_cut() {
    let mtls = Mtls::start().await;
    let scene = &mtls.scene;
    let tunnel = scene.open().await;
    scene.gateway.database.execute(REVOKE).unwrap();
    ends(tunnel).await;
    scene.cut_for("permission_revoked").await;
}

#[tokio::test]
async fn over_a_socket_tunnels_are_opened_and_cut() {
    let folder = scratch::folder("service").unwrap();
    let path = folder.path().join("authz.sock");
    let mut scene = Scene::granted_with("SERVER__SOCKET", text(&path)).await;
    let gateway = &mut scene.gateway;
    let here = [("/run/agent-gateway/authz.sock", text(&path))];
    let envoy = Envoy::start(EnvoyOptions {
        authorization: Some(("authorization-socket.yaml", &here)),
        ..EnvoyOptions::new(gateway.authz.grpc_addr(), &gateway.pki)
    });
    gateway.envoy = envoy.await.unwrap();
    let tunnel = scene.open().await;
    scene.gateway.database.execute(REVOKE).unwrap();
    ends(tunnel).await;
    scene.cut_for("permission_revoked").await;
    scene.gateway.authz.process().kill();
    assert_undecided(&scene.connect().await, 503, "registry_unavailable");
}

#[tokio::test]
async fn a_certificate_that_is_rolled_over_cuts_no_tunnel() {
    let mut mtls = Mtls::start().await;
    let mut tunnel = mtls.scene.open().await;
    // The next CA signs both: what is trusted is rolled over too.
    let next = Ca::new("next CA").unwrap();
    let (server, envoy) = (
        next.issue("authz", &[NAME]).unwrap(),
        next.issue("envoy", &["envoy.example.internal"]).unwrap(),
    );
    for (from, to) in [
        (next.file(), mtls.ca.file()),
        (server.certificate, mtls.server.certificate.clone()),
        (server.key, mtls.server.key.clone()),
    ] {
        std::fs::copy(from, to).unwrap();
    }
    let process = mtls.scene.gateway.authz.process();
    process.signal(Signal::HUP).unwrap();
    process.wait_for_log("was loaded anew").unwrap();

    // Beside the Envoy that was there, one that knows only what is new.
    mtls.envoy = envoy;
    let other = mtls.envoy(&[]).await;
    let before = std::mem::replace(&mut mtls.scene.gateway.envoy, other);
    let second = mtls.scene.open().await;
    assert!(lives(&mut tunnel).await);
    mtls.scene.gateway.database.execute(REVOKE).unwrap();
    for tunnel in [tunnel, second] {
        ends(tunnel).await;
    }
    drop(before);
}

#[tokio::test]
async fn an_envoy_that_nobody_vouches_for_gets_no_decision() {
    let mut mtls = Mtls::start().await;
    let others = Ca::new("service CA").unwrap();
    let stranger = others.issue("envoy", &["envoy.example.internal"]).unwrap();
    let other_name = mtls.ca.issue("other", &["other.example.internal"]).unwrap();
    let shows = |certificate: &Issued| {
        [
            ("certs/envoy.pem", text(&certificate.certificate).to_owned()),
            ("certs/envoy-key.pem", text(&certificate.key).to_owned()),
        ]
    };
    let none = [(
        "          tls_certificates:\n          - certificate_chain: {filename: \
         certs/envoy.pem}\n            private_key: {filename: certs/envoy-key.pem}\n",
        String::new(),
    )];
    for changed in [&shows(&stranger)[..], &shows(&other_name), &none] {
        let changed: Vec<_> = changed.iter().map(|(was, is)| (*was, &**is)).collect();
        mtls.scene.gateway.envoy = mtls.envoy(&changed).await;
        let answer = mtls.scene.connect().await;
        assert_undecided(&answer, 503, "registry_unavailable");
    }
    // In plain text.
    let gateway = &mut mtls.scene.gateway;
    let plain = EnvoyOptions::new(gateway.authz.grpc_addr(), &gateway.pki);
    gateway.envoy = Envoy::start(plain).await.unwrap();
    let answer = mtls.scene.connect().await;
    assert_undecided(&answer, 503, "registry_unavailable");
    assert_eq!(mtls.scene.service.connections(), 0);

    mtls.scene.gateway.envoy = mtls.envoy(&[]).await;
    assert_eq!(mtls.scene.connect().await.status, 200);
}

#[tokio::test]
async fn envoy_takes_no_decision_from_a_service_that_nobody_vouches_for() {
    let mut mtls = Mtls::start().await;
    let others = Ca::new("service CA").unwrap();
    let file = others.file();
    let other_ca = ("certs/authz-ca.pem", text(&file));
    let other_name = ("{exact: authz.example.internal}", "{exact: authz.example}");
    for changed in [other_ca, other_name] {
        mtls.scene.gateway.envoy = mtls.envoy(&[changed]).await;
        let answer = mtls.scene.connect().await;
        assert_undecided(&answer, 503, "registry_unavailable");
    }
}

/// Many meshes leave Envoy's own default as it is.
#[tokio::test]
async fn an_envoy_with_its_default_tls_version_is_taken() {
    let mut mtls = Mtls::start().await;
    let pinned = "          tls_params: {tls_minimum_protocol_version: TLSv1_3, \
                  tls_maximum_protocol_version: TLSv1_3}\n";
    mtls.scene.gateway.envoy = mtls.envoy(&[(pinned, "")]).await;
    let opened = async {
        while mtls.scene.connect().await.status != 200 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, opened).await.expect("no tunnel");
    let stat = mtls
        .scene
        .gateway
        .envoy
        .stat("cluster.authorization.ssl.versions.TLSv1.2");
    assert!(stat.await.unwrap() > 0);
}
