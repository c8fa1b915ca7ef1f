//! One side has said all it wants to say, the other has not.

use std::time::Duration;

use testbed::process::PATIENCE;
use testbed::{Behaviour, TcpService};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::decider::{Gateway, dial_private};

#[tokio::test(flavor = "multi_thread")]
async fn client_may_finish_first() {
    let service = TcpService::start([127, 0, 0, 1], Behaviour::EchoAtEnd)
        .await
        .unwrap();
    let gateway = Gateway::start(dial_private(service.addr())).await;
    let mut tunnel = gateway.open("docstore:443").await.into_tunnel().unwrap();
    let sent: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    tunnel.write_all(&sent).await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut back = Vec::new();
    timeout(PATIENCE, tunnel.read_to_end(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert!(back == sent, "{} bytes came back", back.len());
}

/// A limit of Envoy's: it takes a destination that has finished sending for one that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn service_that_finishes_first_is_heard_out_and_ends_the_tunnel() {
    // Fits into the client's window; Envoy drops what does not.
    let said: Vec<u8> = (0..=255).cycle().take(400_000).collect();
    let says = Behaviour::SayThenListen(said.clone());
    let service = TcpService::start([127, 0, 0, 1], says).await.unwrap();
    let gateway = Gateway::start(dial_private(service.addr())).await;
    let mut tunnel = gateway.open("docstore:443").await.into_tunnel().unwrap();
    // Not read until the service has long finished.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut heard = Vec::new();
    timeout(PATIENCE, tunnel.read_to_end(&mut heard))
        .await
        .unwrap()
        .unwrap();
    assert!(heard == said, "{} bytes were heard", heard.len());

    let write = async { while tunnel.write_all(&[0; 8192]).await.is_ok() {} };
    timeout(PATIENCE, write)
        .await
        .expect("the tunnel should have ended");
}
