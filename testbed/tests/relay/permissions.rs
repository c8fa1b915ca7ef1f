//! Who may call: nobody without a signed permission for the tool, whatever else they prove.

use testbed::ClientCertificate;
use testbed::caller::{Sent, Version};
use testbed::gateway::AGENT;

use crate::scene::{Scene, assert_denied, envelope};
use serde_json::json;

#[tokio::test]
async fn a_certificate_without_a_permission_is_denied_and_so_is_another_key() {
    let scene = Scene::start().await;
    for identity in ["agent-beta", AGENT] {
        let stranger = ClientCertificate::for_identity(identity).unwrap();
        let mut caller = scene.caller_with(&stranger, Version::Http2).await;
        let proof = scene.proof("echo", b"{}");
        let answer = caller
            .call(&proof.with_json(), Sent::whole("{}"))
            .await
            .unwrap();
        assert_denied(&answer, 403, "no_permission");
    }
    let nobody = ClientCertificate::builder().build().unwrap();
    let mut caller = scene.caller_with(&nobody, Version::Http2).await;
    let proof = scene.proof("echo", b"{}");
    let answer = caller
        .call(&proof.with_json(), Sent::whole("{}"))
        .await
        .unwrap();
    assert_denied(&answer, 403, "identity_extension_missing");
    assert!(scene.echo.seen().is_empty());
}

#[tokio::test]
async fn a_permission_is_for_one_tool_and_ends_when_it_is_revoked() {
    let scene = Scene::start().await;
    let todos = envelope("todos", &json!({"op": "create", "title": "x"}));
    assert_eq!(scene.post(&todos).await.status, 200);
    assert_eq!(scene.post("{}").await.status, 200);
    let revoke = format!(
        "UPDATE permission_registry SET revoked_at = now() WHERE destination = '{}'",
        scene.destination("echo")
    );
    scene.gateway.database.execute(&revoke).unwrap();
    scene.settle().await;
    assert_denied(&scene.post("{}").await, 403, "permission_revoked");
    assert_eq!(scene.post(&todos).await.status, 200);
    assert_eq!((scene.echo.seen().len(), scene.todos.seen().len()), (1, 2));
}

#[tokio::test]
async fn without_its_registry_or_its_service_nothing_is_called() {
    let mut scene = Scene::start().await;
    assert_eq!(scene.post("{}").await.status, 200);
    scene.gateway.authz.stop().unwrap();
    let answer = scene.post("{}").await;
    crate::scene::assert_failed(&answer, 503, "registry_unavailable");
    assert_eq!(scene.echo.seen().len(), 1);
}
