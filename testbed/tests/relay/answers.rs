//! Tools that are down, slow, or say too much.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use testbed::caller::{Sent, Version};
use testbed::tool::Conduct;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::scene::{Scene, Unlike, assert_failed, envelope, tool};
use serde_json::json;

#[tokio::test]
async fn a_tool_that_is_down_is_502() {
    let scene = Scene::start().await;
    let down = format!("http://echo:{}/echo", testbed::free_port().unwrap());
    scene.leads_echo_to(&down, &down).await;
    scene.grant(down.trim_start_matches("http://").trim_end_matches("/echo"));
    scene.settle().await;
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

/// A tool that says these words to each request, whatever it was, and closes the connection.
struct Blunt {
    port: u16,
    words: Arc<Mutex<String>>,
}

impl Blunt {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let words = Arc::new(Mutex::new(String::new()));
        let says = Arc::clone(&words);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let words = says.lock().unwrap().clone();
                tokio::spawn(async move {
                    // Whatever goes wrong with it shows in what the agent is answered.
                    let _ = stream.read(&mut [0; 4096]).await;
                    let _ = stream.write_all(words.as_bytes()).await;
                    let _ = stream.shutdown().await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                });
            }
        });
        Self { port, words }
    }
}

#[tokio::test]
async fn a_tool_that_speaks_no_http_is_502_and_ends_nobodys_connection() {
    let blunt = Blunt::start().await;
    let url = format!("http://blunt:{}/", blunt.port);
    let scene = Scene::start_unlike(Unlike {
        tools: vec![(tool("blunt", &url, ""), url)],
        hosts: "127.0.0.1 blunt".to_owned(),
        ..Unlike::default()
    });
    let scene = scene.await;
    scene.grant(&format!("blunt:{}", blunt.port));
    scene.settle().await;
    scene.policy_for_all().await;
    let body = envelope("blunt", &json!(1));
    // One connection for all: what ended it would end the tunnels on it too.
    let mut caller = scene.caller(Version::Http2).await;
    let mut call = async |words: &str| {
        words.clone_into(&mut blunt.words.lock().unwrap());
        let proof = scene.proof("blunt", body.as_bytes());
        let sent = Sent::whole(body.clone());
        caller.call(&proof.with_json(), sent).await.unwrap()
    };
    let fields = |bytes, times| {
        let fields = format!("x: {}\r\n", "x".repeat(bytes)).repeat(times);
        format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{fields}\r\n")
    };
    let headers = [
        (13_000, 1),
        (70_000, 1),
        (1_000_000, 1),
        (1000, 15),
        (1, 65),
        (1, 5000),
    ];
    let headers = headers.map(|(bytes, times)| fields(bytes, times));
    let unreadable = [
        "",
        "planted-secret\r\n\r\n",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nten bytes.",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\na b: c\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\na: b\u{1}\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\na: b\0\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n:status: 200\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n:status: 101\r\n\r\n",
        "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello",
        // No statuses of an answer: HTTP/2 clients close the connection at some of them.
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello",
        "HTTP/1.1 000 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 600 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 999999 OK\r\nset-cookie: planted-secret\r\n\r\nplanted-secret",
    ];
    let headers = headers.iter().map(String::as_str);
    for words in unreadable.into_iter().chain(headers) {
        let answer = call(words).await;
        assert_failed(&answer, 502, "tool_answer_unreadable");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert!(!answer.text().contains("hello") && !format!("{answer:?}").contains("planted"));
        let id = answer.json().unwrap()["decision_id"].clone();
        let logged = scene.gateway.envoy.logged(|line| line["decision_id"] == id);
        assert_eq!(logged.await.unwrap()["status"], 502);
    }
    let answer = call(&fields(150, 60)).await;
    assert_eq!(
        (answer.status.as_u16(), answer.text()),
        (200, String::new())
    );
    // What comes before an answer, and after it, is not passed on.
    for words in [
        "HTTP/1.0 200 OK\r\n\r\nhello",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    ] {
        let answer = call(words).await;
        assert_eq!(
            (answer.status.as_u16(), answer.text()),
            (200, "hello".to_owned())
        );
        assert_eq!(answer.header("link"), None);
    }
}
