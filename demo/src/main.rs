//! `agent-gateway-mock-service`: an HTTPS service for the demo's agent to talk to.
//!
//! It knows nothing of the gateway, as a real service would not.

#![forbid(unsafe_code)]

mod pages;
mod server;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// An HTTPS service for the demo's agent to talk to
#[derive(Debug, Parser)]
#[command(
    name = "agent-gateway-mock-service",
    version,
    after_help = "Exit status: 0 stopped, 64 bad usage, 66 certificate or key not usable, 69 \
                  address not available.\n\nExample:\n  agent-gateway-mock-service --name docstore \
                  --cert mock-services.pem --key mock-services-key.pem"
)]
struct Cli {
    /// Which service to be
    #[arg(long, value_enum)]
    name: pages::Service,
    /// Where to listen
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// PEM file with the certificate chain
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// PEM file with the private key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => run(&cli),
        Err(error) => {
            let printed = error.print();
            match (error.use_stderr(), printed) {
                (false, Ok(())) => ExitCode::SUCCESS,
                _ => ExitCode::from(64),
            }
        }
    }
}

fn run(cli: &Cli) -> ExitCode {
    let (error, status) = match tls(&cli.cert, &cli.key) {
        Err(error) => (error, 66),
        Ok(tls) => match serve(cli, tls) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => (error, 69),
        },
    };
    eprintln!("error: {error:#}");
    ExitCode::from(status)
}

fn tls(certificate: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let unreadable = |path: &Path| format!("{} can't be used", path.display());
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .with_context(|| unreadable(certificate))?;
    let private_key = PrivateKeyDer::from_pem_file(key).with_context(|| unreadable(key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, private_key)
        })
        .with_context(|| unreadable(certificate))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn serve(cli: &Cli, tls: Arc<ServerConfig>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = stop_signal()?;
        let listener = TcpListener::bind(cli.listen)
            .await
            .with_context(|| format!("can't listen on {}", cli.listen))?;
        eprintln!(
            "{} listens on {}",
            cli.name.as_str(),
            listener.local_addr()?
        );
        server::run(listener, tls, cli.name, stop).await;
        Ok(())
    })
}

/// Cancelled at the first SIGINT or SIGTERM.
fn stop_signal() -> std::io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}
