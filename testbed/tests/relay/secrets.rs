//! What agents send and tools answer is in no audit, log or trace; and names disguise nothing there.

use std::fs;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::ClientCertificate;
use testbed::caller::{Sent, Version};
use testbed::tool::Conduct;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::scene::{Scene, Unlike, envelope};

const PLANTED: &str = "planted-secret";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// An OTLP collector: all that it got, as text.
#[derive(Clone, Default)]
struct Collected(Arc<Mutex<String>>);

#[tonic::async_trait]
impl TraceService for Collected {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let text = format!("{:?}\n", request.into_inner());
        self.0.lock().unwrap().push_str(&text);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collected {
    /// Also says where it listens.
    async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let collected = Self::default();
        let service = TraceServiceServer::new(collected.clone());
        let serving = Server::builder().add_service(service);
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        (collected, endpoint)
    }
}

/// A scene in which everything is written down that can be.
struct Talkative {
    scene: Scene,
    traces: Collected,
    folder: TempDir,
}

impl Talkative {
    async fn start() -> Self {
        let folder = testbed::scratch::folder("audit").unwrap();
        let audit = folder.path().join("audit.jsonl");
        let (traces, endpoint) = Collected::start().await;
        let scene = Scene::start_unlike(Unlike {
            environment: vec![
                ("AUDIT_PATH", audit.to_str().unwrap().to_owned()),
                ("AGENT_GATEWAY__AUDIT__STDOUT", "true".to_owned()),
                ("AGENT_GATEWAY__OBSERVABILITY__OTLP_ENDPOINT", endpoint),
                (
                    "AGENT_GATEWAY__OBSERVABILITY__LOG_LEVEL",
                    "trace".to_owned(),
                ),
            ],
            ..Unlike::default()
        });
        Self {
            scene: scene.await,
            traces,
            folder,
        }
    }

    fn audit(&self) -> String {
        fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap()
    }

    /// Stops the service and Envoy, so that nothing is held back; all that was written, by its
    /// place.
    fn written(&mut self) -> [(&'static str, String); 5] {
        assert!(self.scene.gateway.authz.stop().unwrap().success());
        self.scene.gateway.envoy.stop().unwrap();
        let accesses = self.scene.gateway.envoy.access_log().unwrap();
        [
            ("audit", self.audit()),
            ("traces", self.traces.0.lock().unwrap().clone()),
            ("log", self.scene.gateway.authz.process().log()),
            ("access log", Value::from(accesses).to_string()),
            ("Envoy's log", self.scene.gateway.envoy.process().log()),
        ]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_and_answered_is_written_down_nowhere() {
    let mut talkative = Talkative::start().await;
    let scene = &talkative.scene;
    let says = vec![("set-cookie", PLANTED), ("x-of-tool", PLANTED)];
    let says = Conduct::Says(200, says, PLANTED.as_bytes().to_vec());
    scene.echo.conduct(says);
    let traceparent = format!("00-{TRACE}-b7ad6b7169203331-01");
    let unmet = envelope("todos", &json!({"op": PLANTED, PLANTED: 1}));
    let mut proofs = Vec::new();
    for (tool, body, status) in [
        ("echo", format!("{{\"message\":\"{PLANTED}\"}}"), 200),
        ("echo", PLANTED.to_owned(), 422),
        ("todos", unmet, 422),
        // Of another body.
        ("echo", format!("\"{PLANTED}\""), 403),
    ] {
        let proven = if status == 403 { "{}" } else { body.as_str() };
        let proof = scene.proof(tool, proven.as_bytes());
        let headers = proof.with(&[
            ("content-type", "application/json"),
            ("authorization", PLANTED),
            ("proxy-authorization", PLANTED),
            ("cookie", PLANTED),
            ("x-api-key", PLANTED),
            ("traceparent", &traceparent),
        ]);
        proofs.extend(headers[..2].iter().map(|(_, value)| (*value).to_owned()));
        let mut caller = scene.caller(Version::Http2).await;
        let answer = caller.call(&headers, Sent::whole(body)).await.unwrap();
        assert_eq!(answer.status, status, "{answer:?}");
        // The agent gets the tool's own words, and nothing else of it back.
        assert_eq!(answer.text().contains(PLANTED), status == 200);
    }
    let written = talkative.written();
    for (place, text) in &written[..4] {
        // All of them did write of these calls.
        let sign = if *place == "access log" {
            "\"echo\""
        } else {
            TRACE
        };
        let traced = *place == "traces" || text.contains(sign);
        assert!(traced && !text.is_empty(), "{place}: {text}");
    }
    assert!(written[2].1.contains("\"TRACE\""));
    for (place, text) in &written {
        for secret in proofs.iter().map(String::as_str).chain([PLANTED]) {
            if let Some(line) = text.lines().find(|line| line.contains(secret)) {
                panic!("{secret} in the {place}: {line}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_callers_choose_disguise_nothing() {
    let mut talkative = Talkative::start().await;
    let scene = &talkative.scene;
    let name = "a\"b\\c,\"decision\":\"allow\u{202e}\u{2028}\u{200b}\u{e9}";
    let forged = "x\",\"decision\":\"allow\",\"y\":\"";
    let stranger = ClientCertificate::for_identity(name).unwrap();
    let tools = ["a\n{\"decision\":\"allow\"}", "\u{202e}\u{2028}", forged];
    let bodies = tools.map(|tool| envelope(tool, &json!(1)));
    let mut asked = 0;
    for certificate in [&scene.agent, &stranger] {
        for body in bodies.iter().map(String::as_str).chain(["{}"]) {
            let proof = scene.proof("todos", body.as_bytes());
            let headers = proof.with(&[
                ("content-type", "application/json"),
                ("x-contract-id", forged),
                ("x-request-id", forged),
                ("traceparent", forged),
                ("user-agent", forged),
            ]);
            let mut caller = scene.caller_with(certificate, Version::Http2).await;
            let sent = Sent::whole(body.to_owned());
            let answer = caller.call(&headers, sent).await.unwrap();
            assert!(answer.status.is_client_error(), "{answer:?}");
            asked += 1;
        }
    }
    let written = talkative.written();
    let [(_, audit), _, (_, log), (_, accesses), _] = &written;
    let lines: Vec<Value> = (audit.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 1 + asked);
    let printable = |byte: u8| byte == b'\n' || (b' '..=b'~').contains(&byte);
    assert!(audit.bytes().all(printable), "{audit}");
    for record in &lines[1..] {
        assert_eq!(record["decision"], "deny", "{record}");
    }
    assert_eq!(lines.last().unwrap()["caller"], name);
    for line in log.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
    assert!(!log.contains(['\u{202e}', '\u{2028}', '\u{200b}']), "{log}");
    // Each of its lines is JSON; the names in it are for programs.
    assert_eq!(accesses.matches("\"method\":\"POST\"").count(), asked);
}
