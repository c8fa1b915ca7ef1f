//! mTLS on Envoy's listener: who is let in, and certificates that change while it runs.

use std::fs;
use std::time::Duration;

use testbed::ca::{Ca, Issued};
use testbed::process::Signal;
use testbed::{Authz, AuthzOptions, authz};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// The service's name in its certificate.
const NAME: &str = "authz.test";
const GUARD: Duration = Duration::from_secs(30);
const ENVOY: &str = "spiffe://example.test/ns/gateway/sa/envoy";

/// A service with mTLS, whose CA is Envoy's as well.
struct Mtls {
    authz: Authz,
    ca: Ca,
    server: Issued,
    envoy: Issued,
}

impl Mtls {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(environment: &[(&str, &str)]) -> Self {
        let ca = Ca::new("service CA").unwrap();
        let server = ca.issue("authz", &[NAME]).unwrap();
        let envoy = ca.issue("envoy", &[ENVOY, "envoy.test"]).unwrap();
        let database = testbed::database().await.unwrap();
        authz::migrate(&database.url()).unwrap();
        let mut settings = settings(&ca, &server);
        let further = environment.iter();
        settings.extend(further.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let authz = Authz::start(&AuthzOptions {
            database_url: database.url(),
            environment: settings,
            ..AuthzOptions::default()
        });
        Self {
            authz: authz.unwrap(),
            ca,
            server,
            envoy,
        }
    }

    /// The certificate that the service shows, if it takes a client with this one.
    async fn greet(&self, certificate: Option<&Issued>) -> Result<Vec<u8>, String> {
        let greeted = self.ca.greet(self.authz.grpc_addr(), NAME, certificate);
        greeted.await.map_err(|error| format!("{error:#}"))
    }

    async fn greeted(&self) -> Vec<u8> {
        self.greet(Some(&self.envoy)).await.unwrap()
    }

    /// Waits until the service shows the certificate that is in the file now.
    async fn shows_the_file(&self) {
        let current = self.server.der().unwrap();
        let shown = async {
            while self.greeted().await != *current {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(GUARD, shown).await.expect("not loaded");
    }
}

fn settings(ca: &Ca, server: &Issued) -> Vec<(String, String)> {
    let files = [
        ("CERT", &server.certificate),
        ("KEY", &server.key),
        ("CLIENT_CA", &ca.file()),
    ];
    let setting = |(key, path): (&str, &std::path::PathBuf)| {
        let path = path.to_str().unwrap().to_owned();
        (format!("AGENT_GATEWAY__SERVER__TLS__{key}"), path)
    };
    files.map(setting).to_vec()
}

#[tokio::test]
async fn only_a_client_whom_the_ca_vouches_for_is_taken() {
    let mtls = Mtls::start().await;
    assert_eq!(mtls.greeted().await, *mtls.server.der().unwrap());

    let refused = mtls.greet(None).await.unwrap_err();
    assert!(refused.contains("CertificateRequired"), "{refused}");
    let other = Ca::new("service CA").unwrap();
    let stranger = other.issue("envoy", &[ENVOY]).unwrap();
    let refused = mtls.greet(Some(&stranger)).await.unwrap_err();
    assert!(refused.contains("received fatal alert"), "{refused}");

    // Nor is anything said in plain text.
    let mut plain = TcpStream::connect(mtls.authz.grpc_addr()).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    tokio::io::AsyncWriteExt::write_all(&mut plain, preface)
        .await
        .unwrap();
    let mut said = Vec::new();
    // A reset tells as much as an orderly end.
    let _ = timeout(GUARD, plain.read_to_end(&mut said)).await.unwrap();
    // At most an alert (RFC 8446, section 6): 21, the version, two bytes.
    assert!(said.is_empty() || said[0] == 21, "{said:?}");
}

#[tokio::test]
async fn only_pinned_names_are_taken_if_there_are_any() {
    for pinned in [ENVOY, "Envoy.test"] {
        let names = format!("[\"other.test\", \"{pinned}\"]");
        let setting = ("AGENT_GATEWAY__SERVER__TLS__CLIENT_NAMES", &*names);
        let mut mtls = Mtls::start_with(&[setting]).await;
        mtls.greeted().await;
        let others: [&[&str]; 4] = [
            &[],
            &["spiffe://example.test/ns/gateway/sa/envoy2"],
            &["spiffe://example.test/ns/gateway/sa/ENVOY"],
            &["envoy.test.example"],
        ];
        for names in others {
            let other = mtls.ca.issue("other", names).unwrap();
            assert!(mtls.greet(Some(&other)).await.is_err(), "{names:?}");
        }
        let log = mtls.authz.process().log();
        assert!(log.contains("none of server.tls.client_names"), "{log}");
    }
}

#[tokio::test]
async fn a_changed_certificate_is_used_without_being_asked() {
    let mtls = Mtls::start().await;
    let before = mtls.greeted().await;
    mtls.ca.issue("authz", &[NAME]).unwrap();
    mtls.shows_the_file().await;
    assert_ne!(mtls.greeted().await, before);
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_is_told() {
    let mut mtls = Mtls::start().await;
    let before = mtls.greeted().await;
    let ca = fs::read(mtls.ca.file()).unwrap();
    // Each as it would be half-way through a roll-over.
    let key = fs::read(&mtls.server.key).unwrap();
    let key_of_another = fs::read(&mtls.envoy.key).unwrap();
    for (path, text, told) in [
        (
            &mtls.server.certificate,
            &b"garbage"[..],
            "holds no PEM certificate",
        ),
        (&mtls.server.key, b"", "holds no PEM private key"),
        (
            &mtls.server.key,
            &key_of_another,
            "is not the key of the certificate",
        ),
        (&mtls.ca.file(), b"", "holds no PEM certificate"),
    ] {
        let whole = fs::read(path).unwrap();
        fs::write(path, text).unwrap();
        mtls.authz.process().signal(Signal::HUP).unwrap();
        mtls.authz.process().wait_for_log(told).unwrap();
        assert_eq!(mtls.greeted().await, before);
        assert!(mtls.greet(None).await.is_err());
        fs::write(path, whole).unwrap();
    }
    fs::remove_file(&mtls.server.key).unwrap();
    mtls.authz.process().signal(Signal::HUP).unwrap();
    mtls.authz.process().wait_for_log("No such file").unwrap();
    assert_eq!(mtls.greeted().await, before);

    fs::write(&mtls.server.key, key).unwrap();
    assert_eq!(fs::read(mtls.ca.file()).unwrap(), ca);
    mtls.ca.issue("authz", &[NAME]).unwrap();
    mtls.authz.process().signal(Signal::HUP).unwrap();
    mtls.shows_the_file().await;
    let log = mtls.authz.process().log();
    assert!(!log.contains("PRIVATE KEY"), "{log}");
}

#[tokio::test]
async fn a_ca_that_is_taken_away_vouches_for_nobody_new() {
    let mut mtls = Mtls::start().await;
    mtls.greeted().await;
    let next = Ca::new("next CA").unwrap();
    fs::copy(next.file(), mtls.ca.file()).unwrap();
    mtls.authz.process().signal(Signal::HUP).unwrap();
    let envoy = next.issue("envoy", &[ENVOY]).unwrap();
    let taken = async {
        while mtls.greet(Some(&envoy)).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(GUARD, taken).await.expect("not loaded");
    assert!(mtls.greet(Some(&mtls.envoy)).await.is_err());
}

#[tokio::test]
async fn handshakes_that_never_end_are_ended_and_hold_up_nobody_for_long() {
    let mtls = Mtls::start().await;
    let mut silent = Vec::new();
    for _ in 0..80 {
        let stream = TcpStream::connect(mtls.authz.grpc_addr()).await.unwrap();
        silent.push(stream);
    }
    timeout(GUARD, mtls.greeted()).await.expect("held up");
    for mut stream in silent {
        let mut said = Vec::new();
        let ended = timeout(GUARD, stream.read_to_end(&mut said)).await;
        let _ = ended.expect("a silent connection is kept");
        assert_eq!(said, b"");
    }
}
