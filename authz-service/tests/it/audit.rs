//! The audit file, whatever happens to the service or its disk.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::audit::{Head, Verifier};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use envoy_types::pb::google::protobuf::value::Kind;
use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::process::PATIENCE;
use testbed::{Authz, AuthzOptions};
use tonic::transport::Endpoint;

use super::{DESTINATION, Scene, connect, http, http_of, verdict};

/// The records of a folder's chain, in the order in which a shell names the files. It must be one.
fn records(folder: &Path) -> Vec<Value> {
    let entries = fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "jsonl"))
        .collect();
    paths.sort();
    let mut verifier = Verifier::after(Head::START);
    let mut records = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            let held = verifier.next(line.as_bytes());
            held.unwrap_or_else(|fault| panic!("{}: {fault}: {line}", path.display()));
            records.push(serde_json::from_str(line).unwrap());
        }
    }
    records
}

fn file_in(folder: &TempDir) -> (&'static str, String) {
    let path = folder.path().join("audit.jsonl");
    (
        "AGENT_GATEWAY__AUDIT__PATH",
        path.to_str().unwrap().to_owned(),
    )
}

/// The decision's id, as it was answered.
fn id_of(answer: &CheckResponse) -> String {
    let metadata = answer.dynamic_metadata.as_ref().unwrap();
    match metadata.fields["decision_id"].kind.as_ref().unwrap() {
        Kind::StringValue(id) => id.clone(),
        other => panic!("{other:?}"),
    }
}

/// Asks again and again, on a connection of its own, until that breaks; notes what was answered.
async fn ask(
    address: std::net::SocketAddr,
    request: CheckRequest,
    answered: Arc<Mutex<Vec<String>>>,
) {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let Ok(channel) = endpoint.connect().await else {
        return;
    };
    let mut client = AuthorizationClient::new(channel);
    while let Ok(answer) = client.check(request.clone()).await {
        answered.lock().unwrap().push(id_of(&answer.into_inner()));
    }
}

/// So long that in no test the disk gets a record by itself.
const DELAYED: (&str, &str) = ("AGENT_GATEWAY__AUDIT__SYNC_DELAY_MS", "60000");

#[tokio::test(flavor = "multi_thread")]
async fn whenever_it_is_killed_the_chain_is_whole_and_holds_all_that_was_answered() {
    killed(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_where_answers_do_not_wait_for_the_disk_it_holds_all_that_was_answered_too() {
    killed(&[DELAYED]).await;
}

async fn killed(settings: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let path = file_in(&folder);
    // So small that it is also killed while it begins another file.
    let small = ("AGENT_GATEWAY__AUDIT__MAX_FILE_BYTES", "20000");
    let settings = [&[(path.0, path.1.as_str()), small], settings].concat();
    let mut scene = Scene::start_with(&settings).await;
    scene.grant().await;
    let answered = Arc::new(Mutex::new(Vec::new()));
    let mut random = fastrand::Rng::with_seed(50);
    for _ in 0..50 {
        let address = scene.authz.grpc_addr();
        let askers: Vec<_> = [DESTINATION, "nowhere:1", DESTINATION, "else:1"]
            .map(|host| connect(scene.agent.pem(), host))
            .map(|request| tokio::spawn(ask(address, request, Arc::clone(&answered))))
            .into();
        // However slow the machine is, it answers before it is killed.
        let (before, deadline) = (answered.lock().unwrap().len(), Instant::now() + PATIENCE);
        while answered.lock().unwrap().len() < before + 2 {
            assert!(Instant::now() < deadline, "no answers");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(0..100))).await;
        scene.authz.process().kill();
        for asker in askers {
            asker.await.unwrap();
        }
        scene.authz.start_again().unwrap();
    }
    let records = records(folder.path());
    let started = records.iter().filter(|record| record["event"] == "started");
    assert_eq!(started.count(), 51);
    let recorded: HashSet<_> = records
        .iter()
        .filter_map(|record| record["decision_id"].as_str())
        .collect();
    let answered = answered.lock().unwrap();
    assert!(answered.len() > 50, "{}", answered.len());
    for id in answered.iter() {
        assert!(recorded.contains(id.as_str()), "{id}");
    }
}

/// Waits until a probe says this.
async fn ready(authz: &Authz, expected: (u16, &str)) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, body) = http::get(authz.admin_http_addr(), "/readyz").await;
        if (status, body.as_str()) == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{status} {body}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_full_disk_denies_everything_and_says_so_until_there_is_space() {
    full_disk(&[]).await;
}

#[tokio::test]
async fn a_full_disk_denies_everything_where_answers_do_not_wait_for_it_too() {
    full_disk(&[DELAYED]).await;
}

async fn full_disk(settings: &[(&str, &str)]) {
    // So that records have one length everywhere: what is left of the disk takes none of them.
    let replica = ("AGENT_GATEWAY__AUDIT__REPLICA", "gw-1");
    let folder = tempfile::tempdir().unwrap();
    let path = file_in(&folder);
    let mut scene = Scene::start_with(&[(path.0, &path.1)]).await;
    let authz = Authz::start(&AuthzOptions {
        database_url: scene.database.url(),
        hosts: "127.0.0.1 docstore".to_owned(),
        private: vec![(DESTINATION.to_owned(), vec!["127.0.0.1/32".to_owned()])],
        environment: [&[(path.0, path.1.as_str()), replica], settings]
            .concat()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        small_disk: Some(folder.path().to_owned()),
        ..AuthzOptions::default()
    });
    scene.authz = authz.unwrap();
    scene.grant().await;
    // Its own view of the folder, which is another file system there.
    let process = scene.authz.process().id();
    let seen = PathBuf::from(format!("/proc/{process}/root"))
        .join(folder.path().strip_prefix("/").unwrap());
    assert_eq!(verdict(&scene.check().await), (200, "allowed"));

    let filler = seen.join("filler");
    assert!(
        fs::write(&filler, vec![0; 1 << 20]).is_err(),
        "a large disk"
    );
    // What is left of the last block may take some.
    let mut refused = None;
    for _ in 0..100 {
        let answer = scene.check().await;
        if verdict(&answer) != (200, "allowed") {
            refused = Some(answer);
            break;
        }
    }
    assert_eq!(verdict(&refused.unwrap()), (503, "audit_unavailable"));
    // A deny is no less in need of its record.
    let mut client = scene.client().await;
    let denied = client
        .check(connect(scene.agent.pem(), "nowhere:1"))
        .await
        .unwrap();
    assert_eq!(verdict(&denied.into_inner()), (503, "audit_unavailable"));
    ready(&scene.authz, (503, "audit_unavailable\n")).await;
    let unwritable = scene.authz.metric("agent_gateway_audit_unwritable").await;
    assert!((unwritable.unwrap() - 1.0).abs() < f64::EPSILON);
    records(&seen);

    fs::remove_file(&filler).unwrap();
    ready(&scene.authz, (200, "ready\n")).await;
    assert_eq!(verdict(&scene.check().await), (200, "allowed"));
    let records = records(&seen);
    let resumed = records.iter().find(|record| record["event"] == "resumed");
    assert_eq!(resumed.unwrap()["unwritten"], json!(2));
    assert_eq!(records.last().unwrap()["decision"], "allow");
}

#[tokio::test]
async fn neither_two_services_nor_a_foreign_file_are_a_chain() {
    let folder = tempfile::tempdir().unwrap();
    let path = file_in(&folder);
    let scene = Scene::start_with(&[(path.0, &path.1)]).await;
    let options = |path: &str| AuthzOptions {
        database_url: scene.database.url(),
        environment: vec![("AUDIT_PATH".to_owned(), path.to_owned())],
        ..AuthzOptions::default()
    };
    let second = Authz::start(&options(&path.1)).unwrap_err();
    assert!(
        format!("{second:#}").contains("another process writes"),
        "{second:#}"
    );
    let foreign = folder.path().join("foreign");
    fs::write(&foreign, "not an audit\n").unwrap();
    let third = Authz::start(&options(foreign.to_str().unwrap())).unwrap_err();
    assert!(
        format!("{third:#}").contains("does not end with an audit record"),
        "{third:#}"
    );
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "not an audit\n");
}

#[tokio::test]
async fn names_that_people_choose_disguise_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = file_in(&folder);
    let scene = Scene::start_with(&[(path.0, &path.1)]).await;
    let mut client = scene.client().await;
    let name = "a\"b\\c,\"decision\":\"allow\u{202e}\u{2028}\u{200b}é";
    let agent = testbed::ClientCertificate::for_identity(name).unwrap();
    for host in [
        "docstore:8443",
        "x\ny:1",
        "\u{202e}:1",
        "a\",\"decision\":\"allow:1",
    ] {
        let mut request = connect(agent.pem(), host);
        let headers = &mut http_of(&mut request).headers;
        headers.insert(
            "x-request-id".to_owned(),
            "r\n{\"decision\":\"allow\"}\u{202e}".to_owned(),
        );
        headers.insert("traceparent".to_owned(), "00-\"\n-x-01".to_owned());
        client.check(request).await.unwrap();
    }
    let text = fs::read_to_string(&path.1).unwrap();
    assert!(
        text.bytes()
            .all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)),
        "{text}"
    );
    let records = records(folder.path());
    assert_eq!(records.len(), 5);
    for record in &records[1..] {
        assert_eq!(
            (&record["decision"], &record["identity"]),
            (&json!("deny"), &json!(name))
        );
        assert_eq!(record["trace_id"], Value::Null);
    }
    let hosts: Vec<_> = records[1..]
        .iter()
        .map(|record| &record["destination"])
        .collect();
    assert_eq!(
        hosts,
        [
            &json!("docstore:8443"),
            &Value::Null,
            &Value::Null,
            &Value::Null
        ]
    );
}

#[tokio::test]
async fn what_finds_the_queue_full_is_denied_counted_and_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = file_in(&folder);
    // No more than one may wait while the one before it is being written.
    let narrow = ("AGENT_GATEWAY__AUDIT__MAX_WAITING", "1");
    let scene = Scene::start_with(&[(path.0, &path.1), narrow]).await;
    scene.grant().await;
    let client = scene.client().await;
    let deadline = Instant::now() + PATIENCE;
    let mut refused = 0_u32;
    while refused == 0 {
        assert!(Instant::now() < deadline, "the queue is never full");
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..64 {
            let (mut client, request) = (client.clone(), scene.request());
            asking.spawn(async move { client.check(request).await.unwrap().into_inner() });
        }
        for answer in asking.join_all().await {
            match verdict(&answer) {
                (200, "allowed") => {}
                other => {
                    assert_eq!(other, (503, "audit_unavailable"));
                    refused += 1;
                }
            }
        }
    }
    // There is room again, and what was refused is told of by the record before the next one.
    assert_eq!(verdict(&scene.check().await), (200, "allowed"));
    ready(&scene.authz, (200, "ready\n")).await;
    let unwritten = scene
        .authz
        .metric("agent_gateway_audit_unwritten_total")
        .await;
    assert!((unwritten.unwrap() - f64::from(refused)).abs() < f64::EPSILON);
    let records = records(folder.path());
    let told = records
        .iter()
        .filter_map(|record| record["unwritten"].as_u64());
    assert_eq!(told.sum::<u64>(), u64::from(refused));
}

/// How often all records were brought to disk; the service's start is the first time.
async fn syncs(scene: &Scene) -> f64 {
    let counted = scene.authz.metric("agent_gateway_audit_syncs_total").await;
    counted.unwrap()
}

#[tokio::test]
async fn an_answer_waits_for_the_disk_unless_it_need_not() {
    for (setting, expected) in [(None, 6.0), (Some(DELAYED), 1.0)] {
        let folder = tempfile::tempdir().unwrap();
        let path = file_in(&folder);
        let path = (path.0, path.1.as_str());
        let settings: Vec<_> = [Some(path), setting].into_iter().flatten().collect();
        let scene = Scene::start_with(&settings).await;
        scene.grant().await;
        for number in 1..=5 {
            assert_eq!(verdict(&scene.check().await), (200, "allowed"));
            // Each is in the file when it is answered.
            assert_eq!(records(folder.path()).len(), number + 1);
        }
        assert!((syncs(&scene).await - expected).abs() < f64::EPSILON);
    }
}

#[tokio::test]
async fn the_disk_gets_what_waits_when_it_is_due() {
    let folder = tempfile::tempdir().unwrap();
    let path = file_in(&folder);
    let soon = ("AGENT_GATEWAY__AUDIT__SYNC_DELAY_MS", "1");
    let scene = Scene::start_with(&[(path.0, &path.1), soon]).await;
    for expected in [2.0, 3.0] {
        scene.check().await;
        let deadline = Instant::now() + PATIENCE;
        while syncs(&scene).await < expected {
            assert!(Instant::now() < deadline, "the disk never got it");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert_eq!(records(folder.path()).len(), 3);
}
