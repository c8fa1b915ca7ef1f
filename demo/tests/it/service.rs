//! What a service answers, to whom, and how it ends.

use anyhow::Result;
use hyper::Method;
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};
use testbed::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::{PATIENCE, Service};

#[tokio::test]
async fn health_names_the_service() -> Result<()> {
    for name in ["docstore", "messaging"] {
        let service = Service::start(name)?;
        let answer = service.ask(Method::GET, "/health").await?;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "application/json");
        let expected = format!("{{\"service\":\"{name}\",\"status\":\"ok\"}}\n");
        assert_eq!(*answer.body(), expected);
    }
    Ok(())
}

#[tokio::test]
async fn each_service_has_its_own_pages() -> Result<()> {
    let docstore = Service::start("docstore")?;
    let messaging = Service::start("messaging")?;
    for (service, path, status, count) in [
        (&docstore, "/documents", 200, 3),
        (&docstore, "/messages", 404, 0),
        (&messaging, "/messages", 200, 2),
        (&messaging, "/documents", 404, 0),
        (&docstore, "/", 404, 0),
        (&docstore, "/documents/", 404, 0),
    ] {
        let answer = service.ask(Method::GET, path).await?;
        assert_eq!(answer.status(), status, "{path}");
        let body: serde_json::Value = serde_json::from_str(answer.body())?;
        let listed = body[path.trim_start_matches('/')].as_array();
        assert_eq!(listed.map_or(0, Vec::len), count, "{path}: {body}");
    }
    Ok(())
}

#[tokio::test]
async fn pages_can_only_be_read() -> Result<()> {
    let service = Service::start("docstore")?;
    let answer = service.ask(Method::POST, "/documents").await?;
    assert_eq!(answer.status(), 405);
    assert_eq!(answer.headers()["allow"], "GET, HEAD");
    let answer = service.ask(Method::HEAD, "/documents").await?;
    assert_eq!(
        (answer.status().as_u16(), answer.body().as_str()),
        (200, "")
    );
    Ok(())
}

#[tokio::test]
async fn both_names_and_both_versions_of_tls_are_served() -> Result<()> {
    let service = Service::start("docstore")?;
    let versions: [&'static SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
    for name in ["docstore", "messaging", "localhost"] {
        for version in versions {
            let stream = service.connect(name, version).await?;
            let negotiated = stream.get_ref().1.protocol_version();
            assert_eq!(negotiated, Some(version.version), "{name}");
        }
    }
    let error = service.connect("gateway", &TLS13).await.unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_client_that_does_not_speak_tls_is_turned_away_alone() -> Result<()> {
    let service = Service::start("docstore")?;
    let mut stream = TcpStream::connect(service.address).await?;
    stream.write_all(b"GET /health HTTP/1.1\r\n\r\n").await?;
    let mut answer = Vec::new();
    // Closed or reset, with a TLS alert at most.
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer));
    let _ = read.await?;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    assert_eq!(service.ask(Method::GET, "/health").await?.status(), 200);
    Ok(())
}

#[tokio::test]
async fn an_endless_header_is_cut_off() -> Result<()> {
    let service = Service::start("docstore")?;
    let mut stream = service.connect("docstore", &TLS13).await?;
    let sent = async {
        stream.write_all(b"GET /health HTTP/1.1\r\nx: ").await?;
        // More than any socket buffers hold, so that an endless reader would take it all.
        for _ in 0..64 * 1024 {
            stream.write_all(&[b'x'; 1024]).await?;
        }
        stream.flush().await
    };
    let sent = tokio::time::timeout(PATIENCE, sent).await?;
    assert!(sent.is_err(), "64 MiB of header were taken");
    Ok(())
}

#[tokio::test]
async fn sigterm_ends_it_although_a_client_is_connected() -> Result<()> {
    for signal in [Signal::TERM, Signal::INT] {
        let mut service = Service::start("docstore")?;
        let idle = service.connect("docstore", &TLS13).await?;
        let status = service.process.stop_by(signal)?;
        let log = service.process.log();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("still open"), "{log}");
        drop(idle);
    }
    Ok(())
}
