//! mTLS towards Envoy: who connects proves a key that a CA of the operator's vouches for.
//!
//! Certificates of agents are none of this: those end at Envoy.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use permission::certificate::AlternativeNames;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Peer;

/// Longest a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the files are looked at; SIGHUP has it done at once.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Largest file that is read, in bytes: a hundred CAs.
const MAX_FILE: u64 = 1 << 20;

/// Where certificate, key and CA are.
#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    /// The service's certificate, and what leads to its CA.
    pub(crate) certificate: PathBuf,
    /// Its private key.
    pub(crate) key: PathBuf,
    /// The CAs that sign Envoy's certificate.
    pub(crate) client_ca: PathBuf,
}

/// Why there is no mTLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No such file, or not ours to read.
    #[error("server.tls.{key} {} can't be read: {source}", path.display())]
    Unreadable {
        /// Which key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Not what the key asks for.
    #[error("server.tls.{key} {} holds no {expected}", path.display())]
    Unparseable {
        /// Which key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
    },
    /// The two don't belong together.
    #[error("server.tls.key is not the key of the certificate in server.tls.cert")]
    KeyMismatch,
    /// An algorithm that isn't known, say.
    #[error("server.tls can't be used: {0}")]
    Unusable(String),
}

/// The listener's side of handshakes, which always uses what was loaded last.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    config: watch::Receiver<Arc<ServerConfig>>,
    /// Whose certificates are taken; anybody's whom the CA vouches for, if empty.
    names: Arc<[String]>,
}

/// Loads the files anew when they change.
#[derive(Debug)]
pub(crate) struct Reloader {
    files: TlsFiles,
    loaded: watch::Sender<Arc<ServerConfig>>,
    /// What was tried last, so that a fault is told once.
    tried: Option<Contents>,
}

/// The bytes of the three files.
#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Vec<u8>,
}

/// It holds a private key.
impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// Why a connection is closed before anything was asked on it.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("no handshake within {HANDSHAKE_TIMEOUT:?}")]
    TimedOut,
    #[error(transparent)]
    Failed(#[from] io::Error),
    #[error("none of server.tls.client_names is in its certificate, but {0:?}")]
    OtherName(AlternativeNames),
    #[error("its certificate can't be read")]
    Unreadable,
}

impl Tls {
    /// Loads the files; clients must show a certificate by one of the CAs, and with one of `names`
    /// if there are any.
    pub(crate) fn load(files: TlsFiles, names: &[String]) -> Result<(Self, Reloader), TlsError> {
        let contents = files.read()?;
        let (loaded, config) = watch::channel(files.parse(&contents)?);
        let reloader = Reloader {
            files,
            loaded,
            tried: Some(contents),
        };
        let names = names.into();
        Ok((Self { config, names }, reloader))
    }

    /// The connection, once both sides have proved who they are.
    pub(super) async fn handshake<S>(&self, stream: S, peer: Peer) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let done = timeout(HANDSHAKE_TIMEOUT, self.shake_hands(stream));
        match done.await.unwrap_or(Err(Refusal::TimedOut)) {
            Ok(stream) => Some(stream),
            // A probe of the port: nothing was tried.
            Err(Refusal::Failed(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                tracing::debug!(%peer, "a connection ended before its handshake");
                None
            }
            Err(refusal) => {
                tracing::warn!(%peer, cause = %refusal, "a connection was refused");
                None
            }
        }
    }

    async fn shake_hands<S>(&self, stream: S) -> Result<TlsStream<S>, Refusal>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = Arc::clone(&self.config.borrow());
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        if !self.names.is_empty() {
            let shown = stream.get_ref().1.peer_certificates();
            let leaf = shown.and_then(<[_]>::first).ok_or(Refusal::Unreadable)?;
            let its = AlternativeNames::from_der(leaf).map_err(|_| Refusal::Unreadable)?;
            if !self.names.iter().any(|name| its.contains(name)) {
                return Err(Refusal::OtherName(its));
            }
        }
        Ok(stream)
    }
}

impl Reloader {
    /// Looks at the files from time to time, and at once at a SIGHUP. What can't be used is told,
    /// and changes nothing; connections that are open stay.
    pub(crate) async fn run(mut self, mut hangups: Signal) {
        loop {
            let asked = tokio::select! {
                asked = hangups.recv() => asked.is_some(),
                () = sleep(LOOK_AGAIN) => false,
            };
            self.look(asked).await;
        }
    }

    async fn look(&mut self, asked: bool) {
        let files = self.files.clone();
        // The disk may be slow; others' tasks don't wait for it.
        let Ok(read) = spawn_blocking(move || files.read()).await else {
            return;
        };
        if !asked && self.tried.as_ref() == read.as_ref().ok() {
            return;
        }
        let (tried, parsed) = match read {
            Ok(contents) => {
                let parsed = self.files.parse(&contents);
                (Some(contents), parsed)
            }
            Err(error) => (None, Err(error)),
        };
        self.tried = tried;
        match parsed {
            Ok(config) => {
                self.loaded.send_replace(config);
                tracing::info!("the certificate of server.tls was loaded anew");
            }
            Err(error) => tracing::error!(
                cause = %error,
                "server.tls was changed and can't be used; what was loaded before stays"
            ),
        }
    }
}

impl TlsFiles {
    fn read(&self) -> Result<Contents, TlsError> {
        Ok(Contents {
            certificate: read("cert", &self.certificate)?,
            key: read("key", &self.key)?,
            client_ca: read("client_ca", &self.client_ca)?,
        })
    }

    fn parse(&self, contents: &Contents) -> Result<Arc<ServerConfig>, TlsError> {
        let chain = certificates("cert", &self.certificate, &contents.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|_| unparseable("key", &self.key, "PEM private key"))?;
        let mut roots = RootCertStore::empty();
        for ca in certificates("client_ca", &self.client_ca, &contents.client_ca)? {
            roots
                .add(ca)
                .map_err(|_| unparseable("client_ca", &self.client_ca, "usable CA certificate"))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .build()
            .map_err(|error| TlsError::Unusable(error.to_string()))?;
        // Envoy's own default towards its clusters is TLS 1.2 at most.
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map(|builder| builder.with_client_cert_verifier(verifier))
            .and_then(|builder| builder.with_single_cert(chain, key))
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch,
                other => TlsError::Unusable(other.to_string()),
            })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session proves no key, and would outlive its CA: each connection signs anew.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Unreadable {
        key,
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
    if read.map_err(failed)? as u64 > MAX_FILE {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

fn certificates(
    key: &'static str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(unparseable(key, path, "PEM certificate")),
    }
}

fn unparseable(key: &'static str, path: &Path, expected: &'static str) -> TlsError {
    TlsError::Unparseable {
        key,
        path: path.to_owned(),
        expected,
    }
}
