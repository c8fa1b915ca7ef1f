//! `agent-gateway-mock-tool`: the tools `echo` and `todos`, for the demo's agent to call.
//!
//! They know nothing of the gateway but the headers in which it says who calls, as real tools
//! would.

#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::{Parser, ValueEnum};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Largest body, in bytes.
const MAX_BODY: usize = 1024 * 1024;
/// Most todos that are kept.
const MAX_TODOS: usize = 1000;
/// Longest title, in bytes.
const MAX_TITLE: usize = 1000;

/// A tool for the demo's agent to call, over plain HTTP
#[derive(Debug, Parser)]
#[command(
    name = "agent-gateway-mock-tool",
    version,
    after_help = "Exit status: 0 stopped, 64 bad usage, 69 address not available.\n\nExample:\n  \
                  agent-gateway-mock-tool --name echo --listen 127.0.0.4:8081"
)]
struct Cli {
    /// Which tool to be
    #[arg(long, value_enum)]
    name: Tool,
    /// Where to listen
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Tool {
    /// `POST /echo` answers `{"echoed": …}`.
    Echo,
    /// `POST /call` takes `{"op": "create", "title": "…"}`.
    Todos,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let printed = error.print();
            return match (error.use_stderr(), printed) {
                (false, Ok(())) => ExitCode::SUCCESS,
                _ => ExitCode::from(64),
            };
        }
    };
    match serve(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(69)
        }
    }
}

fn serve(cli: &Cli) -> anyhow::Result<()> {
    let tool = match cli.name {
        Tool::Echo => Router::new().route("/echo", post(echo)),
        Tool::Todos => Router::new()
            .route("/call", post(todos))
            .with_state(Todos::default()),
    };
    let tool = tool
        .route("/healthz", get(|| async { "ok" }))
        .layer(DefaultBodyLimit::max(MAX_BODY));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
        let listener = TcpListener::bind(cli.listen)
            .await
            .with_context(|| format!("can't listen on {}", cli.listen))?;
        eprintln!("{:?} listens on {}", cli.name, listener.local_addr()?);
        // What is under way when it is told to stop is dropped: this is a demo's.
        tokio::select! {
            served = async { axum::serve(listener, tool).await } => served?,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}

/// Says back what it was sent: JSON as it is written, other text as a string, nothing as null.
async fn echo(headers: HeaderMap, body: Bytes) -> Response {
    note(&headers, "echo");
    let text = String::from_utf8_lossy(&body);
    let echoed = match serde_json::from_str::<&RawValue>(&text) {
        Ok(value) => value.get().to_owned(),
        Err(_) if text.is_empty() => "null".to_owned(),
        Err(_) => Value::from(&*text).to_string(),
    };
    let answer = format!("{{\"echoed\":{echoed}}}\n");
    ([(header::CONTENT_TYPE, "application/json")], answer).into_response()
}

#[derive(Debug, Clone, Default)]
struct Todos(Arc<Mutex<Vec<String>>>);

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Asked {
    Create { title: String },
}

/// Takes one more.
async fn todos(State(todos): State<Todos>, headers: HeaderMap, body: Bytes) -> Response {
    note(&headers, "todos");
    let Ok(Asked::Create { title }) = serde_json::from_slice(&body) else {
        let told = json!({"error": "expected {\"op\":\"create\",\"title\":\"…\"}"});
        return (StatusCode::BAD_REQUEST, Json(told)).into_response();
    };
    let mut kept = todos.0.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() >= MAX_TODOS || title.is_empty() || title.len() > MAX_TITLE {
        let told = json!({"error": "too many todos, or no title of 1 to 1000 bytes"});
        return (StatusCode::BAD_REQUEST, Json(told)).into_response();
    }
    kept.push(title.clone());
    Json(json!({"id": kept.len(), "title": title})).into_response()
}

/// Who called, as the gateway says.
fn note(headers: &HeaderMap, tool: &str) {
    let said = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let caller = said("x-agent-identity").unwrap_or("nobody the gateway knows");
    let decision = said("x-decision-id").unwrap_or("none");
    eprintln!("{tool} called by {caller}, decision {decision}");
}
