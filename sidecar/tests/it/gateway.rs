//! A gateway for tests: HTTP/2 over TLS 1.3 that asks for a client certificate, remembers what
//! it saw, and behaves as the host of the CONNECT says (see [`behave`]).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use permission::Spki;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};
use testbed::GatewayPki;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::client::PATIENCE;

pub(crate) struct Gateway {
    pub(crate) pki: GatewayPki,
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    serving: Option<JoinSet<()>>,
}

struct Shared {
    tls: TlsAcceptor,
    max_streams: u32,
    seen: watch::Sender<Seen>,
    /// Counts the times at which connections were told to go away.
    go_away: watch::Sender<u32>,
}

/// What came in since the start.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    /// For each connection, the key that the client proved in the handshake: hex of its SPKI.
    pub(crate) keys: Vec<String>,
    /// For each request, authority and headers, in order of arrival.
    pub(crate) requests: Vec<(String, BTreeMap<String, String>)>,
    /// For each request to a host that listens, what it got, and how that ended.
    pub(crate) uploads: Vec<(Vec<u8>, Ending)>,
    /// Bytes that the flooding hosts could send.
    pub(crate) flood: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    EndStream,
    Reset(Option<Reason>),
}

impl Gateway {
    pub(crate) async fn start() -> Self {
        // Not a port of the kernel's choice, which whoever connects may get while this one is stopped.
        let port = testbed::free_port().unwrap();
        Self::start_at(&format!("127.0.0.1:{port}"), 100).await
    }

    pub(crate) async fn start_at(address: &str, max_streams: u32) -> Self {
        let pki = GatewayPki::generate().unwrap();
        let tls = TlsAcceptor::from(Arc::new(tls(&pki)));
        let seen = watch::Sender::default();
        let go_away = watch::Sender::default();
        let shared = Arc::new(Shared {
            tls,
            max_streams,
            seen,
            go_away,
        });
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut gateway = Self {
            pki,
            address,
            shared,
            serving: None,
        };
        gateway.serve(listener);
        gateway
    }

    /// Closes the port and all connections.
    pub(crate) async fn stop(&mut self) {
        self.serving.take().unwrap().shutdown().await;
    }

    pub(crate) async fn start_again(&mut self) {
        self.serve(TcpListener::bind(self.address).await.unwrap());
    }

    /// Tells all connections to take no more requests (GOAWAY).
    pub(crate) fn go_away(&self) {
        self.shared.go_away.send_modify(|times| *times += 1);
    }

    pub(crate) fn seen(&self) -> Seen {
        self.shared.seen.borrow().clone()
    }

    pub(crate) async fn wait_until(&self, fulfilled: impl FnMut(&Seen) -> bool) -> Seen {
        let mut seen = self.shared.seen.subscribe();
        let waited = timeout(PATIENCE, seen.wait_for(fulfilled)).await;
        waited
            .unwrap_or_else(|_| panic!("never came: {:?}", self.seen()))
            .unwrap()
            .clone()
    }

    /// Waits until no flooding host can send any more.
    pub(crate) async fn wait_until_flood_stands(&self) {
        let mut before = 0;
        let stands = async {
            loop {
                tokio::time::sleep(Duration::from_millis(300)).await;
                match self.seen().flood {
                    now if now > 0 && now == before => return,
                    now => before = now,
                }
            }
        };
        // A hundred thousand frames, of a debug build's, take their time on a busy machine.
        let stands = timeout(4 * PATIENCE, stands).await;
        stands.expect("a standing flood");
    }

    fn serve(&mut self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                connections.spawn(connection(tcp, Arc::clone(&shared)));
            }
        });
        self.serving = Some(serving);
    }
}

async fn connection(tcp: TcpStream, shared: Arc<Shared>) {
    // Some tests are about handshakes that fail.
    let Ok(tls) = shared.tls.accept(tcp).await else {
        return;
    };
    let certificate = tls.get_ref().1.peer_certificates().unwrap()[0].clone();
    let (_, certificate) = X509Certificate::from_der(&certificate).unwrap();
    let spki = Spki::from_der(certificate.public_key().raw).unwrap();
    shared
        .seen
        .send_modify(|seen| seen.keys.push(spki.to_hex()));
    let Ok(mut connection) = h2::server::Builder::new()
        .max_concurrent_streams(shared.max_streams)
        .initial_connection_window_size(1 << 24)
        .initial_window_size(1 << 16)
        .handshake::<_, Bytes>(tls)
        .await
    else {
        return;
    };
    let mut go_away = shared.go_away.subscribe();
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            request = connection.accept() => match request {
                Some(Ok((request, respond))) => {
                    streams.spawn(stream(request, respond, Arc::clone(&shared)));
                }
                Some(Err(_)) | None => return,
            },
            _ = go_away.changed() => connection.graceful_shutdown(),
        }
    }
}

async fn stream(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    shared: Arc<Shared>,
) {
    let headers: BTreeMap<_, _> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    let authority = if request.method() == http::Method::POST {
        assert_eq!(request.uri().path(), "/relay");
        // A tool call says by its contract how it is to be answered.
        let contract = headers.get("x-contract-id");
        contract.map_or("echo", String::as_str).to_owned()
    } else {
        assert_eq!(request.method(), http::Method::CONNECT);
        request.uri().authority().unwrap().to_string()
    };
    let host = authority.split(':').next().unwrap().to_owned();
    shared
        .seen
        .send_modify(|seen| seen.requests.push((authority, headers)));
    // `None`: the client went away, which ends the stream's business.
    let _ = behave(&host, request.into_body(), &mut respond, &shared.seen).await;
}

/// - `echo` sends back what it gets, and ends when that ends.
/// - `listen` sends nothing until its client has ended, then what it got, in hex digits.
/// - `greet` sends `hello` and ends, then goes on to listen.
/// - `flood` sends as much as it can; `drizzle` too, but little by little, in frames of four bytes.
/// - `cut-REASON` sends `partial`, then resets the stream.
/// - `deny` is a service's refusal, `long` one with a body without an end.
/// - `stall` is a refusal whose body stops halfway.
/// - `silent` never answers; `reset` resets the request.
async fn behave(
    host: &str,
    mut receive: RecvStream,
    respond: &mut SendResponse<Bytes>,
    seen: &watch::Sender<Seen>,
) -> Option<()> {
    match host {
        "deny" => {
            let refusal = head(403)
                .header("content-type", "application/json")
                .header("proxy-status", "agent-gateway; error=http_request_denied")
                .header("retry-after", "7");
            let mut send = respond
                .send_response(refusal.body(()).unwrap(), false)
                .unwrap();
            send_all(&mut send, br#"{"error":"denied","reason":"no_permission"}"#).await?;
            send.send_data(Bytes::new(), true).ok()
        }
        "stall" => {
            let refusal = head(403).body(()).unwrap();
            let mut send = respond.send_response(refusal, false).unwrap();
            send_all(&mut send, br#"{"error":"#).await?;
            poll_fn(|context| send.poll_reset(context))
                .await
                .ok()
                .map(drop)
        }
        "silent" => poll_fn(|context| respond.poll_reset(context))
            .await
            .ok()
            .map(drop),
        "reset" => {
            respond.send_reset(Reason::PROTOCOL_ERROR);
            Some(())
        }
        "long" => {
            let refusal = Response::builder().status(403).body(()).unwrap();
            let mut send = respond.send_response(refusal, false).unwrap();
            loop {
                send_all(&mut send, &[b'x'; 4096]).await?;
            }
        }
        _ => {
            let allowed = head(200).body(()).unwrap();
            let mut send = respond.send_response(allowed, false).unwrap();
            open(host, &mut receive, &mut send, seen).await
        }
    }
}

/// What every answer of the service has, and a header that is none of the agent's business.
fn head(status: u16) -> http::response::Builder {
    Response::builder()
        .status(status)
        .header("x-agent-gateway-decision-id", "decision-1")
        .header("x-internal", "not for agents")
}

async fn open(
    host: &str,
    receive: &mut RecvStream,
    send: &mut SendStream<Bytes>,
    seen: &watch::Sender<Seen>,
) -> Option<()> {
    match host {
        "echo" => {
            while let Some(data) = receive.data().await {
                let data = data.ok()?;
                receive.flow_control().release_capacity(data.len()).unwrap();
                send_all(send, &data).await?;
            }
            send.send_data(Bytes::new(), true).ok()
        }
        "listen" => {
            let upload = listen(receive, seen).await;
            let digits = upload.iter().fold(String::new(), |mut digits, byte| {
                write!(digits, "{byte:02x}").unwrap();
                digits
            });
            send_all(send, digits.as_bytes()).await?;
            send.send_data(Bytes::new(), true).ok()
        }
        "greet" => {
            send_all(send, b"hello").await?;
            send.send_data(Bytes::new(), true).ok()?;
            listen(receive, seen).await;
            Some(())
        }
        "flood" => loop {
            send_all(send, &[b'x'; 16 * 1024]).await?;
            seen.send_modify(|seen| seen.flood += 16 * 1024);
        },
        "drizzle" => loop {
            for _ in 0..100 {
                send_all(send, b"xxxx").await?;
                seen.send_modify(|seen| seen.flood += 4);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        },
        cut => {
            let reason = match cut.strip_prefix("cut-").expect("a known host") {
                "no-error" => Reason::NO_ERROR,
                "cancel" => Reason::CANCEL,
                "internal-error" => Reason::INTERNAL_ERROR,
                other => panic!("{other}"),
            };
            send_all(send, b"partial").await?;
            // Not before the client's turn, or the reset takes the data away.
            receive.data().await;
            send.send_reset(reason);
            Some(())
        }
    }
}

async fn listen(receive: &mut RecvStream, seen: &watch::Sender<Seen>) -> Vec<u8> {
    let mut upload = Vec::new();
    let ending = loop {
        match receive.data().await {
            Some(Ok(data)) => {
                receive.flow_control().release_capacity(data.len()).unwrap();
                upload.extend_from_slice(&data);
            }
            Some(Err(error)) => break Ending::Reset(error.reason()),
            None => break Ending::EndStream,
        }
    };
    seen.send_modify(|seen| seen.uploads.push((upload.clone(), ending)));
    upload
}

async fn send_all(send: &mut SendStream<Bytes>, data: &[u8]) -> Option<()> {
    let mut data = Bytes::copy_from_slice(data);
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let room = poll_fn(|context| send.poll_capacity(context)).await?.ok()?;
        send.send_data(data.split_to(room.min(data.len())), false)
            .ok()?;
    }
    Some(())
}

fn tls(pki: &GatewayPki) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = CertificateDer::from_pem_file(pki.certificate_file()).unwrap();
    let key = PrivateKeyDer::from_pem_file(pki.key_file()).unwrap();
    let mut tls = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(AnyCertificate(provider)))
        .with_single_cert(vec![certificate], key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    tls
}

/// As the real gateway: no chain is checked, possession of the key is.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyCertificate {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
