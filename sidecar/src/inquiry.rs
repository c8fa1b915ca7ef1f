//! One question to the local proxy of a sidecar, as any client of it would ask.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::entrance::Entrance;

/// Largest answer that is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 128 * 1024;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longer than the sidecar gives the gateway by default.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What the proxy said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Empty for a tunnel, which is closed again.
    pub(crate) body: String,
}

/// Asks `method` of `target`. Blocks the thread.
pub(crate) fn ask(entrance: &Entrance, method: &str, target: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&entrance.reachable(), CONNECT_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let token = entrance.token.as_ref();
    let authorization = token.map(|token| format!("Proxy-Authorization: {}\r\n", token.basic()));
    let authorization = authorization.unwrap_or_default();
    let request = format!("{method} {target} HTTP/1.1\r\nHost: sidecar\r\n{authorization}\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut stream = stream.take(MAX_ANSWER_BYTES);
    let mut piece = [0; 4096];
    loop {
        let read = stream.read(&mut piece)?;
        answer.extend_from_slice(piece.get(..read).unwrap_or_default());
        let whole = read == 0;
        if let Some(answer) = understand(&answer, whole) {
            return Ok(answer);
        }
        if whole {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The answer in `bytes`, if it is all there: the proxy ends the connection after each but a tunnel.
fn understand(bytes: &[u8], whole: bool) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let tunnel = status == 200 && !head.to_ascii_lowercase().contains("\r\nconnection: close");
    (tunnel || whole).then(|| Answer {
        status,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_whole_at_its_end_and_a_tunnel_at_once() {
        for (text, whole, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\n", false, Some((200, ""))),
            (
                "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}",
                false,
                None,
            ),
            (
                "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{}",
                true,
                Some((200, "{}")),
            ),
            ("HTTP/1.1 403 Forbidden\r\n\r\nbo", false, None),
            (
                "HTTP/1.1 403 Forbidden\r\n\r\nbody",
                true,
                Some((403, "body")),
            ),
            ("HTTP/1.1 200 OK\r\n", true, None),
            ("rubbish\r\n\r\n", true, None),
            ("", true, None),
        ] {
            let answer = understand(text.as_bytes(), whole);
            let seen = answer
                .as_ref()
                .map(|answer| (answer.status, answer.body.as_str()));
            assert_eq!(seen, expected, "{text:?}");
        }
    }
}
