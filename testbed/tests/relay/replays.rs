//! One proof, one call: however many come at once, to whichever replica, and after a restart.

use testbed::caller::{Sent, Version};
use testbed::tunnel::Answer;
use testbed::{Caller, Envoy};
use tokio::task::JoinSet;

use crate::scene::{Headers, Scene, Unlike, assert_denied};

const AT_ONCE: usize = 64;
const TRIES: usize = 4;

async fn start() -> Scene {
    Scene::start_unlike(Unlike {
        nonces_in_postgres: true,
        ..Unlike::default()
    })
    .await
}

async fn connect(scene: &Scene, envoy: &Envoy) -> Caller {
    let pki = &scene.gateway.pki;
    Caller::connect(envoy.addr(), pki, &scene.agent, Version::Http2)
        .await
        .unwrap()
}

async fn call(scene: &Scene, envoy: &Envoy, proof: &Headers) -> Answer {
    let mut caller = connect(scene, envoy).await;
    let sent = Sent::whole("{}");
    caller.call(&proof.with_json(), sent).await.unwrap()
}

/// The same call on many connections at once, of each Envoy in turn: one passes, and no more.
async fn assert_one_passes(scene: &Scene, envoys: &[&Envoy]) {
    for _ in 0..TRIES {
        let before = scene.echo.seen().len();
        let answers = at_once(scene, envoys).await;
        let with = |status: u16| move |answer: &&Answer| answer.status == status;
        let passed = answers.iter().filter(with(200)).count();
        assert!(passed <= 1 && scene.echo.seen().len() <= before + 1);
        if answers.iter().any(|answer| answer.status == 503) {
            // On a busy machine some find no decision in time, it may be the one that would pass.
            continue;
        }
        assert_eq!((passed, scene.echo.seen().len()), (1, before + 1));
        for answer in answers.iter().filter(|answer| answer.status != 200) {
            assert_denied(answer, 403, "poca_replay");
        }
        return;
    }
    panic!("each time some were not decided about");
}

async fn at_once(scene: &Scene, envoys: &[&Envoy]) -> Vec<Answer> {
    let proof = scene.proof("echo", b"{}");
    let mut callers = Vec::new();
    for envoy in envoys.iter().cycle().take(AT_ONCE) {
        callers.push(connect(scene, envoy).await);
    }
    let mut calls = JoinSet::new();
    for mut caller in callers {
        let headers = proof.with_json();
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let headers: Vec<_> = headers.into_iter().map(owned).collect();
        calls.spawn(async move {
            let headers: Vec<_> = headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            caller.call(&headers, Sent::whole("{}")).await.unwrap()
        });
    }
    calls.join_all().await
}

#[tokio::test]
async fn of_many_calls_at_once_with_one_nonce_exactly_one_passes() {
    let mut scene = Scene::start().await;
    assert_one_passes(&scene, &[&scene.gateway.envoy]).await;
    assert!(says(
        &mut scene,
        "nonces of tool calls are remembered in memory"
    ));
}

/// Whether the service's log says so.
fn says(scene: &mut Scene, words: &str) -> bool {
    scene.gateway.authz.process().log().contains(words)
}

#[tokio::test]
async fn another_replica_and_one_that_was_restarted_refuse_a_replay() {
    let mut scene = start().await;
    assert!(says(
        &mut scene,
        "nonces of tool calls are remembered in Postgres"
    ));
    let (_second, envoy) = scene.replica().await;
    assert_one_passes(&scene, &[&scene.gateway.envoy, &envoy]).await;
    let before = scene.echo.seen().len();

    let [to_first, to_second] = [(); 2].map(|()| scene.proof("echo", b"{}"));
    let first = &scene.gateway.envoy;
    assert_eq!(call(&scene, first, &to_first).await.status, 200);
    assert_eq!(call(&scene, &envoy, &to_second).await.status, 200);
    let refused = |answer: &Answer| assert_denied(answer, 403, "poca_replay");
    refused(&call(&scene, &envoy, &to_first).await);
    refused(&call(&scene, first, &to_second).await);

    assert!(scene.gateway.authz.stop().unwrap().success());
    scene.gateway.authz.start_again().unwrap();
    scene.settle().await;
    let first = &scene.gateway.envoy;
    // Envoy knows again that it is there.
    scene.gateway.authz.ready().await.unwrap();
    let fresh = scene.proof("echo", b"{}");
    assert_eq!(call(&scene, first, &fresh).await.status, 200);
    refused(&call(&scene, first, &to_first).await);
    refused(&call(&scene, &envoy, &to_first).await);
    assert_eq!(scene.echo.seen().len(), before + 3);
}

#[tokio::test]
async fn without_its_table_of_nonces_nothing_is_called() {
    let scene = start().await;
    assert_eq!(scene.post("{}").await.status, 200);
    let gone = "ALTER TABLE relay_nonces RENAME TO gone";
    scene.gateway.database.execute(gone).unwrap();
    assert_denied(&scene.post("{}").await, 503, "poca_nonces_unavailable");
    assert_eq!(scene.echo.seen().len(), 1);
    let back = "ALTER TABLE gone RENAME TO relay_nonces";
    scene.gateway.database.execute(back).unwrap();
    assert_eq!(scene.post("{}").await.status, 200);
}
