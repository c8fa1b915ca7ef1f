//! `relay`: calls a tool through the gateway, with proof of its context.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use h2::RecvStream;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, StatusCode};
use serde::de::IgnoredAny;
use tokio::time::{Instant, timeout_at};

use crate::cli::RelayArgs;
use crate::credential::CurrentCredential;
use crate::failure::Failure;
use crate::gateway::{Connector, Gateway, OpenError};
use crate::output::OutputError;
use crate::pin;
use crate::proof::{self, Context, ProofError};
use crate::run::{RunError, authorities, load, open_credential};
use crate::state::StateDir;

/// Largest body that the gateway carries, in bytes; the envelope counts.
const MAX_BODY: usize = 2 * 1024 * 1024;
/// The tool that a body without envelope is for.
const BARE_BODY_TOOL: &str = "echo";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Key, state or authorities.
    #[error(transparent)]
    Start(#[from] RunError),
    /// There is no proof.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The body can't be read.
    #[error("can't read {path}: {source}")]
    Body {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The body is larger than the gateway carries.
    #[error("the body has more than {MAX_BODY} bytes")]
    TooLarge,
    /// Only `echo` takes what is no JSON.
    #[error("the body is not JSON: {0}")]
    NotJson(serde_json::Error),
    /// No answer.
    #[error(transparent)]
    Gateway(#[from] OpenError),
    /// The answer came too slowly, or broke off.
    #[error("the answer broke off: {0}")]
    Cut(String),
    /// The answer can't be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The answer is no success; its body was written all the same.
    #[error("the call was answered {0}")]
    Answered(StatusCode),
}

/// Runs the command.
pub fn run(args: RelayArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(RunError::Runtime);
    let runtime = runtime.map_err(CallError::Start)?;
    let done = runtime.block_on(call(args));
    // What still waits for the TPM or for a name must not hold up the end.
    runtime.shutdown_background();
    Ok(done?)
}

async fn call(args: RelayArgs) -> Result<(), CallError> {
    let deadline = Instant::now() + args.timeout;
    let dir = StateDir::new(&args.state.dir);
    let key = proof::load(&args.key.unwrap_or_else(|| proof::file_in(&dir)))?;
    let state = load(&dir)?;
    let payload = read(&args.body)?;
    let (body, content_type) = body(&args.tool, &payload)?;
    let context = Context {
        caller: &state.leaf.identity,
        tool: &args.tool,
        intent: &args.intent,
        scopes: &args.scopes,
        lifetime: args.lifetime,
    };
    let proof = context.prove(&key, &body, SystemTime::now())?;
    let mut request = Request::new(Bytes::from(body.into_owned()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static("https://gateway/relay");
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in [
        ("x-poca-manifest", proof.manifest),
        ("x-poca-signature", proof.signature),
    ] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    if let Some(contract) = args.contract {
        headers.insert("x-contract-id", contract);
    }
    let (credential, _) = open_credential(&state, pin::unlock)?;
    let credential = CurrentCredential::new(credential);
    let authorities = authorities(&args.ca)?;
    let server_name = args.server_name.as_ref();
    let connector = Connector::new(args.gateways, server_name, authorities, credential);
    let gateway = Gateway::new(connector.map_err(RunError::Tls)?, args.timeout);
    let mut coming = gateway.call(&request, deadline).await?;
    let status = coming.response.status();
    let answer = print(coming.response.body_mut());
    let cut = |_| CallError::Cut(format!("it took longer than {:?}", args.timeout));
    timeout_at(deadline, answer).await.map_err(cut)??;
    if status.is_success() {
        Ok(())
    } else {
        Err(CallError::Answered(status))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CallError> {
    let most = u64::try_from(MAX_BODY).unwrap_or(u64::MAX) + 1;
    let mut body = Vec::new();
    let done = if path == Path::new("-") {
        io::stdin().lock().take(most).read_to_end(&mut body)
    } else {
        File::open(path).and_then(|file| file.take(most).read_to_end(&mut body))
    };
    done.map_err(|source| CallError::Body {
        path: path.to_owned(),
        source,
    })?;
    Ok(body)
}

/// The request's body and its type: JSON is put into an envelope as it is, byte for byte.
fn body<'a>(tool: &str, payload: &'a [u8]) -> Result<(Cow<'a, [u8]>, &'static str), CallError> {
    let (body, content_type) = match serde_json::from_slice::<IgnoredAny>(payload) {
        Ok(_) => {
            // A text is always JSON.
            let name = serde_json::to_string(tool).map_err(CallError::NotJson)?;
            let payload = payload.trim_ascii();
            let envelope = [
                br#"{"tool":"#.as_slice(),
                name.as_bytes(),
                br#","payload":"#,
                payload,
                b"}",
            ];
            (Cow::Owned(envelope.concat()), "application/json")
        }
        Err(_) if tool == BARE_BODY_TOOL => (Cow::Borrowed(payload), "application/octet-stream"),
        Err(error) => return Err(CallError::NotJson(error)),
    };
    if body.len() > MAX_BODY {
        return Err(CallError::TooLarge);
    }
    Ok((body, content_type))
}

/// Writes the answer's body to stdout, as it comes.
async fn print(body: &mut RecvStream) -> Result<(), CallError> {
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| CallError::Cut(error.to_string()))?;
        let written = io::stdout().lock().write_all(&data);
        written.map_err(OutputError::from)?;
        // Fails only if more is released than was received.
        let _ = body.flow_control().release_capacity(data.len());
    }
    Ok(io::stdout().lock().flush().map_err(OutputError::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_goes_into_an_envelope_as_it_is() {
        for (tool, payload, expected) in [
            (
                "todos",
                r#"{"op":"create","n":1.0}"#,
                r#"{"tool":"todos","payload":{"op":"create","n":1.0}}"#,
            ),
            (
                "echo",
                " 12345678901234567890123 \n",
                r#"{"tool":"echo","payload":12345678901234567890123}"#,
            ),
            ("a\"b", "null", r#"{"tool":"a\"b","payload":null}"#),
            // What looks like an envelope is a payload all the same.
            (
                "echo",
                r#"{"tool":"todos"}"#,
                r#"{"tool":"echo","payload":{"tool":"todos"}}"#,
            ),
        ] {
            let (body, content_type) = body(tool, payload.as_bytes()).unwrap();
            assert_eq!(String::from_utf8_lossy(&body), expected);
            assert_eq!(content_type, "application/json");
        }
    }

    #[test]
    fn what_is_no_json_is_for_echo_alone() {
        for payload in [b"hello".as_slice(), b"", b"{", b"\xff", b"{} {}"] {
            let (body, content_type) = body("echo", payload).unwrap();
            assert_eq!(
                (&*body, content_type),
                (payload, "application/octet-stream")
            );
            assert!(matches!(
                super::body("todos", payload),
                Err(CallError::NotJson(_))
            ));
        }
    }

    #[test]
    fn what_the_gateway_does_not_carry_is_not_sent() {
        let fits = vec![b'x'; MAX_BODY];
        assert!(body("echo", &fits).is_ok());
        assert!(matches!(
            body("echo", &vec![b'x'; MAX_BODY + 1]),
            Err(CallError::TooLarge)
        ));
        let digits = vec![b'1'; MAX_BODY];
        assert!(matches!(body("echo", &digits), Err(CallError::TooLarge)));
    }
}
