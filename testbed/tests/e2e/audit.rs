//! What is recorded of tunnels that real agents open through real Envoy.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use ::audit::{Head, Verifier};
use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::AuthzOptions;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::open_tunnels::{PATIENCE, ends, lives, settings};
use super::{Scene, assert_denied};

/// A replica's audit file.
pub(crate) struct AuditFile {
    _folder: TempDir,
    path: PathBuf,
}

impl AuditFile {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        Self {
            _folder: folder,
            path,
        }
    }

    pub(crate) fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Settings that have the service write it.
    pub(crate) fn settings(&self, changed: &[(&str, &str)]) -> AuthzOptions {
        let ours = [("AUDIT__PATH", self.path()), ("AUDIT__REPLICA", "gw-1")];
        settings(&[&ours, changed].concat())
    }

    /// What is recorded so far; its chain is held against its rules.
    pub(crate) fn records(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.path).unwrap();
        // The last line may still be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut verifier = Verifier::after(Head::START);
        let read = |line: &str| {
            verifier.next(line.as_bytes()).unwrap();
            serde_json::from_str(line).unwrap()
        };
        whole.lines().map(read).collect()
    }

    /// Waits for a record that `wanted` accepts.
    pub(crate) async fn recorded(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let records = self.records();
            if let Some(record) = records.iter().find(|record| wanted(record)) {
                return record.clone();
            }
            assert!(Instant::now() < deadline, "{records:#?}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Waits for the end of a tunnel, given its allow, and says how it ended.
    async fn end_of(&self, allow: &Value) -> Value {
        let id = &allow["decision_id"];
        self.recorded(|it| it["event"] == "tunnel_end" && it["decision_id"] == *id)
            .await
    }

    /// The last allow.
    fn allow(&self) -> Value {
        let records = self.records();
        let mut allows = records.into_iter().rev();
        allows.find(|it| it["decision"] == "allow").unwrap()
    }
}

async fn granted(file: &AuditFile, changed: &[(&str, &str)]) -> Scene {
    let scene = Scene::start_with(file.settings(changed)).await;
    scene.allow();
    scene
}

#[tokio::test]
async fn a_tunnel_leaves_its_allow_and_its_end_and_a_refusal_its_deny() {
    let file = AuditFile::new();
    let scene = granted(&file, &[]).await;
    let client = scene.client().await;
    scene.gateway.authz.settle().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
    let headers = [("traceparent", traceparent.as_str())];
    let answer = client
        .open_with(&scene.destination, &headers)
        .await
        .unwrap();
    let decision_id = answer
        .header("x-agent-gateway-decision-id")
        .unwrap()
        .to_owned();
    let mut tunnel = answer.into_tunnel().unwrap();
    tunnel.write_all(&[b'x'; 1000]).await.unwrap();
    tunnel.read_exact(&mut [0; 1000]).await.unwrap();

    let allow = file.allow();
    let spki_sha256 = ring::digest::digest(&ring::digest::SHA256, scene.agent.spki_der());
    let spki_sha256 = hex::encode(spki_sha256);
    for (key, value) in [
        ("decision_id", json!(decision_id)),
        ("trace_id", json!(trace)),
        ("event", json!("decision")),
        ("decision", json!("allow")),
        ("status", json!(200)),
        ("reason", json!(["allowed"])),
        ("caller", json!("agent-alpha")),
        ("identity", json!("agent-alpha")),
        ("destination", json!(scene.destination)),
        ("dialled", json!(scene.service.addr().to_string())),
        (
            "permission_id",
            json!(format!("agent-alpha-{}", scene.destination)),
        ),
        ("signing_key_id", json!("org-alice")),
        ("spki_sha256", json!(spki_sha256)),
        ("replica", json!("gw-1")),
    ] {
        assert_eq!(allow[key], value, "{key}: {allow:#}");
    }
    drop(tunnel);
    let end = file.end_of(&allow).await;
    for (key, value) in [
        ("bytes_up", json!(1000)),
        ("bytes_down", json!(1000)),
        ("reason", json!(["closed_by_client"])),
        ("identity", json!("agent-alpha")),
        ("destination", json!(scene.destination)),
        ("spki_sha256", json!(spki_sha256)),
    ] {
        assert_eq!(end[key], value, "{key}: {end:#}");
    }
    assert!(
        end["duration_ms"].is_u64() && end.get("decision").is_none(),
        "{end:#}"
    );

    let refused = client.open("nowhere:1").await.unwrap();
    assert_denied(&refused, 403, "no_permission");
    let deny = file.records().pop().unwrap();
    for (key, value) in [
        (
            "decision_id",
            refused.json().unwrap()["decision_id"].clone(),
        ),
        ("decision", json!("deny")),
        ("status", json!(403)),
        ("reason", json!(["no_permission"])),
        ("caller", json!("agent-alpha")),
        ("destination", json!("nowhere:1")),
    ] {
        assert_eq!(deny[key], value, "{key}: {deny:#}");
    }
    for key in ["dialled", "permission_id", "signing_key_id"] {
        assert_eq!(deny.get(key), None, "{deny:#}");
    }
}

#[tokio::test]
async fn a_tunnel_that_is_cut_says_why_and_what_it_had_carried() {
    let file = AuditFile::new();
    let scene = granted(&file, &[]).await;
    let tunnel = scene.open().await;
    let allow = file.allow();
    let revoke = "UPDATE permission_registry SET revoked_at = now()";
    scene.gateway.database.execute(revoke).unwrap();
    ends(tunnel).await;
    let end = file.end_of(&allow).await;
    assert_eq!(end["reason"], json!(["permission_revoked"]));
    assert_eq!(
        (&end["bytes_up"], &end["bytes_down"]),
        (&json!(4), &json!(4))
    );
}

#[tokio::test]
async fn a_tunnel_whose_envoy_was_killed_is_closed_by_a_record_that_says_so() {
    let file = AuditFile::new();
    let mut scene = granted(&file, &[]).await;
    let _tunnel = scene.open().await;
    let allow = file.allow();
    scene.gateway.envoy.process().kill();
    let end = file.end_of(&allow).await;
    assert_eq!(end["reason"], json!(["end_not_reported"]));
    assert_eq!((end.get("bytes_up"), end.get("bytes_down")), (None, None));
    // What happens afterwards is recorded as before.
    scene.gateway.envoy.start_again().await.unwrap();
    let tunnel = scene.open().await;
    let allow = file.allow();
    drop(tunnel);
    assert_eq!(
        file.end_of(&allow).await["reason"],
        json!(["closed_by_client"])
    );
}

#[tokio::test]
async fn a_service_that_stops_records_the_ends_of_its_tunnels_first() {
    let file = AuditFile::new();
    let mut scene = granted(&file, &[("TUNNEL__DRAIN_TIMEOUT_MS", "300")]).await;
    // Envoy tells of ends on a stream that it opens with its thread's first tunnel, and a service
    // that is stopping takes no new one. An end that arrived shows that the stream is there.
    let client = scene.client().await;
    let open = async || {
        client
            .open(&scene.destination)
            .await
            .unwrap()
            .into_tunnel()
            .unwrap()
    };
    drop(open().await);
    file.end_of(&file.allow()).await;
    let mut tunnel = open().await;
    assert!(lives(&mut tunnel).await);
    let allow = file.allow();
    assert!(scene.gateway.authz.stop().unwrap().success());
    ends(tunnel).await;
    let end = file.end_of(&allow).await;
    assert_eq!(end["reason"], json!(["service_stopping"]));
    assert_eq!(end["bytes_up"], json!(4));
    scene.gateway.authz.start_again().unwrap();
    let started = file.records().pop().unwrap();
    assert_eq!(
        (&started["event"], &started["torn_bytes"]),
        (&json!("started"), &json!(0))
    );
}

#[tokio::test]
async fn a_service_without_an_audit_takes_envoys_log_all_the_same() {
    let scene = Scene::granted().await;
    let mut tunnel = scene.open().await;
    assert!(lives(&mut tunnel).await);
}
