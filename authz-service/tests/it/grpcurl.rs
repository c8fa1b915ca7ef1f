//! By hand: gRPC reflection, and the tool that people use with it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testbed::gateway::AGENT;
use tonic::Code;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::{DESTINATION, Scene, channel};

/// Runs grpcurl with `message` for its input; its output, or else what it complains about.
fn grpcurl(address: SocketAddr, arguments: &[&str], message: &str) -> Result<String, String> {
    let address = address.to_string();
    grpcurl_to(&[&address], arguments, message)
}

/// As [`grpcurl`], to what these arguments name.
pub(crate) fn grpcurl_to(
    target: &[&str],
    arguments: &[&str],
    message: &str,
) -> Result<String, String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/grpcurl");
    assert!(program.exists(), "no grpcurl: run `make setup`");
    let mut grpcurl = Command::new(program)
        .args(["-plaintext", "-d", "@"])
        .args(target)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = grpcurl.stdin.take().unwrap();
    stdin.write_all(message.as_bytes()).unwrap();
    drop(stdin);
    let output = grpcurl.wait_with_output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

fn check(scene: &Scene, request: &Value) -> Value {
    let answer = grpcurl(
        scene.authz.admin_grpc_addr(),
        &["envoy.service.auth.v3.Authorization/Check"],
        &request.to_string(),
    );
    serde_json::from_str(&answer.unwrap()).unwrap()
}

#[tokio::test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no grpcurl wheel")]
async fn grpcurl_lists_and_describes_the_services() {
    let scene = Scene::start().await;
    let address = scene.authz.admin_grpc_addr();
    let listed = grpcurl(address, &["list"], "").unwrap();
    let listed: Vec<_> = listed.lines().collect();
    assert_eq!(
        listed,
        [
            "agent_gateway.admin.v1.Debug",
            "agent_gateway.admin.v1.Operations",
            "envoy.service.auth.v3.Authorization",
            "grpc.health.v1.Health",
        ]
    );
    for (symbol, expected) in [
        (
            "envoy.service.auth.v3.Authorization",
            "rpc Check ( .envoy.service.auth.v3.CheckRequest ) returns ( \
             .envoy.service.auth.v3.CheckResponse );",
        ),
        (
            "agent_gateway.admin.v1.Debug",
            "rpc Explain ( .agent_gateway.admin.v1.ExplainRequest ) returns ( \
             .agent_gateway.admin.v1.ExplainResponse );",
        ),
        (
            "envoy.service.auth.v3.AttributeContext.HttpRequest",
            "string method = 2;",
        ),
    ] {
        let described = grpcurl(address, &["describe", symbol], "").unwrap();
        assert!(described.contains(expected), "{described}");
    }
    let health = grpcurl(address, &["grpc.health.v1.Health/Check"], "{}").unwrap();
    let health: Value = serde_json::from_str(&health).unwrap();
    assert_eq!(health, json!({"status": "SERVING"}));
}

#[tokio::test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no grpcurl wheel")]
async fn a_check_by_hand_gives_a_readable_answer() {
    let scene = Scene::start().await;
    let request = json!({"attributes": {
        "source": {"certificate": scene.agent.pem()},
        "request": {"http": {"method": "CONNECT", "host": DESTINATION}},
    }});
    let denied = check(&scene, &request);
    let response = &denied["deniedResponse"];
    assert_eq!(
        denied["status"],
        json!({"code": 7, "message": "no_permission"})
    );
    assert_eq!(response["status"], json!({"code": "Forbidden"}));
    let body: Value = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
    assert_eq!(body["reason"], "no_permission");
    assert_eq!(denied["dynamicMetadata"]["identity"], AGENT);

    scene.grant().await;
    let allowed = check(&scene, &request);
    assert_eq!(allowed["status"], json!({}));
    let header = &allowed["okResponse"]["headers"][0]["header"];
    assert_eq!(header["key"], "x-envoy-upstream-stream-duration-ms");
    let metadata = &allowed["dynamicMetadata"];
    assert_eq!(metadata["reason"], "allowed");
    assert_eq!(metadata["dial"], "127.0.0.1:8443");
    assert_eq!(metadata["allow_private"], true);
}

#[tokio::test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no grpcurl wheel")]
async fn explain_by_hand_needs_only_a_certificate() {
    let scene = Scene::start().await;
    let question = json!({"certificate_pem": scene.agent.pem(), "destination": DESTINATION});
    let answer = grpcurl(
        scene.authz.admin_grpc_addr(),
        &["agent_gateway.admin.v1.Debug/Explain"],
        &question.to_string(),
    );
    let answer: Value = serde_json::from_str(&answer.unwrap()).unwrap();
    assert_eq!(answer["reason"], "no_permission");
    assert_eq!(answer["identity"], AGENT);
}

/// The services that reflection v1 lists.
async fn listed_by_v1(address: SocketAddr) -> Result<Vec<String>, tonic::Status> {
    let mut client = ServerReflectionClient::new(channel(address).await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let requests = tokio_stream::once(request);
    let mut answers = client.server_reflection_info(requests).await?.into_inner();
    let answer = answers.message().await?.unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("{answer:?}");
    };
    Ok(list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect())
}

#[tokio::test]
async fn reflection_v1_lists_the_same_and_only_on_the_admin_listener() {
    let scene = Scene::start().await;
    let mut listed = listed_by_v1(scene.authz.admin_grpc_addr()).await.unwrap();
    listed.sort();
    assert_eq!(
        listed,
        [
            "agent_gateway.admin.v1.Debug",
            "agent_gateway.admin.v1.Operations",
            "envoy.service.auth.v3.Authorization",
            "grpc.health.v1.Health",
        ]
    );
    let refused = listed_by_v1(scene.authz.grpc_addr()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no grpcurl wheel")]
async fn grpcurl_gets_no_reflection_from_envoys_listener() {
    let scene = Scene::start().await;
    let refused = grpcurl(scene.authz.grpc_addr(), &["list"], "").unwrap_err();
    assert!(
        refused.contains("does not support the reflection API"),
        "{refused}"
    );
}

/// Runs `scripts/check-request`; its output, or the exit status and what it complains about.
fn check_request(arguments: &[&str]) -> Result<Value, (Option<i32>, String)> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/check-request");
    let output = Command::new(program).args(arguments).output().unwrap();
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    } else {
        let said = String::from_utf8(output.stderr).unwrap();
        Err((output.status.code(), said))
    }
}

#[tokio::test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no grpcurl wheel")]
async fn the_script_makes_the_request_that_envoy_would() {
    let scene = Scene::start_with(&[
        ("AGENT_GATEWAY__PROFILES__MESH__REQUESTS", "http"),
        ("AGENT_GATEWAY__PROFILES__MESH__PORTS", "[8443]"),
    ])
    .await;
    scene.grant().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.pem");
    std::fs::write(&file, scene.agent.pem()).unwrap();
    let der = folder.path().join("agent.der");
    std::fs::write(&der, scene.agent.der()).unwrap();
    let (pem, der) = (file.to_str().unwrap(), der.to_str().unwrap());
    for (arguments, expected) in [
        (&[pem, DESTINATION][..], "allowed"),
        (&[der, DESTINATION], "allowed"),
        (&[pem, "docstore"], "no_permission"),
        (&[pem, "user@docstore"], "destination_invalid"),
        (&["none", DESTINATION], "no_client_certificate"),
        (&[pem, "https://docstore:8443/x?y", "mesh"], "allowed"),
        (&[pem, "https://docstore/", "mesh"], "destination_invalid"),
        (&[pem, "https://docstore:8443/", "other"], "profile_unknown"),
        (&[pem, "https://docstore:8443/"], "method_not_allowed"),
    ] {
        let request = check_request(arguments).unwrap();
        let answer = check(&scene, &request);
        assert_eq!(
            answer["dynamicMetadata"]["reason"], expected,
            "{arguments:?}"
        );
    }

    let (status, said) = check_request(&["/etc/passwd", DESTINATION]).unwrap_err();
    assert_eq!(status, Some(65));
    let expected = "error: /etc/passwd holds no certificate\nhint: ";
    assert!(said.starts_with(expected), "{said}");
    let (status, said) = check_request(&[pem]).unwrap_err();
    assert_eq!(status, Some(64));
    assert!(said.starts_with("usage: "), "{said}");
}
