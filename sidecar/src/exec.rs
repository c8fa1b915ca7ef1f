//! `exec`: runs a command whose HTTP clients go through the running sidecar.

use std::io::{self, ErrorKind};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};

use crate::cli::ExecArgs;
use crate::failure::Failure;
use crate::state::{StateDir, StateError};

/// Clients differ in which they read. Plain HTTP is sent to the proxy too, which refuses it: a
/// clear answer is better than a request that silently goes around the gateway.
const PROXY_VARIABLES: [&str; 6] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Where curl, OpenSSL's users and Node look for authorities.
const CA_VARIABLES: [&str; 3] = ["CURL_CA_BUNDLE", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"];

/// Lists of hosts that clients reach without the proxy.
const BYPASS_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// Why the command didn't become this process.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The state can't be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is no proxy that the command could use.
    #[error("no sidecar runs for {0}")]
    NotRunning(PathBuf),
    /// The authorities that the command should trust are none.
    #[error("{path} holds no certificates: {source}")]
    CaBundle {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: pem::Error,
    },
    /// The command can't be started.
    #[error("can't run {program}: {source}")]
    Start {
        /// The command.
        program: String,
        /// Why not.
        source: io::Error,
    },
}

impl ExecError {
    /// As a shell says it: 127 for a command that isn't found, 126 for one that can't be run.
    pub(crate) fn shell_code(source: &io::Error) -> u8 {
        if source.kind() == ErrorKind::NotFound {
            127
        } else {
            126
        }
    }
}

/// Runs the command: this process becomes it, so signals and exit status are its own.
pub fn run(args: &ExecArgs) -> Result<(), Failure> {
    Err(become_command(args).into())
}

fn become_command(args: &ExecArgs) -> ExecError {
    let ca_bundle = match args.ca_bundle.as_deref().map(ca_bundle).transpose() {
        Ok(path) => path,
        Err(error) => return error,
    };
    let dir = StateDir::new(&args.state.dir);
    let entrance = match dir.running() {
        Ok(Some(entrance)) => entrance,
        Ok(None) => return ExecError::NotRunning(dir.path().to_owned()),
        Err(error) => return error.into(),
    };
    let mut words = args.command.iter();
    // The command line has at least one.
    let program = words.next().cloned().unwrap_or_default();
    let mut command = Command::new(&program);
    command.args(words);
    let proxy = entrance.url();
    for name in PROXY_VARIABLES {
        command.env(name, &proxy);
    }
    for name in BYPASS_VARIABLES {
        command.env_remove(name);
    }
    for name in CA_VARIABLES {
        // Left as they are, unless asked for.
        if let Some(path) = &ca_bundle {
            command.env(name, path);
        }
    }
    let source = command.exec();
    ExecError::Start {
        program: program.to_string_lossy().into_owned(),
        source,
    }
}

/// The file, wherever the command may go; a client that finds nothing in it would say so less
/// clearly, or trust others.
fn ca_bundle(path: &Path) -> Result<PathBuf, ExecError> {
    let unusable = |source| ExecError::CaBundle {
        path: path.to_owned(),
        source,
    };
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let certificates: Vec<CertificateDer<'_>> = certificates.map_err(unusable)?;
    if certificates.is_empty() {
        return Err(unusable(pem::Error::NoItemsFound));
    }
    std::path::absolute(path).map_err(|error| unusable(pem::Error::Io(error)))
}
