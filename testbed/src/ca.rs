//! A certificate authority of the operator's own, for what is between Envoy and the service, and
//! for meshes.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::process::PATIENCE;

/// A CA, and a folder for what it issues.
#[derive(Debug)]
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// A certificate by a [`Ca`], as files.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate (PEM).
    pub certificate: PathBuf,
    /// Its private key (PKCS#8 PEM, mode 0600).
    pub key: PathBuf,
}

impl Ca {
    /// Makes a CA of this name.
    pub fn new(name: &str) -> Result<Ca> {
        let folder = crate::scratch::folder("ca")?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(folder.path().join("ca.pem"), issuer.pem())?;
        Ok(Ca { issuer, folder })
    }

    /// The CA's certificate (PEM).
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Issues a certificate, with a fresh key, for these DNS names, IP addresses and URIs. What
    /// has the same `name` is written over.
    pub fn issue(&self, name: &str, alternative_names: &[&str]) -> Result<Issued> {
        let (uris, others): (Vec<&str>, Vec<&str>) = alternative_names
            .iter()
            .partition(|name| name.contains("://"));
        let others: Vec<_> = others.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(others)?;
        params.distinguished_name.push(DnType::CommonName, name);
        for uri in uris {
            let uri = SanType::URI(Ia5String::try_from(uri)?);
            params.subject_alt_names.push(uri);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let issued = Issued {
            certificate: self.folder.path().join(format!("{name}.pem")),
            key: self.folder.path().join(format!("{name}-key.pem")),
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&issued.key)?;
        file.write_all(key.serialize_pem().as_bytes())?;
        fs::write(&issued.certificate, certificate.pem())?;
        Ok(issued)
    }

    /// Connects as an HTTP/2 client that trusts this CA and shows `certificate` or none; the
    /// server's certificate (DER) if the server takes the connection.
    pub async fn greet(
        &self,
        server: SocketAddr,
        name: &'static str,
        certificate: Option<&Issued>,
    ) -> Result<Vec<u8>> {
        let config = self.client_config(certificate)?;
        let greeted = async {
            let stream = TcpStream::connect(server).await?;
            let connector = TlsConnector::from(Arc::new(config));
            let mut stream = connector
                .connect(ServerName::try_from(name)?, stream)
                .await?;
            // The preface and empty SETTINGS (RFC 9113, section 3.4), to which the server answers with
            // its own. In TLS 1.3 a refused certificate shows only here.
            let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            stream.write_all(preface).await?;
            let mut head = [0; 9];
            stream.read_exact(&mut head).await?;
            let [_, _, _, 4, ..] = head else {
                bail!("not SETTINGS: {head:?}");
            };
            let shown = stream.get_ref().1.peer_certificates();
            let leaf = shown.and_then(<[_]>::first).context("no certificate")?;
            Ok(leaf.to_vec())
        };
        timeout(PATIENCE, greeted).await.context("no answer")?
    }

    fn client_config(&self, certificate: Option<&Issued>) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        Ok(match certificate {
            None => config.with_no_client_auth(),
            Some(issued) => config.with_client_auth_cert(
                vec![issued.der()?],
                PrivateKeyDer::from_pem_file(&issued.key)?,
            )?,
        })
    }
}

impl Issued {
    /// The certificate in DER.
    pub fn der(&self) -> Result<CertificateDer<'static>> {
        Ok(CertificateDer::from_pem_file(&self.certificate)?)
    }
}
