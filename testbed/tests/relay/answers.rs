//! Tools that are down, slow, or say too much.

use std::time::{Duration, Instant};

use testbed::tool::Conduct;

use crate::scene::{Scene, assert_failed, envelope, tool};
use serde_json::json;

#[tokio::test]
async fn a_tool_that_is_down_is_502() {
    let scene = Scene::start().await;
    let down = format!("http://echo:{}/echo", testbed::free_port().unwrap());
    scene.files.write(
        "tools.yaml",
        &format!("tools:\n{}", tool("echo", &down, "")),
    );
    scene.files.allow(&[&down]);
    scene.grant(down.trim_start_matches("http://").trim_end_matches("/echo"));
    scene.settle().await;
    scene.reloaded(1).await;
    assert_failed(&scene.post("{}").await, 502, "destination_unreachable");
}

#[tokio::test]
async fn a_tool_that_is_slow_is_504_after_its_own_time() {
    let scene = Scene::start().await;
    scene.todos.conduct(Conduct::Silent);
    scene.echo.conduct(Conduct::Silent);
    let began = Instant::now();
    let todos = envelope("todos", &json!({"op": "create", "title": "x"}));
    assert_failed(&scene.post(&todos).await, 504, "tool_timeout");
    // Its own limit is 2 s, that of a tool without one 5 s.
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert!(scene.todos.only_seen().is_ok());
    let began = Instant::now();
    assert_failed(&scene.post("{}").await, 504, "tool_timeout");
    assert!(began.elapsed() >= Duration::from_secs(5));
}

#[tokio::test]
async fn a_tool_that_dribbles_is_504_and_not_a_byte_of_it_is_passed_on() {
    let scene = Scene::start().await;
    scene
        .todos
        .conduct(Conduct::Dribble(Duration::from_millis(50)));
    let todos = envelope("todos", &json!({"op": "create", "title": "x"}));
    let answer = scene.post(&todos).await;
    assert_failed(&answer, 504, "tool_timeout");
    assert!(!answer.text().starts_with('x'));
}

#[tokio::test]
async fn a_tool_that_says_too_much_is_502() {
    let scene = Scene::start().await;
    let says = |bytes: usize| Conduct::Says(200, Vec::new(), vec![b'a'; bytes]);
    scene.echo.conduct(says(2 * 1024 * 1024 - 1));
    let answer = scene.post("{}").await;
    assert_eq!(
        (answer.status.as_u16(), answer.body().len()),
        (200, 2 * 1024 * 1024 - 1)
    );
    for bytes in [2 * 1024 * 1024 + 64 * 1024, 16 * 1024 * 1024] {
        scene.echo.conduct(says(bytes));
        assert_failed(&scene.post("{}").await, 502, "tool_answer_too_large");
    }
}
