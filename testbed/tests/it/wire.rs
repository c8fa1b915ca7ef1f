//! The network between two parts.

use std::time::Duration;

use testbed::{Behaviour, TcpService, Wire};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// As long as something that must not come is waited for.
const SHORT: Duration = Duration::from_millis(100);

async fn start() -> (TcpService, Wire) {
    let service = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
        .await
        .unwrap();
    let wire = Wire::to(service.addr()).await.unwrap();
    (service, wire)
}

async fn echo(stream: &mut TcpStream, word: [u8; 4]) {
    stream.write_all(&word).await.unwrap();
    let mut back = [0; 4];
    timeout(testbed::process::PATIENCE, stream.read_exact(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(back, word);
}

async fn is_silent(stream: &mut TcpStream) {
    let heard = timeout(SHORT, stream.read(&mut [0; 4])).await;
    assert!(heard.is_err(), "{heard:?}");
}

#[tokio::test]
async fn what_is_held_arrives_afterwards() {
    let (service, wire) = start().await;
    let mut stream = TcpStream::connect(wire.addr()).await.unwrap();
    echo(&mut stream, *b"one ").await;
    wire.hold();
    stream.write_all(b"two ").await.unwrap();
    let mut later = TcpStream::connect(wire.addr()).await.unwrap();
    is_silent(&mut stream).await;
    assert_eq!(
        (service.received(), service.connections()),
        (b"one ".to_vec(), 1)
    );
    wire.restore();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"two ");
    echo(&mut later, *b"late").await;
    // An end is carried like anything else.
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut back).await.unwrap(), 0);
}

#[tokio::test]
async fn what_is_lost_never_arrives_and_silences_its_connection() {
    let (service, wire) = start().await;
    let mut stream = TcpStream::connect(wire.addr()).await.unwrap();
    echo(&mut stream, *b"one ").await;
    wire.lose();
    stream.write_all(b"two ").await.unwrap();
    is_silent(&mut stream).await;
    wire.restore();
    stream.write_all(b"more").await.unwrap();
    is_silent(&mut stream).await;
    assert_eq!(service.received(), b"one ");
    let mut other = TcpStream::connect(wire.addr()).await.unwrap();
    echo(&mut other, *b"new ").await;
}
