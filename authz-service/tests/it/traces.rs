//! Traces, as a real OTLP collector gets them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use testbed::gateway::AGENT;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::{DESTINATION, Scene, http_of, verdict};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const OTHER_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// What the collector got. Locked only to add or to look.
#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<ResourceSpans>>>);

#[tonic::async_trait]
impl TraceService for Collected {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = request.into_inner().resource_spans;
        self.0.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collected {
    async fn start() -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let collected = Self::default();
        let service = TraceServiceServer::new(collected.clone());
        let incoming = TcpListenerStream::new(listener);
        let serving = Server::builder().add_service(service);
        tokio::spawn(serving.serve_with_incoming(incoming));
        (collected, address)
    }

    fn spans(&self) -> Vec<Span> {
        let resources = self.0.lock().unwrap();
        let scopes = resources.iter().flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// All of it, as text.
    fn text(&self) -> String {
        format!("{:?}", self.0.lock().unwrap())
    }
}

/// A service that sends its spans to a collector.
async fn traced(environment: &[(&str, &str)]) -> (Scene, Collected) {
    let (collected, address) = Collected::start().await;
    let endpoint = format!("http://{address}");
    let mut all = vec![("AGENT_GATEWAY__OBSERVABILITY__OTLP_ENDPOINT", &*endpoint)];
    all.extend(environment);
    (Scene::start_with(&all).await, collected)
}

fn attribute(span: &Span, name: &str) -> Option<String> {
    let mut found = span.attributes.iter().filter(|pair| pair.key == name);
    let value = found.next()?.value.clone()?.value?;
    assert!(found.next().is_none(), "{name} twice");
    match value {
        Value::StringValue(text) => Some(text),
        other => panic!("{name}: {other:?}"),
    }
}

fn traceparent(trace: &str) -> String {
    format!("00-{trace}-{PARENT}-01")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_continues_envoys_trace() {
    let (mut scene, collected) = traced(&[]).await;
    scene.grant().await;
    let mut message = scene.request();
    let headers = &mut http_of(&mut message).headers;
    headers.insert("traceparent".to_owned(), traceparent(OTHER_TRACE));
    headers.insert("x-request-id".to_owned(), "request-1".to_owned());
    let mut request = Request::new(message);
    let value = traceparent(TRACE).parse().unwrap();
    request.metadata_mut().insert("traceparent", value);
    let answer = scene.client().await.check(request).await.unwrap();
    let answer = answer.into_inner();
    assert_eq!(verdict(&answer), (200, "allowed"));
    // What is still held back is sent at the end.
    assert_eq!(scene.authz.stop().unwrap().code(), Some(0));

    let spans = collected.spans();
    let [span] = spans.as_slice() else {
        panic!("{spans:?}");
    };
    assert_eq!(span.name, "check");
    assert_eq!(hex::encode(&span.trace_id), TRACE);
    assert_eq!(hex::encode(&span.parent_span_id), PARENT);
    let fields = &answer.dynamic_metadata.unwrap().fields;
    let decision_id = format!("{:?}", fields["decision_id"].kind.as_ref().unwrap());
    let id = attribute(span, "decision.id").unwrap();
    assert!(decision_id.contains(&id), "{decision_id} {id}");
    for (name, expected) in [
        ("request.id", "request-1"),
        ("reason", "allowed"),
        ("identity", AGENT),
        ("destination", DESTINATION),
    ] {
        assert_eq!(attribute(span, name).as_deref(), Some(expected), "{name}");
    }
    let text = collected.text();
    assert!(text.contains("agent-gateway-authz"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_envoy_does_not_trace_the_agents_trace_is_continued() {
    // Traces don't depend on what is logged.
    let level = (
        "AGENT_GATEWAY__OBSERVABILITY__LOG_LEVEL",
        "info,authz_service::check=error",
    );
    let (mut scene, collected) = traced(&[level]).await;
    let mut client = scene.client().await;
    let mut request = scene.request();
    let headers = &mut http_of(&mut request).headers;
    headers.insert("traceparent".to_owned(), traceparent(OTHER_TRACE));
    let answer = client.check(request).await.unwrap().into_inner();
    assert_eq!(verdict(&answer), (403, "no_permission"));
    // One that can't be read begins a trace of its own.
    let mut request = scene.request();
    let headers = &mut http_of(&mut request).headers;
    headers.insert("traceparent".to_owned(), "00-zz-zz-01".to_owned());
    client.check(request).await.unwrap();
    assert_eq!(scene.authz.stop().unwrap().code(), Some(0));

    let spans = collected.spans();
    let [continued, own] = spans.as_slice() else {
        panic!("{spans:?}");
    };
    assert_eq!(hex::encode(&continued.trace_id), OTHER_TRACE);
    assert_eq!(hex::encode(&continued.parent_span_id), PARENT);
    assert_eq!(
        attribute(continued, "reason").as_deref(),
        Some("no_permission")
    );
    assert_ne!(own.trace_id, continued.trace_id);
    assert_eq!(hex::encode(&own.parent_span_id), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_traced_logged_or_recorded_however_much_is() {
    let (collected, address) = Collected::start().await;
    let database = testbed::database().await.unwrap();
    testbed::authz::migrate(&database.url()).unwrap();
    let role = format!("it_secret_{}", std::process::id());
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'planted-password' IN ROLE agent_gateway_reader"
        ))
        .unwrap();
    let endpoint = format!("http://{address}");
    let folder = tempfile::tempdir().unwrap();
    let audit = folder.path().join("audit.jsonl");
    let environment = [
        ("AGENT_GATEWAY__OBSERVABILITY__OTLP_ENDPOINT", &*endpoint),
        ("AGENT_GATEWAY__AUDIT__PATH", audit.to_str().unwrap()),
        ("AGENT_GATEWAY__AUDIT__STDOUT", "true"),
        ("AGENT_GATEWAY__OBSERVABILITY__LOG_LEVEL", "trace"),
        // Nothing tells the service that a table was renamed.
        ("AGENT_GATEWAY__CACHE__MAX_AGE_MS", "2000"),
        ("AGENT_GATEWAY__POLICY__QUERY_TIMEOUT_MS", "2000"),
    ];
    let mut scene = Scene::start_at(database, &environment, |database| {
        database.url_as(&role, "planted-password").unwrap()
    })
    .await;
    scene.grant().await;
    let mut request = scene.request();
    let http = http_of(&mut request);
    for name in ["proxy-authorization", "authorization", "cookie"] {
        http.headers
            .insert(name.to_owned(), "Basic planted-credential".to_owned());
    }
    "planted-body".clone_into(&mut http.body);
    let mut client = scene.client().await;
    let answer = client.check(request.clone()).await.unwrap().into_inner();
    assert_eq!(verdict(&answer), (200, "allowed"));
    scene
        .database
        .execute("ALTER TABLE permission_registry RENAME TO gone")
        .unwrap();
    tokio::time::sleep(Duration::from_millis(2200)).await;
    let answer = client.check(request).await.unwrap().into_inner();
    assert_eq!(verdict(&answer), (503, "registry_unavailable"));
    assert_eq!(scene.authz.stop().unwrap().code(), Some(0));

    assert_eq!(collected.spans().len(), 2);
    let log = scene.authz.process().log();
    // The log is as full as can be.
    assert!(log.contains("\"TRACE\""), "{log}");
    let audit = std::fs::read_to_string(&audit).unwrap();
    assert_eq!(audit.lines().count(), 3, "{audit}");
    // The copy.
    for line in audit.lines() {
        assert!(log.lines().any(|copied| copied == line), "{line}");
    }
    for (place, text) in [("traces", collected.text()), ("log", log), ("audit", audit)] {
        if let Some(line) = text.lines().find(|line| line.contains("planted-")) {
            panic!("in the {place}: {line}");
        }
    }
    scene
        .database
        .execute(&format!("DROP ROLE {role}"))
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_does_not_hold_up_decisions_or_the_end() {
    // Takes connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let otlp = ("AGENT_GATEWAY__OBSERVABILITY__OTLP_ENDPOINT", &*endpoint);
    let mut scene = Scene::start_with(&[otlp]).await;
    scene.grant().await;
    for _ in 0..3 {
        assert_eq!(verdict(&scene.check().await), (200, "allowed"));
    }
    assert_eq!(scene.authz.stop().unwrap().code(), Some(0));
    let log = scene.authz.process().log();
    assert!(log.contains("the last traces were not sent"), "{log}");
}
