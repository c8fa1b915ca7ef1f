//! A service on a free port, and an HTTPS client that trusts the demo's mock CA alone.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use testbed::Process;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) use testbed::process::PATIENCE;

/// The demo's TLS material, made by its script.
pub(crate) fn certificates() -> Result<TempDir> {
    let folder = testbed::scratch::folder("certs")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("generate-server-certs.sh");
    let made = Command::new(script).arg(folder.path()).output()?;
    if !made.status.success() {
        bail!("{}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(folder)
}

/// A running service.
pub(crate) struct Service {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    certificates: TempDir,
}

impl Service {
    pub(crate) fn start(name: &str) -> Result<Service> {
        let certificates = certificates()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, testbed::free_port()?));
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent-gateway-mock-service"));
        command
            .args(["--name", name, "--listen", &address.to_string(), "--cert"])
            .arg(certificates.path().join("mock-services.pem"))
            .arg("--key")
            .arg(certificates.path().join("mock-services-key.pem"));
        let mut process = Process::start(name, &command)?;
        process.wait_for_port(address)?;
        Ok(Service {
            process,
            address,
            certificates,
        })
    }

    /// Connects as a client that knows the service as `name`.
    pub(crate) async fn connect(
        &self,
        name: &str,
        version: &'static SupportedProtocolVersion,
    ) -> Result<TlsStream<TcpStream>> {
        let mut authorities = RootCertStore::empty();
        let authority = self.certificates.path().join("mock-ca.pem");
        authorities.add(CertificateDer::from_pem_file(authority)?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])?
            .with_root_certificates(authorities)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from(name.to_owned())?;
        let connect = TlsConnector::from(Arc::new(config)).connect(name, stream);
        Ok(tokio::time::timeout(PATIENCE, connect).await??)
    }

    /// Sends one request, and gives the answer with its body as text.
    pub(crate) async fn ask(&self, method: Method, path: &str) -> Result<Response<String>> {
        let stream = self.connect("localhost", &rustls::version::TLS13).await?;
        let exchange = async {
            let (mut http, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "localhost")
                .body(Empty::<Bytes>::new())?;
            let (head, body) = http.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Response::from_parts(
                head,
                String::from_utf8(body.into()).context("not text")?,
            ))
        };
        tokio::time::timeout(PATIENCE, exchange).await?
    }
}
