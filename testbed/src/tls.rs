//! The TLS connection of a test's client to the gateway.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::process::PATIENCE;
use crate::{ClientCertificate, GatewayPki};

/// Offers ALPN `h2` and shows `certificate` or, if there is none, no certificate.
pub fn client_config(
    pki: &GatewayPki,
    certificate: Option<&ClientCertificate>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(pki.ca())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_root_certificates(roots);
    let mut config = match certificate {
        None => config.with_no_client_auth(),
        Some(certificate) => {
            let key = Arc::new(certificate.certified_key()?);
            config.with_client_cert_resolver(Arc::new(Always(key)))
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Connects to the gateway.
///
/// With TLS 1.3 a refused certificate only shows at the first read after this.
pub async fn connect(gateway: SocketAddr, config: ClientConfig) -> Result<TlsStream<TcpStream>> {
    let connection = async {
        let stream = TcpStream::connect(gateway)
            .await
            .context("connect to the gateway")?;
        let name = ServerName::try_from("gateway")?;
        let connector = TlsConnector::from(Arc::new(config));
        connector
            .connect(name, stream)
            .await
            .context("TLS handshake with the gateway")
    };
    timeout(PATIENCE, connection)
        .await
        .context("the gateway does not take a connection")?
}

/// Shows its certificate whatever the server asks for, and whether or not the key fits.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
