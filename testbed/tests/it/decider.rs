//! An authorization service that answers every Check as the test says, and the gateway in front
//! of it. What the real service decides is tested with the real service.

use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use envoy_types::ext_authz::v3::pb::{
    Authorization, AuthorizationServer, CheckRequest, CheckResponse, DeniedHttpResponse,
    HeaderValue, HeaderValueOption, HttpResponse, HttpStatus, OkHttpResponse,
};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::HttpRequest;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::ExternalProcessorServer;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use envoy_types::pb::google::rpc::Status as RpcStatus;
use testbed::tunnel::Answer;
use testbed::{ClientCertificate, Envoy, EnvoyOptions, GatewayPki, TunnelClient};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::holder::Holder;

/// Envoy, an agent's certificate, and the service that decides.
pub(crate) struct Gateway {
    pub(crate) envoy: Envoy,
    pub(crate) pki: GatewayPki,
    pub(crate) certificate: ClientCertificate,
    decider: Decider,
}

struct Decider {
    addr: SocketAddr,
    verdict: Arc<Mutex<Verdict>>,
    requests: Arc<Mutex<Vec<CheckRequest>>>,
    server: Option<Runtime>,
}

/// What every Check is answered with.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// Allowed, with this dynamic metadata and these headers.
    Allow(Vec<(&'static str, Kind)>, Vec<(&'static str, String)>),
    /// Denied with this status, header and body, and the reason "as the test says" in metadata.
    Deny(i32, (&'static str, &'static str), &'static str),
    /// No answer.
    Hang,
}

/// Allowed to dial this, as decision `d-1`.
pub(crate) fn dial(address: impl Display + Copy) -> Verdict {
    let metadata = vec![
        ("dial", Kind::StringValue(address.to_string())),
        ("decision_id", Kind::StringValue("d-1".to_owned())),
    ];
    Verdict::Allow(metadata, Vec::new())
}

/// Allowed to dial this, be it private.
pub(crate) fn dial_private(address: impl Display + Copy) -> Verdict {
    dial(address).and("allow_private", Kind::BoolValue(true))
}

impl Verdict {
    pub(crate) fn and(mut self, key: &'static str, value: Kind) -> Verdict {
        let Verdict::Allow(metadata, _) = &mut self else {
            panic!("only an allow has metadata")
        };
        metadata.push((key, value));
        self
    }

    pub(crate) fn with_header(mut self, name: &'static str, value: &str) -> Verdict {
        let Verdict::Allow(_, headers) = &mut self else {
            panic!("only an allow has headers")
        };
        headers.push((name, value.to_owned()));
        self
    }

    fn response(self) -> CheckResponse {
        let (code, http_response, metadata) = match self {
            Verdict::Hang => unreachable!("it has no response"),
            Verdict::Allow(metadata, headers) => {
                let headers = headers
                    .into_iter()
                    .map(|(name, value)| header(name, &value));
                let headers = headers.collect();
                let ok = OkHttpResponse {
                    headers,
                    ..OkHttpResponse::default()
                };
                (0, HttpResponse::OkResponse(ok), metadata)
            }
            Verdict::Deny(code, (name, value), body) => {
                let denied = DeniedHttpResponse {
                    status: Some(HttpStatus { code }),
                    headers: vec![header(name, value)],
                    body: body.to_owned(),
                };
                let reason = Kind::StringValue("as the test says".to_owned());
                (
                    7,
                    HttpResponse::DeniedResponse(denied),
                    vec![("reason", reason)],
                )
            }
        };
        let fields = metadata.into_iter();
        let fields = fields.map(|(key, kind)| (key.to_owned(), Value { kind: Some(kind) }));
        CheckResponse {
            status: Some(RpcStatus {
                code,
                ..RpcStatus::default()
            }),
            http_response: Some(http_response),
            dynamic_metadata: Some(Struct {
                fields: fields.collect(),
            }),
        }
    }
}

fn header(name: &str, value: &str) -> HeaderValueOption {
    let (key, value) = (name.to_owned(), value.to_owned());
    let header = Some(HeaderValue {
        key,
        value,
        ..HeaderValue::default()
    });
    // OVERWRITE_IF_EXISTS_OR_ADD
    HeaderValueOption {
        header,
        append_action: 2,
        ..HeaderValueOption::default()
    }
}

/// Asserts a refusal of Envoy's own: the service's form, once, and the decision if there was one.
#[track_caller]
pub(crate) fn assert_refused(answer: &Answer, expected: serde_json::Value, proxy_error: &str) {
    let mut expected = expected;
    expected["request_id"] = answer.header("x-request-id").unwrap().into();
    assert_eq!(answer.json().unwrap(), expected);
    let reason = expected["reason"].as_str().unwrap();
    let proxy_status = format!("agent-gateway; error={proxy_error}; details=\"{reason}\"");
    let seen: Vec<_> = answer.headers.get_all("proxy-status").iter().collect();
    assert_eq!(seen, [&proxy_status]);
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

impl Gateway {
    pub(crate) async fn start(verdict: Verdict) -> Gateway {
        Self::start_over(Decider::start(verdict, true)).await
    }

    /// With a service that decides, but holds no tunnels.
    pub(crate) async fn start_unheld(verdict: Verdict) -> Gateway {
        Self::start_over(Decider::start(verdict, false)).await
    }

    async fn start_over(decider: Decider) -> Gateway {
        let pki = GatewayPki::generate().unwrap();
        let envoy = Envoy::start(EnvoyOptions::new(decider.addr, &pki))
            .await
            .unwrap();
        let certificate = ClientCertificate::for_identity("agent-alpha").unwrap();
        Gateway {
            envoy,
            pki,
            certificate,
            decider,
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.envoy.addr()
    }

    pub(crate) async fn client(&self) -> TunnelClient {
        TunnelClient::connect(self.addr(), &self.pki, &self.certificate)
            .await
            .unwrap()
    }

    /// Asks for one tunnel, on a connection of its own.
    pub(crate) async fn open(&self, authority: &str) -> Answer {
        self.client().await.open(authority).await.unwrap()
    }

    pub(crate) fn set(&self, verdict: Verdict) {
        *self.decider.verdict.lock().unwrap() = verdict;
    }

    /// The Checks seen so far, their HTTP part.
    pub(crate) fn checks(&self) -> Vec<HttpRequest> {
        let requests = self.decider.requests.lock().unwrap();
        requests
            .iter()
            .map(|check| {
                let attributes = check.attributes.clone().unwrap();
                attributes.request.unwrap().http.unwrap()
            })
            .collect()
    }

    /// The client certificate of the last Check: URL-encoded PEM.
    pub(crate) fn seen_certificate(&self) -> String {
        let requests = self.decider.requests.lock().unwrap();
        let attributes = requests.last().unwrap().attributes.clone().unwrap();
        attributes.source.unwrap().certificate
    }

    /// Takes the service away, connections and all.
    pub(crate) async fn stop_service(&mut self) {
        let server = self.decider.server.take().unwrap();
        let stop = move || server.shutdown_timeout(Duration::from_secs(20));
        tokio::task::spawn_blocking(stop).await.unwrap();
    }
}

impl Decider {
    fn start(verdict: Verdict, holds: bool) -> Decider {
        let verdict = Arc::new(Mutex::new(verdict));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let service = AuthorizationServer::new(Service(verdict.clone(), requests.clone()));
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        // A runtime of its own, whose end also ends the connections.
        let server = Runtime::new().unwrap();
        server.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            let router = tonic::transport::Server::builder()
                .add_service(service)
                .add_optional_service(holds.then(|| ExternalProcessorServer::new(Holder)));
            router.serve_with_incoming(incoming).await.unwrap();
        });
        Decider {
            addr,
            verdict,
            requests,
            server: Some(server),
        }
    }
}

impl Drop for Decider {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

struct Service(Arc<Mutex<Verdict>>, Arc<Mutex<Vec<CheckRequest>>>);

#[tonic::async_trait]
impl Authorization for Service {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        self.1.lock().unwrap().push(request.into_inner());
        let verdict = self.0.lock().unwrap().clone();
        if let Verdict::Hang = verdict {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(verdict.response()))
    }
}
