//! Checks straight over gRPC: what the answers hold, and requests that Envoy would not send.

use std::collections::BTreeMap;
use std::time::SystemTime;

use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use envoy_types::pb::google::protobuf::value::Kind;
use testbed::gateway::AGENT;
use testbed::rows::Times;
use testbed::{ClientCertificate, authz};

use super::{DESTINATION, Scene, connect, http_of, verdict};

fn metadata(response: &CheckResponse) -> BTreeMap<&str, &Kind> {
    let fields = response.dynamic_metadata.as_ref().unwrap().fields.iter();
    let pairs = fields.map(|(key, value)| (key.as_str(), value.kind.as_ref().unwrap()));
    pairs.collect()
}

/// The header that ends the tunnel.
fn duration_millis(response: &CheckResponse) -> u128 {
    let Some(HttpResponse::OkResponse(ok)) = &response.http_response else {
        panic!("{response:?}");
    };
    let [option] = ok.headers.as_slice() else {
        panic!("{:?}", ok.headers);
    };
    let header = option.header.as_ref().unwrap();
    assert_eq!(header.key, "x-envoy-upstream-stream-duration-ms");
    header.value.parse().unwrap()
}

fn unix_millis() -> u128 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_millis()
}

#[tokio::test]
async fn an_allow_tells_envoy_everything_and_nothing_else() {
    let scene = Scene::start().await;
    scene.grant().await;
    let response = scene.check().await;
    assert_eq!(verdict(&response), (200, "allowed"));
    let mut metadata = metadata(&response);
    let Some(Kind::StringValue(decision_id)) = metadata.remove("decision_id") else {
        panic!("{metadata:?}");
    };
    assert_eq!(decision_id.len(), 36, "{decision_id}");
    let text = |text: &str| Kind::StringValue(text.to_owned());
    let spki = hex::encode(scene.agent.spki_der());
    let expected = [
        ("identity", text(AGENT)),
        ("spki", text(&spki)),
        ("permission_id", text(&format!("{AGENT}-{DESTINATION}"))),
        ("signing_key_id", text("org-alice")),
        ("destination", text(DESTINATION)),
        ("dial", text("127.0.0.1:8443")),
        ("allow_private", Kind::BoolValue(true)),
        ("reason", text("allowed")),
    ];
    let expected: BTreeMap<_, _> = expected.iter().map(|(key, kind)| (*key, kind)).collect();
    assert_eq!(metadata, expected);
}

#[tokio::test]
async fn a_tunnel_may_last_until_its_permission_ends() {
    let scene = Scene::start().await;
    let granted = unix_millis();
    scene.grant_during(Times::from_now(-60, 600)).await;
    let millis = duration_millis(&scene.check().await);
    assert!(millis <= 600_000, "{millis}");
    // It was written before it arrived here; two clocks are rounded down on the way.
    let answered = unix_millis();
    assert!(millis + 2 >= granted + 600_000 - answered, "{millis}");
}

#[tokio::test]
async fn no_tunnel_lasts_for_more_than_a_day() {
    let scene = Scene::start().await;
    scene.grant().await;
    let day = 24 * 60 * 60 * 1000;
    let asked = unix_millis();
    let millis = duration_millis(&scene.check().await);
    let took = unix_millis() - asked;
    assert!((day - took - 2..=day).contains(&millis), "{millis}");
}

#[tokio::test]
async fn requests_that_are_no_connect_are_405() {
    let scene = Scene::start().await;
    scene.grant().await;
    let mut get = scene.request();
    "GET".clone_into(&mut http_of(&mut get).method);
    let mut lower_case = scene.request();
    "connect".clone_into(&mut http_of(&mut lower_case).method);
    let empty = CheckRequest::default();
    let no_http = CheckRequest {
        attributes: Some(AttributeContext::default()),
    };
    let mut client = scene.client().await;
    for request in [get, lower_case, empty, no_http] {
        let response = client.check(request).await.unwrap().into_inner();
        assert_eq!(verdict(&response), (405, "method_not_allowed"));
        let Some(HttpResponse::DeniedResponse(denied)) = &response.http_response else {
            panic!("{response:?}");
        };
        let headers = denied.headers.iter().map(|o| o.header.as_ref().unwrap());
        let allow: Vec<_> = headers.filter(|header| header.key == "allow").collect();
        assert_eq!(allow.len(), 1);
        assert_eq!(allow[0].value, "CONNECT");
    }
}

#[tokio::test]
async fn requests_that_name_nobody_are_403() {
    let scene = Scene::start().await;
    let mut no_source = scene.request();
    no_source.attributes.as_mut().unwrap().source = None;
    let stranger = ClientCertificate::builder().build().unwrap();
    let mut client = scene.client().await;
    for (request, reason) in [
        (no_source, "no_client_certificate"),
        (connect("", DESTINATION), "no_client_certificate"),
        (connect("garbage", DESTINATION), "certificate_unparseable"),
        (connect("%FF%FE%00", DESTINATION), "certificate_unparseable"),
        (
            connect(&scene.agent.pem().repeat(2), DESTINATION),
            "certificate_unparseable",
        ),
        (
            connect(&"A".repeat(200 * 1024), DESTINATION),
            "certificate_unparseable",
        ),
        (
            connect(stranger.pem(), DESTINATION),
            "identity_extension_missing",
        ),
    ] {
        let response = client.check(request).await.unwrap().into_inner();
        assert_eq!(verdict(&response), (403, reason));
    }
}

#[tokio::test]
async fn requests_that_name_no_destination_are_400() {
    let scene = Scene::start().await;
    let mut client = scene.client().await;
    for host in [
        "",
        " ",
        "docstore:0",
        "a@b",
        "döcstore",
        "127.1",
        "docstore.",
    ] {
        let request = connect(scene.agent.pem(), host);
        let response = client.check(request).await.unwrap().into_inner();
        assert_eq!(verdict(&response), (400, "destination_invalid"), "{host:?}");
    }
}

#[tokio::test]
async fn a_role_that_may_only_read_is_enough() {
    let database = testbed::database().await.unwrap();
    authz::migrate(&database.url()).unwrap();
    // Roles belong to the whole server, which other test processes may share.
    let role = format!("it_reader_{}", std::process::id());
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'readers' IN ROLE agent_gateway_reader"
        ))
        .unwrap();
    let mut scene = Scene::start_at(database, &[], |database| {
        database.url_as(&role, "readers").unwrap()
    })
    .await;
    assert_eq!(verdict(&scene.check().await), (403, "no_permission"));
    scene.grant().await;
    assert_eq!(verdict(&scene.check().await), (200, "allowed"));
    let log = scene.authz.process().log();
    assert!(!log.contains("could change permissions"), "{log}");
    scene.authz.stop().unwrap();
    scene
        .database
        .execute(&format!("DROP ROLE {role}"))
        .unwrap();

    let mut owner = Scene::start().await;
    let log = owner.authz.process().log();
    assert!(log.contains("could change permissions"), "{log}");
}
