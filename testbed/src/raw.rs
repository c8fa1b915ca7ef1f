//! A client that writes HTTP/2 frames itself, so that it can send what no library would.
//!
//! One request at a time. It answers pings and settings, and leaves flow control alone: the
//! bodies it reads are small.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use loona_hpack::Decoder;
use rustls::version::TLS13;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::process::PATIENCE;
use crate::tls::client_config;
use crate::{ClientCertificate, GatewayPki};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest frame that a peer must accept (RFC 9113, 4.2).
const MAX_FRAME: usize = 16384;

// Frame types and flags of RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// One connection to the gateway, frame by frame.
pub struct RawClient {
    stream: TlsStream<TcpStream>,
    decoder: Decoder<'static>,
    next_stream: u32,
    going_away: Option<u32>,
}

impl std::fmt::Debug for RawClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawClient")
            .field("next_stream", &self.next_stream)
            .finish_non_exhaustive()
    }
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A response. Of a tunnel (2xx) only the headers are waited for.
    Answered(RawAnswer),
    /// `RST_STREAM` with this error code; the connection lives on.
    StreamReset(u32),
    /// The gateway closed the connection, with this GOAWAY error code if it said any.
    ConnectionClosed(Option<u32>),
}

/// A response, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawAnswer {
    /// The status.
    pub status: u16,
    /// All other headers, in order.
    pub headers: Vec<(String, String)>,
    /// The body; empty for a tunnel.
    pub body: Vec<u8>,
}

impl Outcome {
    /// The status, if there was a response.
    pub fn status(&self) -> Option<u16> {
        match self {
            Outcome::Answered(answer) => Some(answer.status),
            Outcome::StreamReset(_) | Outcome::ConnectionClosed(_) => None,
        }
    }
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// What happens to one stream; the flag says whether it was the last thing.
enum Event {
    Headers(RawAnswer, bool),
    Data(Vec<u8>, bool),
    Reset(u32),
    Closed,
}

impl RawClient {
    /// Connects, showing `certificate` or none, and sends the HTTP/2 preface.
    ///
    /// A gateway that refuses the certificate may only show it at the first request.
    pub async fn connect(
        gateway: SocketAddr,
        pki: &GatewayPki,
        certificate: Option<&ClientCertificate>,
    ) -> Result<RawClient> {
        let stream =
            crate::tls::connect(gateway, client_config(pki, certificate, &[&TLS13])?).await?;
        let mut client = RawClient {
            stream,
            decoder: Decoder::new(),
            next_stream: 1,
            going_away: None,
        };
        // Errors show in the outcome of the first request.
        let _ = client.stream.write_all(PREFACE).await;
        let _ = client.write_frame(SETTINGS, 0, 0, &[]).await;
        Ok(client)
    }

    /// Sends CONNECT with any bytes as `:authority` and with further headers, and waits for what
    /// comes of it.
    pub async fn open(&mut self, authority: &[u8], headers: &[(&str, &[u8])]) -> Result<Outcome> {
        let mut all: Vec<(&str, &[u8])> = vec![(":method", b"CONNECT"), (":authority", authority)];
        all.extend(headers);
        // A tunnel's request stays open.
        self.request(&all, false).await
    }

    /// As [`Self::open`], and sends `early` without waiting for an answer.
    pub async fn open_early(&mut self, authority: &[u8], early: &[u8]) -> Result<Outcome> {
        let stream = self.next_stream;
        self.next_stream += 2;
        let headers = [(":method", &b"CONNECT"[..]), (":authority", authority)];
        self.write_headers(stream, &headers, false).await?;
        self.write_frame(DATA, 0, stream, early).await?;
        self.outcome(stream).await
    }

    /// Sends exactly these headers, pseudo-headers included.
    pub async fn request(&mut self, headers: &[(&str, &[u8])], end: bool) -> Result<Outcome> {
        let stream = self.next_stream;
        self.next_stream += 2;
        if self.write_headers(stream, headers, end).await.is_err() {
            // Something may have been said before the connection was closed.
            return Ok(self
                .outcome(stream)
                .await
                .unwrap_or(Outcome::ConnectionClosed(None)));
        }
        self.outcome(stream).await
    }

    /// Sends these headers, then these pieces, each in a frame, and trailers where there are any.
    pub async fn post(
        &mut self,
        headers: &[(&str, &[u8])],
        pieces: &[&[u8]],
        trailers: &[(&str, &[u8])],
    ) -> Result<Outcome> {
        let stream = self.next_stream;
        self.next_stream += 2;
        let sent = self.write_request(stream, headers, pieces, trailers).await;
        let outcome = self.outcome(stream).await;
        // Something may have been said before the connection was closed.
        sent.and(outcome)
            .or_else(|_| Ok(Outcome::ConnectionClosed(self.going_away)))
    }

    async fn write_request(
        &mut self,
        stream: u32,
        headers: &[(&str, &[u8])],
        pieces: &[&[u8]],
        trailers: &[(&str, &[u8])],
    ) -> Result<()> {
        self.write_headers(stream, headers, false).await?;
        for (place, piece) in pieces.iter().enumerate() {
            let last = place + 1 == pieces.len() && trailers.is_empty();
            let flags = if last { END_STREAM } else { 0 };
            self.write_frame(DATA, flags, stream, piece).await?;
        }
        if !trailers.is_empty() {
            self.write_headers(stream, trailers, true).await?;
        }
        Ok(())
    }

    async fn write_headers(
        &mut self,
        stream: u32,
        headers: &[(&str, &[u8])],
        end: bool,
    ) -> Result<()> {
        let mut block = Vec::new();
        for (name, value) in headers {
            block.push(0); // literal, not indexed, new name (RFC 7541, 6.2.2)
            write_string(&mut block, name.as_bytes());
            write_string(&mut block, value);
        }
        let mut chunks = block.chunks(MAX_FRAME).peekable();
        let mut kind = HEADERS;
        let mut flags = if end { END_STREAM } else { 0 };
        while let Some(chunk) = chunks.next() {
            if chunks.peek().is_none() {
                flags |= END_HEADERS;
            }
            self.write_frame(kind, flags, stream, chunk).await?;
            (kind, flags) = (CONTINUATION, 0);
        }
        Ok(())
    }

    async fn write_frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> Result<()> {
        let length = u32::try_from(payload.len())?;
        let mut frame = length
            .to_be_bytes()
            .into_iter()
            .skip(1)
            .collect::<Vec<u8>>();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        timeout(PATIENCE, self.stream.write_all(&frame)).await??;
        Ok(())
    }

    async fn read_frame(&mut self) -> Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c]))?;
        if length > MAX_FRAME {
            bail!("a frame of {length} bytes");
        }
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await?;
        Ok(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
            payload,
        })
    }

    async fn outcome(&mut self, stream: u32) -> Result<Outcome> {
        timeout(PATIENCE, self.read_outcome(stream))
            .await
            .context("the gateway does not answer")?
    }

    async fn read_outcome(&mut self, stream: u32) -> Result<Outcome> {
        let mut answer: Option<RawAnswer> = None;
        loop {
            let (bytes, ends) = match self.next_event(stream).await? {
                Event::Closed => return Ok(Outcome::ConnectionClosed(self.going_away)),
                Event::Reset(code) => return Ok(Outcome::StreamReset(code)),
                Event::Headers(first, ends) if answer.is_none() => {
                    // Of a tunnel no more is waited for.
                    let ends = ends || (200..300).contains(&first.status);
                    answer = Some(first);
                    (Vec::new(), ends)
                }
                // Trailers say nothing that a test asks for.
                Event::Headers(_, ends) => (Vec::new(), ends),
                Event::Data(bytes, ends) => (bytes, ends),
            };
            let read = answer.as_mut().context("DATA before HEADERS")?;
            read.body.extend(bytes);
            if ends {
                return Ok(Outcome::Answered(read.clone()));
            }
        }
    }

    /// The next thing that happens to this stream, having done what the connection asks for.
    async fn next_event(&mut self, stream: u32) -> Result<Event> {
        loop {
            let Ok(frame) = self.read_frame().await else {
                return Ok(Event::Closed);
            };
            let mine = frame.stream == stream;
            let ends = frame.flags & END_STREAM != 0;
            match frame.kind {
                SETTINGS | PING if frame.flags & ACK == 0 => {
                    let echo = if frame.kind == PING {
                        frame.payload
                    } else {
                        Vec::new()
                    };
                    // A connection that can't be written to will end at the next read.
                    let _ = self.write_frame(frame.kind, ACK, 0, &echo).await;
                }
                GOAWAY => self.going_away = number_at(&frame.payload, 4),
                RST_STREAM if mine => {
                    let code = number_at(&frame.payload, 0).context("a short RST_STREAM")?;
                    return Ok(Event::Reset(code));
                }
                HEADERS => {
                    // Decoded even if not mine: the decoder's table depends on all of them.
                    let block = self.read_block(frame).await?;
                    let answer = self.decode(&block)?;
                    if mine {
                        return Ok(Event::Headers(answer, ends));
                    }
                }
                DATA if mine => return Ok(Event::Data(frame.payload, ends)),
                _ => {}
            }
        }
    }

    /// The header block that starts with this frame.
    async fn read_block(&mut self, mut frame: Frame) -> Result<Vec<u8>> {
        if frame.flags & (PADDED | PRIORITY) != 0 {
            bail!("padding and priority are not read");
        }
        let mut block = std::mem::take(&mut frame.payload);
        while frame.flags & END_HEADERS == 0 {
            frame = self.read_frame().await?;
            if frame.kind != CONTINUATION {
                bail!("a header block without its end");
            }
            block.extend(&frame.payload);
        }
        Ok(block)
    }

    fn decode(&mut self, block: &[u8]) -> Result<RawAnswer> {
        let Ok(decoded) = self.decoder.decode(block) else {
            bail!("undecodable header block")
        };
        let mut answer = RawAnswer {
            status: 0,
            headers: Vec::new(),
            body: Vec::new(),
        };
        for (name, value) in decoded {
            let name = String::from_utf8_lossy(&name).into_owned();
            let value = String::from_utf8_lossy(&value).into_owned();
            if name == ":status" {
                answer.status = value.parse()?;
            } else {
                answer.headers.push((name, value));
            }
        }
        Ok(answer)
    }
}

/// A string literal without Huffman coding (RFC 7541, 5.1 and 5.2).
fn write_string(block: &mut Vec<u8>, text: &[u8]) {
    let mut length = text.len();
    if length < 127 {
        block.push(low_byte(length));
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push(low_byte(length & 0x7f) | 0x80);
            length >>= 7;
        }
        block.push(low_byte(length));
    }
    block.extend(text);
}

fn low_byte(number: usize) -> u8 {
    u8::try_from(number & 0xff).unwrap_or(0)
}

fn number_at(payload: &[u8], offset: usize) -> Option<u32> {
    let bytes = payload.get(offset..offset + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}
