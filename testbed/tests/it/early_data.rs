//! Bytes that a client sends before its tunnel is open: Envoy holds them back, and they go nowhere
//! unless the tunnel does.

use testbed::raw::Outcome;
use testbed::{Behaviour, RawClient, TcpService};

use crate::decider::{Gateway, Verdict, dial_private};

const EARLY: &[u8] = b"early";

/// Sends CONNECT and bytes for the tunnel at once.
async fn open_early(gateway: &Gateway) -> Outcome {
    let certificate = Some(&gateway.certificate);
    let client = RawClient::connect(gateway.addr(), &gateway.pki, certificate).await;
    let mut client = client.unwrap();
    client.open_early(b"docstore:443", EARLY).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn early_bytes_reach_no_destination_without_an_allow() {
    let service = TcpService::start([127, 0, 0, 1], Behaviour::Echo)
        .await
        .unwrap();
    let gateway = Gateway::start(Verdict::Deny(403, ("x-reason", "none"), "no")).await;
    assert_eq!(open_early(&gateway).await.status(), Some(403));
    // The bytes are there while the decision is still to come.
    gateway.set(Verdict::Hang);
    assert_eq!(open_early(&gateway).await.status(), Some(503));
    assert_eq!(gateway.checks().len(), 2);
    assert_eq!(service.connections(), 0);

    gateway.set(dial_private(service.addr()));
    assert_eq!(open_early(&gateway).await.status(), Some(200));
    service.wait_for(EARLY).await.unwrap();
    assert_eq!(service.connections(), 1);
}
