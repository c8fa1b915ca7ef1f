//! Open tunnels as Envoy sees them, by a client that is not Envoy: it calls when the test says, and
//! has no timer of its own that could end a tunnel.

use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue, Metadata};
use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as Stage;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response as Answer;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    HttpHeaders, ImmediateResponse, ProcessingRequest, ProcessingResponse,
};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use testbed::gateway::AGENT;
use testbed::rows::{Grant, Times, silence_notifications};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::lock::Session;
use super::{Scene, channel, verdict};

const PATIENCE: Duration = testbed::process::PATIENCE;

const NAMESPACE: &str = "envoy.filters.http.ext_authz";

/// The service hears of a change only when it asks for changes.
const DEAF: [(&str, &str); 2] = [
    ("AGENT_GATEWAY__POLICY__POLL_INTERVAL_MS", "60000"),
    ("AGENT_GATEWAY__POLICY__MAX_STALENESS_MS", "60000"),
];

/// One tunnel's stream; the tunnel ends when this is dropped.
struct Held {
    _requests: mpsc::Sender<ProcessingRequest>,
    answers: Streaming<ProcessingResponse>,
}

impl Held {
    /// What comes next.
    async fn next(&mut self) -> Result<Answer, Status> {
        let message = timeout(PATIENCE, self.answers.message()).await;
        let message = message.expect("no answer")?.expect("an orderly end");
        Ok(message.response.unwrap())
    }

    /// The tunnel may open.
    async fn opens(mut self) -> Self {
        let answer = self.next().await.unwrap();
        assert!(matches!(answer, Answer::RequestHeaders(_)), "{answer:?}");
        self
    }

    /// The tunnel is refused, or cut.
    async fn is_cut(&mut self) -> ImmediateResponse {
        match self.next().await.unwrap() {
            Answer::ImmediateResponse(response) => response,
            other => panic!("{other:?}"),
        }
    }
}

impl Scene {
    /// Opens a stream as Envoy does after this Check.
    async fn stream(&self, check: &CheckResponse) -> Held {
        let metadata = check.dynamic_metadata.clone().unwrap();
        self.stream_of(first(NAMESPACE, metadata)).await.unwrap()
    }

    async fn stream_of(&self, first: ProcessingRequest) -> Result<Held, Status> {
        let mut client = ExternalProcessorClient::new(channel(self.authz.grpc_addr()).await);
        let (requests, outbound) = mpsc::channel(2);
        requests.send(first).await.unwrap();
        let answers = client.process(ReceiverStream::new(outbound)).await?;
        Ok(Held {
            _requests: requests,
            answers: answers.into_inner(),
        })
    }

    /// A Check that allows, without waiting for the service to know of anything.
    async fn allowed(&self) -> CheckResponse {
        let channel = channel(self.authz.grpc_addr()).await;
        let mut client = super::AuthorizationClient::new(channel);
        let answer = client.check(self.request()).await.unwrap().into_inner();
        assert_eq!(verdict(&answer), (200, "allowed"));
        answer
    }

    /// Allows the agent [`super::DESTINATION`], before the service was asked for it.
    fn grant_unheard(&self) {
        let grant = Grant::new(AGENT, self.agent.spki_der(), super::DESTINATION);
        self.principal.grant(&self.database, &grant).unwrap();
    }
}

/// The first message of a stream, with this metadata and headers that name somebody.
fn first(namespace: &str, metadata: Struct) -> ProcessingRequest {
    let header = |key: &str, value: &str| HeaderValue {
        key: key.to_owned(),
        raw_value: value.as_bytes().to_vec(),
        ..Default::default()
    };
    let headers = HttpHeaders {
        headers: Some(HeaderMap {
            headers: vec![
                header(":method", "CONNECT"),
                header(":authority", super::DESTINATION),
                header("reason", "allowed"),
                header("identity", AGENT),
            ],
        }),
        ..Default::default()
    };
    ProcessingRequest {
        request: Some(Stage::RequestHeaders(headers)),
        metadata_context: Some(Metadata {
            filter_metadata: [(namespace.to_owned(), metadata)].into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn body(cut: &ImmediateResponse) -> serde_json::Value {
    serde_json::from_slice(&cut.body).unwrap()
}

/// The service believes the registry unchanged, and would for a minute: what is taken back after
/// the Check shows only because it asks again once the tunnel is registered.
#[tokio::test]
async fn what_is_revoked_between_check_and_registration_does_not_slip_through() {
    for (change, reason) in [
        (
            "UPDATE permission_registry SET revoked_at = now()",
            "permission_revoked",
        ),
        (
            "UPDATE principal_signing_keys SET revoked_at = now()",
            "signing_key_inactive",
        ),
        (
            "UPDATE principal_key_permissions SET revoked_at = now()",
            "scope_missing",
        ),
        ("DELETE FROM permission_registry", "no_permission"),
    ] {
        let scene = Scene::start_with(&DEAF).await;
        silence_notifications(&scene.database).unwrap();
        scene.grant_unheard();
        let check = scene.allowed().await;
        scene.database.execute(change).unwrap();
        scene.allowed().await;

        let mut held = scene.stream(&check).await;
        let refused = held.is_cut().await;
        assert_eq!(refused.status.as_ref().unwrap().code, 403, "{reason}");
        assert_eq!(refused.details, reason);
        assert_eq!(body(&refused)["reason"], reason);
    }
}

#[tokio::test]
async fn a_tunnel_is_cut_when_its_permission_ends_whatever_envoy_does() {
    for registry_answers in [true, false] {
        let scene = Scene::start().await;
        let ends_at = SystemTime::now() + Duration::from_secs(8);
        scene.grant_during(Times::from_now(-60, 8)).await;
        let check = scene.allowed().await;
        let mut held = scene.stream(&check).await.opens().await;
        let _lock = (!registry_answers).then(|| Session::locking_permissions(&scene.database));
        assert_eq!(held.is_cut().await.details, "permission_expired");
        assert!(SystemTime::now() >= ends_at, "cut too soon");
    }
}

#[tokio::test]
async fn who_and_where_are_taken_from_our_own_decision_alone() {
    let scene = Scene::start().await;
    scene.grant().await;
    let metadata = scene.allowed().await.dynamic_metadata.unwrap();
    let without = |key: &str| {
        let mut metadata = metadata.clone();
        metadata.fields.remove(key).unwrap();
        first(NAMESPACE, metadata)
    };
    let with = |key: &str, text: &str| {
        let mut metadata = metadata.clone();
        let kind = Some(Kind::StringValue(text.to_owned()));
        metadata.fields.insert(key.to_owned(), Value { kind });
        first(NAMESPACE, metadata)
    };
    for message in [
        first(NAMESPACE, Struct::default()),
        first("envoy.filters.http.rbac", metadata.clone()),
        ProcessingRequest {
            metadata_context: None,
            ..first(NAMESPACE, metadata.clone())
        },
        ProcessingRequest {
            request: None,
            ..first(NAMESPACE, metadata.clone())
        },
        without("reason"),
        without("identity"),
        without("spki"),
        without("destination"),
        without("decision_id"),
        with("reason", "no_permission"),
        with("identity", ""),
        with("spki", "00"),
        with("destination", "Docstore:8443"),
    ] {
        let held = scene.stream_of(message.clone()).await;
        let refused = match held {
            Ok(mut held) => held.next().await.err(),
            Err(status) => Some(status),
        };
        let code = refused.map(|status| status.code());
        assert_eq!(code, Some(Code::FailedPrecondition), "{message:?}");
    }
    // Another agent's name is another agent's tunnel, whatever the headers say.
    let mut held = scene
        .stream_of(with("identity", "agent-beta"))
        .await
        .unwrap();
    assert_eq!(held.is_cut().await.details, "no_permission");
    drop(
        scene
            .stream_of(first(NAMESPACE, metadata))
            .await
            .unwrap()
            .opens()
            .await,
    );
}

#[tokio::test]
async fn an_open_write_holds_back_neither_writers_nor_the_cut_of_others() {
    let scene = Scene::start().await;
    scene.grant().await;
    let held = scene.allowed().await;
    let mut held = scene.stream(&held).await.opens().await;

    // Written before, and not committed for as long as the test likes.
    let open = Session::holding(
        &scene.database,
        "BEGIN; UPDATE principal_signing_keys SET revoked_at = now();",
    );
    let impatient = "SET lock_timeout = '5s'; SET statement_timeout = '5s';";
    for round in 0..3 {
        let revoke = format!(
            "{impatient} UPDATE permission_registry SET revoked_at = now()
             WHERE subject_identity = '{AGENT}'"
        );
        scene.database.execute(&revoke).unwrap();
        assert_eq!(held.is_cut().await.details, "permission_revoked", "{round}");
        assert_eq!(verdict(&scene.check().await), (403, "permission_revoked"));
        let back = format!(
            "{impatient} UPDATE permission_registry SET revoked_at = NULL
             WHERE subject_identity = '{AGENT}'"
        );
        scene.database.execute(&back).unwrap();
        assert_eq!(verdict(&scene.check().await), (200, "allowed"));
        held = scene.stream(&scene.allowed().await).await.opens().await;
    }
    // What it wrote before all that counts when it commits.
    open.commit();
    assert_eq!(held.is_cut().await.details, "signing_key_inactive");
    assert_eq!(verdict(&scene.check().await), (403, "signing_key_inactive"));
}
