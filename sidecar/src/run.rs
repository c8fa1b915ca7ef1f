//! `run`: checks that everything fits together, then serves the local proxy until told to stop.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use listeners::{Access, Inherited, InheritedError, PrivateSocket, SocketError, notify};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tpm::{Location, TpmError, TpmKey};

use crate::cli::RunArgs;
use crate::credential::{Credential, CredentialError, CurrentCredential};
use crate::entrance::{Entrance, Token};
use crate::failure::Failure;
use crate::gateway::{Connector, Gateway};
use crate::open_files;
use crate::pin::{self, PinError};
use crate::proxy::{self, Listener, Proxy};
use crate::rekey::Rekey;
use crate::state::{RunLock, State, StateDir, StateError};
use crate::telemetry::{Telemetry, TelemetryError};

/// Why the sidecar doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// `init` never ran.
    #[error("{0} holds no sidecar's state")]
    NoState(PathBuf),
    /// The state can't be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The TPM doesn't give the key.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The key wants a PIN.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The TPM has no such key.
    #[error("there is no key {location}")]
    NoKey {
        /// Where nothing was found.
        location: Location,
    },
    /// The certificate isn't for that key.
    #[error("the state does not fit the TPM: {0}")]
    Credential(#[from] CredentialError),
    /// The CA file can't be read.
    #[error("can't read {path}: {source}")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The CA file has no certificate in it, or one that can't vouch for anybody.
    #[error("{0} holds no usable certificate")]
    NoAuthority(PathBuf),
    /// TLS can't be set up as it must be.
    #[error("can't set up TLS: {0}")]
    Tls(rustls::Error),
    /// The address can't be listened on.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The Unix socket can't be had.
    #[error("--socket: {0}")]
    Socket(#[from] SocketError),
    /// What the service manager passed can't be used.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// Nobody could say who acts as the agent.
    #[error("--open-to-all would open {0} to the network")]
    OpenToNetwork(SocketAddr),
    /// There is no token without it.
    #[error("the operating system gives no random bytes")]
    NoRandomness,
    /// The operating system lacks what every server needs.
    #[error("can't start: {0}")]
    Runtime(io::Error),
    /// `RUST_LOG` can't be parsed.
    #[error("RUST_LOG is no log filter: {0}")]
    LogFilter(String),
    /// The OTLP endpoint can't be used.
    #[error("traces can't be exported: {0}")]
    Exporter(String),
}

impl From<TelemetryError> for RunError {
    fn from(error: TelemetryError) -> Self {
        match error {
            TelemetryError::Filter(error) => Self::LogFilter(error.to_string()),
            TelemetryError::Exporter(error) => Self::Exporter(error.to_string()),
        }
    }
}

/// Runs the command.
pub fn run(args: RunArgs) -> Result<(), Failure> {
    // The process has a single thread up to here.
    let inherited = Inherited::from_env().map_err(RunError::Inherited)?;
    let runtime = tokio::runtime::Runtime::new().map_err(RunError::Runtime)?;
    let done = runtime.block_on(start_and_serve(args, inherited));
    // What still waits for the TPM or for a name must not hold up the end.
    runtime.shutdown_background();
    Ok(done?)
}

async fn start_and_serve(args: RunArgs, inherited: Inherited) -> Result<(), RunError> {
    let telemetry = Telemetry::start()?;
    let served = serve(args, inherited).await;
    telemetry.stop().await;
    served
}

async fn serve(args: RunArgs, mut inherited: Inherited) -> Result<(), RunError> {
    // From here on signals are ours: none may leave an announced address behind.
    let stop = stop_signal().map_err(RunError::Runtime)?;
    let token = token(&args)?;
    let dir = StateDir::new(&args.state.dir);
    let state = load(&dir)?;
    let lock = dir.lock()?;
    let identity = state.leaf.identity.as_str().to_owned();
    let (credential, pin) = open_credential(&state, pin::unlock)?;
    let credential = CurrentCredential::new(credential);
    let connector = Connector::new(
        args.gateways,
        args.server_name.as_ref(),
        authorities(&args.ca)?,
        credential.clone(),
    )
    .map_err(RunError::Tls)?;
    let gateway = Gateway::new(connector, args.open_timeout);
    let rekey = Rekey::new(dir.clone(), &state, pin, credential, Arc::clone(&gateway));
    open_files::make_room(proxy::max_connections(args.max_tunnels.into()));
    let most = args.max_tunnels.into();
    let proxy = Proxy::new(Arc::clone(&gateway), token.clone(), most, Some(rekey));
    let address = args.listen;
    let listen = |source| RunError::Listen { address, source };
    let listener = proxy::listen(address, &mut inherited).map_err(listen)?;
    let address = listener.local_addr().map_err(RunError::Runtime)?;
    let socket = match &args.socket {
        Some(path) => Some(open_socket(path, &args.socket_uids, &mut inherited).await?),
        None => None,
    };
    inherited.all_taken()?;
    let entrance = Entrance { address, token };
    announce(&dir, &lock, &entrance, &identity)?;
    gateway.connect_early();
    tell(notify::ready());
    let port = proxy.serve(Listener::Port(listener), stop.clone());
    match socket {
        Some(socket) => drop(tokio::join!(port, proxy.serve(socket, stop))),
        None => port.await,
    }
    tell(notify::stopping());
    // Nobody is sent here any more, and the next sidecar may start.
    drop(lock);
    proxy.drain().await;
    tracing::info!("stopped");
    Ok(())
}

/// For processes of this user, or of those that are named.
async fn open_socket(
    path: &Path,
    users: &[u32],
    inherited: &mut Inherited,
) -> Result<Listener, RunError> {
    let path = std::path::absolute(path).map_err(RunError::Runtime)?;
    let own = rustix::process::geteuid().as_raw();
    let (access, users) = if users.is_empty() {
        (Access::Owner, vec![own])
    } else {
        (Access::Everybody, users.to_vec())
    };
    let socket = PrivateSocket::open(&path, access, inherited).await?;
    tracing::info!(socket = %path.display(), ?users, "serves processes of these users");
    Ok(Listener::Socket(socket, users))
}

fn tell(told: io::Result<()>) {
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager can't be told");
    }
}

fn token(args: &RunArgs) -> Result<Option<Token>, RunError> {
    if args.open_to_all {
        return if args.listen.ip().is_loopback() {
            Ok(None)
        } else {
            Err(RunError::OpenToNetwork(args.listen))
        };
    }
    new_token().map(Some)
}

pub(crate) fn new_token() -> Result<Token, RunError> {
    let mut random = [0; 32];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut random)
        .map_err(|_| RunError::NoRandomness)?;
    Ok(Token::new(random))
}

fn announce(
    dir: &StateDir,
    lock: &RunLock,
    entrance: &Entrance,
    identity: &str,
) -> Result<(), RunError> {
    dir.announce(lock, entrance)?;
    let address = entrance.address;
    tracing::info!(%address, identity, url_file = %dir.url_path().display(), "listening");
    if entrance.token.is_none() {
        tracing::warn!(%address, "open to all: every process of this machine acts as {identity:?}");
    }
    if !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "listening beyond loopback: the token crosses the network in the clear, and whoever \
             sees it acts as {identity:?}"
        );
    }
    Ok(())
}

pub(crate) fn load(dir: &StateDir) -> Result<State, RunError> {
    dir.load()?
        .ok_or_else(|| RunError::NoState(dir.path().to_owned()))
}

/// The state's key, joined with its certificate, once `unlock` has made it sign.
pub(crate) fn open_credential<T>(
    state: &State,
    unlock: impl FnOnce(&TpmKey) -> Result<T, PinError>,
) -> Result<(Credential, T), RunError> {
    let location = &state.location;
    let (key, unlocked) = tokio::task::block_in_place(|| {
        let key = TpmKey::open(location)?.ok_or_else(|| RunError::NoKey {
            location: location.clone(),
        })?;
        let unlocked = unlock(&key)?;
        Ok::<_, RunError>((key, unlocked))
    })?;
    let certificate = state.certificate_pem.as_bytes();
    Ok((Credential::new(certificate, Arc::new(key))?, unlocked))
}

/// The certificates in a PEM file; each must be one that can vouch.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore, RunError> {
    let unusable = || RunError::NoAuthority(path.to_owned());
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates: Vec<CertificateDer<'_>> = certificates.map_err(|error| match error {
        pem::Error::Io(source) => RunError::Authorities {
            path: path.to_owned(),
            source,
        },
        _ => unusable(),
    })?;
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        store.add(certificate).map_err(|_| unusable())?;
    }
    if store.is_empty() {
        Err(unusable())
    } else {
        Ok(store)
    }
}

/// Cancelled at the first SIGINT or SIGTERM.
fn stop_signal() -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping");
        told.cancel();
    });
    Ok(stop)
}
