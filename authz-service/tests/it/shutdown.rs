//! How the service ends.

use testbed::process::{PATIENCE, Signal};
use tokio::net::TcpStream;

use super::lock::{PATIENT, Session, wait_for_blocked};
use super::{Scene, http, verdict};

#[tokio::test]
async fn a_signal_ends_the_service_after_the_check_in_progress() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut scene = Scene::start_with(&PATIENT).await;
        scene.grant().await;
        let lock = Session::locking_permissions(&scene.database);
        let (mut client, request) = (scene.client().await, scene.request());
        let check = tokio::spawn(async move { client.check(request).await });
        wait_for_blocked(&scene.database, 1).await;

        scene.authz.process().signal(signal).unwrap();
        scene.authz.process().wait_for_log("\"stopping\"").unwrap();
        let probes = scene.authz.admin_http_addr();
        assert_eq!(
            http::get(probes, "/readyz").await,
            (503, "stopping\n".to_owned())
        );
        assert_eq!(http::get(probes, "/healthz").await.0, 200);
        // Nothing new is taken.
        assert!(TcpStream::connect(scene.authz.grpc_addr()).await.is_err());

        drop(lock);
        let answer = check.await.unwrap().unwrap().into_inner();
        assert_eq!(verdict(&answer), (200, "allowed"));
        let ended = scene.authz.process().wait(PATIENCE).unwrap();
        assert_eq!(ended.code(), Some(0), "{}", scene.authz.process().log());
        let log = scene.authz.process().log();
        assert!(!log.contains("still in progress"), "{log}");
    }
}

#[tokio::test]
async fn a_hangup_does_not_end_a_service_that_has_nothing_to_read_anew() {
    let mut scene = Scene::start().await;
    scene.grant().await;
    scene.authz.process().signal(Signal::HUP).unwrap();
    let answer = scene.check().await;
    assert_eq!(verdict(&answer), (200, "allowed"));
    assert_eq!(scene.authz.stop().unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_check_that_takes_too_long_does_not_hold_up_the_end() {
    let mut environment = PATIENT.to_vec();
    environment.push(("AGENT_GATEWAY__SERVER__SHUTDOWN_TIMEOUT_MS", "200"));
    let mut scene = Scene::start_with(&environment).await;
    let _lock = Session::locking_permissions(&scene.database);
    let (mut client, request) = (scene.client().await, scene.request());
    let check = tokio::spawn(async move { client.check(request).await });
    wait_for_blocked(&scene.database, 1).await;

    assert_eq!(scene.authz.stop().unwrap().code(), Some(0));
    let log = scene.authz.process().log();
    assert!(log.contains("Checks were still in progress"), "{log}");
    check.await.unwrap().unwrap_err();
}

/// Its clients must hear of it meanwhile, while this thread waits.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_service_ends_with_its_idle_connections() {
    let mut scene = Scene::start_with(&PATIENT).await;
    let _client = scene.client().await;
    let _debug = scene.debug().await;
    let _half_a_request = TcpStream::connect(scene.authz.admin_http_addr()).await;
    assert_eq!(scene.authz.stop().unwrap().code(), Some(0));
    let log = scene.authz.process().log();
    assert!(!log.contains("still in progress"), "{log}");
}
