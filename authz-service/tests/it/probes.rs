//! Liveness, readiness, metrics and gRPC health.

use testbed::{Database, Postgres, authz};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::{Scene, channel, http, verdict};

#[tokio::test]
async fn readiness_follows_the_database() {
    // A server of its own, to be stopped.
    let mut server = Postgres::start().await.unwrap();
    let database = server.database("registry").unwrap();
    authz::migrate(&database.url()).unwrap();
    let scene = Scene::start_at(database, &[], Database::url).await;
    let address = scene.authz.admin_http_addr();
    let healthy = (200, "ok\n".to_owned());
    let ready = (200, "ready\n".to_owned());
    let unavailable = (503, "registry_unavailable\n".to_owned());
    assert_eq!(http::get(address, "/healthz").await, healthy);
    assert_eq!(http::get(address, "/readyz").await, ready);

    server.stop().unwrap();
    assert_eq!(http::get(address, "/readyz").await, unavailable);
    assert_eq!(http::get(address, "/healthz").await, healthy);
    server.start_again().await.unwrap();
    assert_eq!(http::get(address, "/readyz").await, ready);

    server.pause().unwrap();
    assert_eq!(http::get(address, "/readyz").await, unavailable);
    server.resume().unwrap();
    assert_eq!(http::get(address, "/readyz").await, ready);

    let newer = "INSERT INTO agent_gateway_schema_version (version) VALUES (99)";
    scene.database.execute(newer).unwrap();
    assert_eq!(http::get(address, "/readyz").await, unavailable);
}

#[tokio::test]
async fn what_kubernetes_probes_is_answered() {
    let scene = Scene::start().await;
    let address = scene.authz.admin_http_addr();
    scene.authz.settle().await;
    let deployment = include_str!("../../../deploy/kubernetes/deployment.yaml");
    let monitor = include_str!("../../../deploy/kubernetes/monitoring/servicemonitor.yaml");
    let probes = deployment.lines().filter(|line| line.contains("httpGet:"));
    let scrapes = monitor.lines().filter(|line| line.contains("path: "));
    let asked: Vec<_> = probes
        .chain(scrapes)
        .map(|line| {
            // The port's number is compared with the configuration's in the tests of that.
            assert!(line.contains("port: metrics"), "{line}");
            let (_, path) = line.split_once("path: ").unwrap();
            path.split([',', '}']).next().unwrap()
        })
        .collect();
    assert_eq!(asked.len(), 4, "{asked:?}");
    for path in asked {
        assert_eq!(http::get(address, path).await.0, 200, "{path}");
    }
    assert_eq!(http::get(address, "/other").await.0, 404);
}

#[tokio::test]
async fn metrics_count_checks_by_decision_and_reason() {
    let scene = Scene::start().await;
    let address = scene.authz.admin_http_addr();
    assert_eq!(verdict(&scene.check().await), (403, "no_permission"));
    scene.grant().await;
    for _ in 0..2 {
        assert_eq!(verdict(&scene.check().await), (200, "allowed"));
    }
    let (status, text) = http::get(address, "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        r#"agent_gateway_checks_total{decision="allow",reason="allowed"} 2"#,
        r#"agent_gateway_checks_total{decision="deny",reason="no_permission"} 1"#,
        "agent_gateway_check_duration_seconds_count 3",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in:\n{text}"
        );
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[tokio::test]
async fn only_the_three_paths_and_get_are_served() {
    let scene = Scene::start().await;
    let address = scene.authz.admin_http_addr();
    assert_eq!(http::get(address, "/").await.0, 404);
    assert_eq!(http::get(address, "/metrics/x").await.0, 404);
    let post = "POST /readyz HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(http::send(address, post).await.0, 405);
}

#[tokio::test]
async fn both_grpc_listeners_tell_their_health() {
    let scene = Scene::start().await;
    for address in [scene.authz.grpc_addr(), scene.authz.admin_grpc_addr()] {
        let mut client = HealthClient::new(channel(address).await);
        for service in ["", "envoy.service.auth.v3.Authorization"] {
            let service = service.to_owned();
            let answer = client.check(HealthCheckRequest { service }).await.unwrap();
            assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
        }
    }
}
