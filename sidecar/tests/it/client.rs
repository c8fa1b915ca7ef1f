//! A local client of the proxy that sends exactly what a test says.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// No answer takes that long, unless there is none.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How a sidecar is reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    /// The header line that holds the token; nothing if there is none.
    pub(crate) authorization: &'static str,
}

impl Proxy {
    /// As a client understands the URL: what stands before `@` is sent as Basic credentials.
    pub(crate) fn at(url: &str) -> Self {
        let rest = url.strip_prefix("http://").unwrap();
        let (user, address) = rest.rsplit_once('@').unwrap_or(("", rest));
        let authorization = match user {
            "" => String::new(),
            user => format!(
                "Proxy-Authorization: Basic {}\r\n",
                BASE64_STANDARD.encode(user)
            ),
        };
        Self {
            address: address.parse().unwrap(),
            // Tests hand it to their tasks.
            authorization: authorization.leak(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{:?}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn reason(&self) -> String {
        self.json()["reason"].as_str().unwrap().to_owned()
    }
}

/// A tunnel through the proxy, which must be allowed.
pub(crate) async fn tunnel(proxy: Proxy, authority: &str) -> TcpStream {
    let (answer, stream) = connect(proxy, authority, "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    stream
}

/// A tunnel for which there is no room yet, but soon.
pub(crate) async fn tunnel_when_there_is_room(proxy: Proxy, authority: &str) -> TcpStream {
    let opened = async {
        loop {
            let (answer, stream) = connect(proxy, authority, "").await;
            match answer.status {
                200 => return stream,
                status => assert_eq!(status, 429, "{answer:?}"),
            }
        }
    };
    timeout(PATIENCE, opened).await.expect("room for a tunnel")
}

/// A refused tunnel, with the whole answer.
pub(crate) async fn refused(proxy: Proxy, authority: &str) -> Answer {
    let (mut answer, stream) = connect(proxy, authority, "").await;
    assert_ne!(answer.status, 200, "{answer:?}");
    answer.body = read_to_end(stream).await;
    answer
}

/// CONNECT with the token and further header lines, each ended by CRLF.
pub(crate) async fn connect(proxy: Proxy, authority: &str, headers: &str) -> (Answer, TcpStream) {
    let token = proxy.authorization;
    let request =
        format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{token}{headers}\r\n");
    let mut stream = send(proxy, request.as_bytes()).await;
    (head(&mut stream).await, stream)
}

/// A connection on which `bytes` were sent.
pub(crate) async fn send(proxy: Proxy, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// The answer to raw bytes, up to the connection's end.
pub(crate) async fn ask(proxy: Proxy, bytes: &[u8]) -> Answer {
    let mut stream = send(proxy, bytes).await;
    let mut answer = head(&mut stream).await;
    answer.body = read_to_end(stream).await;
    answer
}

/// Status line and headers, and not a byte more.
pub(crate) async fn head(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(
            timeout(PATIENCE, stream.read_u8())
                .await
                .expect("an answer")
                .unwrap(),
        );
    }
    let text = String::from_utf8(bytes).unwrap();
    let mut lines = text.trim_end().split("\r\n");
    let status = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let headers = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    Answer {
        status,
        headers,
        body: Vec::new(),
    }
}

/// Up to the orderly end.
pub(crate) async fn read_to_end(mut stream: TcpStream) -> Vec<u8> {
    read_to_its_end(&mut stream).await
}

/// Up to the orderly end of what the other side sends.
pub(crate) async fn read_to_its_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes))
        .await
        .expect("an end")
        .unwrap();
    bytes
}

/// Exactly that much.
pub(crate) async fn read(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    timeout(PATIENCE, stream.read_exact(&mut data))
        .await
        .expect("data")
        .unwrap();
    data
}

/// Reads until the connection breaks; an orderly end is not what was expected.
pub(crate) async fn read_until_reset(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut bytes))
        .await
        .expect("an end");
    assert_eq!(
        ended.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    bytes
}
