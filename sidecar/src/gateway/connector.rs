//! Makes connections: TCP, TLS 1.3 with the TPM's signature, HTTP/2.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::address::GatewayAddress;
use super::connection::Connection;
use crate::credential::{Credential, SigningFailed};

/// How long one attempt may take in all. A TPM may take 5 s of it for its signature.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long TCP and the name's resolution may take of it.
const TCP_TIMEOUT: Duration = Duration::from_secs(4);

const ALPN: &[u8] = b"h2";

/// Why there is no connection to the gateway.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name can't be resolved, or no address of it takes connections.
    #[error("the gateway can't be reached: {0}")]
    Tcp(io::Error),
    /// The connection broke while it was set up.
    #[error("the gateway broke the connection off: {0}")]
    Broken(io::Error),
    /// The gateway's certificate isn't one that `--ca` vouches for, or is for another name.
    #[error("the gateway's certificate is not trusted: {0}")]
    Untrusted(rustls::CertificateError),
    /// The TPM gave no signature.
    #[error("{0}")]
    Signing(String),
    /// TLS failed otherwise.
    #[error("TLS with the gateway failed: {0}")]
    Tls(rustls::Error),
    /// TLS is fine, HTTP/2 isn't.
    #[error("the gateway does not speak HTTP/2 as it must: {0}")]
    Http2(String),
    /// It took too long.
    #[error("the gateway did not answer in time")]
    TimedOut,
}

/// All that it takes to connect to the gateway.
#[derive(Debug)]
pub struct Connector {
    address: GatewayAddress,
    server_name: ServerName<'static>,
    tls: Arc<ClientConfig>,
}

impl Connector {
    /// Trusts a gateway that `authorities` vouch for under `server_name`, or else under the host
    /// of its address.
    pub fn new(
        address: GatewayAddress,
        server_name: Option<ServerName<'static>>,
        authorities: RootCertStore,
        credential: Credential,
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(authorities)
            .with_client_cert_resolver(Arc::new(credential));
        // A resumed session would prove what the TPM could do yesterday.
        tls.resumption = Resumption::disabled();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let server_name = server_name
            .or_else(|| address.server_name())
            .ok_or(rustls::Error::UnsupportedNameType)?;
        Ok(Self {
            address,
            server_name,
            tls: Arc::new(tls),
        })
    }

    /// Where this connects to.
    pub(super) fn address(&self) -> &GatewayAddress {
        &self.address
    }

    /// One attempt.
    pub(super) async fn connect(&self) -> Result<Connection, ConnectError> {
        timeout(ATTEMPT_TIMEOUT, async {
            Connection::start(self.secure().await?).await
        })
        .await
        .unwrap_or(Err(ConnectError::TimedOut))
    }

    async fn secure(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let tcp = timeout(
            TCP_TIMEOUT,
            TcpStream::connect(self.address.host_and_port()),
        )
        .await
        .map_err(|_| ConnectError::TimedOut)?
        .map_err(ConnectError::Tcp)?;
        tcp.set_nodelay(true).map_err(ConnectError::Tcp)?;
        let tls = TlsConnector::from(Arc::clone(&self.tls))
            .connect(self.server_name.clone(), tcp)
            .await
            .map_err(handshake_error)?;
        if tls.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(ConnectError::Http2(
                "it did not agree to it in TLS".to_owned(),
            ));
        }
        Ok(tls)
    }
}

fn handshake_error(error: io::Error) -> ConnectError {
    match tls_error(&error) {
        None => ConnectError::Broken(error),
        Some(error) => match error {
            rustls::Error::InvalidCertificate(error) => ConnectError::Untrusted(error.clone()),
            rustls::Error::Other(other) => match other.0.downcast_ref::<SigningFailed>() {
                Some(failed) => ConnectError::Signing(failed.to_string()),
                None => ConnectError::Tls(error.clone()),
            },
            other => ConnectError::Tls(other.clone()),
        },
    }
}

/// The TLS error inside an I/O error of a TLS stream.
pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
