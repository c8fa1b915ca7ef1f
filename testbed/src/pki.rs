//! The gateway's own certificate authority and server certificate, as files.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;

/// A made-up CA and the gateway's server certificate by it, for the names `gateway` and
/// `localhost` and the loopback addresses.
#[derive(Debug)]
pub struct GatewayPki {
    ca: CertificateDer<'static>,
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

        let pki = GatewayPki {
            ca: ca.der().clone(),
            folder,
        };
        fs::write(pki.ca_file(), ca.pem())?;
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
        self.ca.clone()
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
