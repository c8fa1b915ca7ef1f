//! Makes connections: TCP, TLS 1.3 with the TPM's signature, HTTP/2.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::{io, mem};

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::address::GatewayAddress;
use super::avoided::Avoided;
use super::connection::Connection;
use crate::credential::{CurrentCredential, SigningFailed};

/// How long one attempt may take in all, over all gateways and their addresses. Those that failed
/// come last in the next one, so each has its turn.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the resolution of a name may take of it.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long TCP may take of it, for each address: a lost packet is sent again after 1 s.
const TCP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long TLS and HTTP/2 may take of it, for each address. A TPM may take 5 s for its signature.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(6);

const ALPN: &[u8] = b"h2";

/// Why there is no connection to a gateway.
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
    /// There are as many connections as there may be, and no room on any.
    #[error("the gateway allows too few tunnels on a connection")]
    TooMany,
}

/// All that it takes to connect to a gateway.
#[derive(Debug)]
pub struct Connector {
    /// In the order in which they are tried.
    gateways: Vec<Target>,
    tls: Arc<ClientConfig>,
    avoided: Avoided,
}

/// A gateway, and the name that its certificate must hold.
#[derive(Debug)]
struct Target {
    address: GatewayAddress,
    server_name: ServerName<'static>,
}

impl Connector {
    /// Trusts gateways that `authorities` vouch for under `server_name`, or else under the host
    /// of their address.
    pub fn new(
        gateways: Vec<GatewayAddress>,
        server_name: Option<&ServerName<'static>>,
        authorities: RootCertStore,
        credential: CurrentCredential,
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(authorities)
            .with_client_cert_resolver(Arc::new(credential));
        // A resumed session would prove what the TPM could do yesterday.
        tls.resumption = Resumption::disabled();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let target = |address: GatewayAddress| {
            let server_name = server_name.cloned().or_else(|| address.server_name());
            Ok(Target {
                server_name: server_name.ok_or(rustls::Error::UnsupportedNameType)?,
                address,
            })
        };
        Ok(Self {
            gateways: gateways
                .into_iter()
                .map(target)
                .collect::<Result<_, rustls::Error>>()?,
            tls: Arc::new(tls),
            avoided: Avoided::default(),
        })
    }

    /// In the order in which they are tried.
    pub(super) fn gateways(&self) -> Vec<String> {
        let names = self.gateways.iter();
        names.map(|gateway| gateway.address.to_string()).collect()
    }

    /// One attempt: the first address of the first gateway that takes us. Those that failed lately
    /// are tried after all others.
    pub(super) async fn connect(&self) -> Result<Connection, ConnectError> {
        let mut attempt = Attempt::default();
        match timeout(ATTEMPT_TIMEOUT, self.try_all(&mut attempt)).await {
            Ok(Some(settled)) => settled,
            Ok(None) | Err(_) => Err(attempt.failure.unwrap_or(ConnectError::TimedOut)),
        }
    }

    async fn try_all<'a>(&'a self, attempt: &mut Attempt<'a>) -> Settled {
        for gateway in &self.gateways {
            match lookup(&gateway.address).await {
                Ok(addresses) => {
                    let settled = self.try_each(gateway, addresses, attempt).await;
                    if settled.is_some() {
                        return settled;
                    }
                }
                Err(error) => {
                    tracing::warn!(gateway = %gateway.address, %error, "not connected");
                    attempt.failed(error);
                }
            }
        }
        let mut postponed = mem::take(&mut attempt.postponed);
        postponed.sort_by_key(|(until, ..)| *until);
        for (_, gateway, address) in postponed {
            let settled = self.try_one(gateway, address, attempt).await;
            if settled.is_some() {
                return settled;
            }
        }
        None
    }

    /// Tries the addresses of a gateway, but for those that failed lately.
    async fn try_each<'a>(
        &self,
        gateway: &'a Target,
        addresses: Vec<SocketAddr>,
        attempt: &mut Attempt<'a>,
    ) -> Settled {
        for address in addresses {
            if let Some(until) = self.avoided.until(address, Instant::now()) {
                attempt.postponed.push((until, gateway, address));
                continue;
            }
            let settled = self.try_one(gateway, address, attempt).await;
            if settled.is_some() {
                return settled;
            }
        }
        None
    }

    async fn try_one(
        &self,
        gateway: &Target,
        address: SocketAddr,
        attempt: &mut Attempt<'_>,
    ) -> Settled {
        let name = &gateway.address;
        match self.connect_to(address, &gateway.server_name).await {
            Ok(connection) => {
                tracing::info!(gateway = %name, %address, "connected");
                self.avoided.remove(address);
                Some(Ok(connection))
            }
            Err(error) => {
                tracing::warn!(gateway = %name, %address, %error, "not connected");
                // No fault of the gateway: another one would get no signature either.
                if matches!(error, ConnectError::Signing(_)) {
                    return Some(Err(error));
                }
                self.avoided.add(address, Instant::now());
                attempt.failed(error);
                None
            }
        }
    }

    async fn connect_to(
        &self,
        address: SocketAddr,
        server_name: &ServerName<'static>,
    ) -> Result<Connection, ConnectError> {
        let tcp = timeout(TCP_TIMEOUT, TcpStream::connect(address))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(ConnectError::Tcp)?;
        tcp.set_nodelay(true).map_err(ConnectError::Tcp)?;
        timeout(HANDSHAKE_TIMEOUT, async {
            let tls = self.secure(tcp, server_name.clone()).await?;
            Connection::start(tls, address, self.avoided.clone()).await
        })
        .await
        .unwrap_or(Err(ConnectError::TimedOut))
    }

    async fn secure(
        &self,
        tcp: TcpStream,
        server_name: ServerName<'static>,
    ) -> Result<TlsStream<TcpStream>, ConnectError> {
        let tls = TlsConnector::from(Arc::clone(&self.tls))
            .connect(server_name, tcp)
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

/// How an attempt ended; `None`: on to the next address.
type Settled = Option<Result<Connection, ConnectError>>;

/// How far an attempt has come.
#[derive(Debug, Default)]
struct Attempt<'a> {
    /// Addresses that failed before this attempt, and until when they come last.
    postponed: Vec<(Instant, &'a Target, SocketAddr)>,
    failure: Option<ConnectError>,
}

impl Attempt<'_> {
    /// Keeps what says most: one address where nobody is doesn't hide what another one said.
    fn failed(&mut self, error: ConnectError) {
        if self.failure.is_none() || !matches!(error, ConnectError::Tcp(_)) {
            self.failure = Some(error);
        }
    }
}

async fn lookup(gateway: &GatewayAddress) -> Result<Vec<SocketAddr>, ConnectError> {
    let addresses = timeout(LOOKUP_TIMEOUT, lookup_host(gateway.host_and_port())).await;
    let addresses: Vec<SocketAddr> = addresses
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(ConnectError::Tcp)?
        .collect();
    if addresses.is_empty() {
        return Err(ConnectError::Tcp(io::ErrorKind::NotFound.into()));
    }
    Ok(addresses)
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use permission::Identity;
    use tokio::net::TcpListener;
    use tpm::SoftwareKey;

    use super::*;
    use crate::certificate;
    use crate::credential::Credential;

    fn connector() -> Connector {
        let folder = tempfile::tempdir().unwrap();
        let key = Arc::new(SoftwareKey::create(&folder.path().join("key.pem")).unwrap());
        let identity = Identity::parse("agent-alpha").unwrap();
        let pem = certificate::issue(&identity, &*key, SystemTime::now()).unwrap();
        let credential = Credential::new(pem.as_bytes(), key).unwrap();
        let credential = CurrentCredential::new(credential);
        let gateway = "gateway:8443".parse().unwrap();
        Connector::new(vec![gateway], None, RootCertStore::empty(), credential).unwrap()
    }

    /// Accepts one connection, and ends it.
    async fn hang_up(listener: &TcpListener) {
        drop(listener.accept().await.unwrap());
    }

    #[tokio::test]
    async fn each_address_of_a_name_is_tried_and_those_that_failed_come_last_the_next_time() {
        let connector = connector();
        let gateway = connector.gateways.first().unwrap();
        let bind = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (refusing, first, second) = (bind().await, bind().await, bind().await);
        let addresses = [&refusing, &first, &second].map(|of| of.local_addr().unwrap());
        drop(refusing);

        let mut attempt = Attempt::default();
        let (settled, ..) = tokio::join!(
            connector.try_each(gateway, addresses.to_vec(), &mut attempt),
            hang_up(&first),
            hang_up(&second)
        );
        assert!(settled.is_none());
        // That nobody is at one of them hides nothing.
        assert!(
            matches!(attempt.failure, Some(ConnectError::Broken(_))),
            "{attempt:?}"
        );

        let mut attempt = Attempt::default();
        let settled = connector.try_each(gateway, addresses.to_vec(), &mut attempt);
        assert!(settled.await.is_none());
        let postponed: Vec<_> = attempt.postponed.iter().map(|(.., of)| *of).collect();
        assert_eq!(postponed, addresses);
        assert!(attempt.failure.is_none());
    }
}
