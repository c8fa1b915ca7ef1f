//! The gateway's own certificate authority and server certificate, as files.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;

/// A made-up CA and the gateway's server certificate by it, for the names `gateway` and
/// `localhost` and the loopback addresses.
#[derive(Debug)]
pub struct GatewayPki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl GatewayPki {
    /// Makes keys and certificates, and writes them to a temporary folder.
    pub fn generate() -> Result<GatewayPki> {
        let folder = crate::scratch::folder("pki")?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "gateway test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let names = ["gateway", "localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let mut params = CertificateParams::new(names)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "gateway");
        let server_key = KeyPair::generate()?;
        let server = params.signed_by(&server_key, &ca)?;

        let pki = GatewayPki { issuer: ca, folder };
        fs::write(pki.ca_file(), pki.issuer.pem())?;
        fs::write(pki.certificate_file(), server.pem())?;
        write_secret(&pki.key_file(), &server_key.serialize_pem())?;
        Ok(pki)
    }

    /// The CA's certificate (PEM): what clients trust.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The server's certificate (PEM).
    pub fn certificate_file(&self) -> PathBuf {
        self.folder.path().join("server.pem")
    }

    /// The server's private key (PKCS#8 PEM, mode 0600).
    pub fn key_file(&self) -> PathBuf {
        self.folder.path().join("server-key.pem")
    }

    /// The CA's certificate in DER.
    pub fn ca(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// For a TLS server that shows a certificate for `name` by this CA; the gateway's Envoy trusts
    /// it for tools.
    pub fn server_config(&self, name: &str) -> Result<ServerConfig> {
        self.signed(&CertificateParams::new([name.to_owned()])?)
    }

    /// As [`GatewayPki::server_config`], of a certificate that ended long ago.
    pub fn expired_server_config(&self, name: &str) -> Result<ServerConfig> {
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        self.signed(&params)
    }

    fn signed(&self, params: &CertificateParams) -> Result<ServerConfig> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?)
    }
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())
        .context("write a key file")
}
