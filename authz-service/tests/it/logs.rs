//! Logs: one JSON object for each line, whatever names people choose.

use serde_json::Value;
use testbed::rows::Grant;
use testbed::{ClientCertificate, Process};

use super::{DESTINATION, Scene, connect, http_of, verdict};

/// Has allows logged too.
const ALLOWS: (&str, &str) = (
    "AGENT_GATEWAY__OBSERVABILITY__LOG_LEVEL",
    "info,authz_service::check=debug",
);

/// The lines with this message; every line must be a JSON object.
fn lines(process: &Process, message: &str) -> Vec<Value> {
    let log = process.log();
    let parse = |line: &str| -> Value {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        assert!(value.is_object(), "{line}");
        value
    };
    let lines = log.lines().map(parse);
    lines.filter(|line| line["message"] == message).collect()
}

#[tokio::test]
async fn a_decision_is_one_line_that_says_who_where_and_why() {
    let mut scene = Scene::start_with(&[ALLOWS]).await;
    let mut request = scene.request();
    let headers = &mut http_of(&mut request).headers;
    headers.insert("x-request-id".to_owned(), "request-1".to_owned());
    let mut client = scene.client().await;
    client.check(request.clone()).await.unwrap();
    scene.grant().await;
    client.check(request).await.unwrap();
    let denied = lines(scene.authz.process(), "denied");
    let allowed = lines(scene.authz.process(), "allowed");
    assert_eq!((denied.len(), allowed.len()), (1, 1));
    assert_eq!(denied[0]["reason"], "no_permission");
    assert_eq!(allowed[0]["permission.id"], "agent-alpha-docstore:8443");
    assert_eq!(allowed[0]["dial"], "127.0.0.1:8443");
    for line in [&denied[0], &allowed[0]] {
        assert_eq!(line["identity"], "agent-alpha");
        assert_eq!(line["destination"], DESTINATION);
        assert_eq!(line["request.id"], "request-1");
        assert_eq!(line["decision.id"].as_str().unwrap().len(), 36);
    }
}

#[tokio::test]
async fn a_name_cannot_break_or_disguise_a_line() {
    let mut scene = Scene::start_with(&[ALLOWS]).await;
    let name = "a\"b\\c','reason':'allowed\u{202e}\u{2028}\u{200b}\u{feff}é";
    let agent = ClientCertificate::for_identity(name).unwrap();
    let mut grant = Grant::new(name, agent.spki_der(), DESTINATION);
    "id\u{202e}\"".clone_into(&mut grant.permission_id);
    let mut client = scene.client().await;
    let request = connect(agent.pem(), DESTINATION);
    let answer = client.check(request.clone()).await.unwrap().into_inner();
    assert_eq!(verdict(&answer), (403, "no_permission"));
    scene.principal.grant(&scene.database, &grant).unwrap();
    scene.authz.settle().await;
    let answer = client.check(request).await.unwrap().into_inner();
    assert_eq!(verdict(&answer), (200, "allowed"));

    let denied = lines(scene.authz.process(), "denied");
    let allowed = lines(scene.authz.process(), "allowed");
    let shown = r#"a\"b\\c\',\'reason\':\'allowed\u{202e}\u{2028}\u{200b}\u{feff}é"#;
    assert_eq!(denied[0]["identity"], shown);
    assert_eq!(denied[0]["reason"], "no_permission");
    assert_eq!(allowed[0]["identity"], shown);
    assert_eq!(allowed[0]["permission.id"], r#"id\u{202e}\""#);
    let log = scene.authz.process().log();
    for invisible in ['\u{202e}', '\u{2028}', '\u{200b}', '\u{feff}'] {
        assert!(!log.contains(invisible), "{invisible:?}");
    }
}

#[tokio::test]
async fn by_default_denies_are_logged_and_allows_left_to_the_access_log() {
    let mut scene = Scene::start().await;
    let mut client = scene.client().await;
    client.check(scene.request()).await.unwrap();
    scene.grant().await;
    let answer = client.check(scene.request()).await.unwrap().into_inner();
    assert_eq!(verdict(&answer), (200, "allowed"));
    assert_eq!(lines(scene.authz.process(), "denied").len(), 1);
    assert_eq!(lines(scene.authz.process(), "allowed").len(), 0);
}

#[tokio::test]
async fn a_request_id_that_is_too_long_is_left_out() {
    let mut scene = Scene::start().await;
    let mut request = scene.request();
    let headers = &mut http_of(&mut request).headers;
    headers.insert("x-request-id".to_owned(), "r".repeat(129));
    scene.client().await.check(request).await.unwrap();
    let denied = lines(scene.authz.process(), "denied");
    assert_eq!(denied[0]["request.id"], "");
}
