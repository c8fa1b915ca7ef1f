//! Name servers that hang, fail or answer by halves.

use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::*;

#[tokio::test]
async fn an_ipv4_answer_does_not_wait_for_the_ipv6_one() {
    let mut fixture = Fixture::new("").await;
    let (address, server) = answering_only_a([9, 9, 9, 9]).await;
    fixture.options.nameservers = vec![address];
    fixture.options.timeout = Duration::from_hours(1);
    let resolved = fixture.resolve("half.example");
    let resolved = tokio::time::timeout(Duration::from_secs(20), resolved)
        .await
        .unwrap();
    assert_eq!(resolved, Ok(public("9.9.9.9:443")));
    server.abort();
}

#[tokio::test]
async fn an_ipv4_answer_counts_when_the_ipv6_one_never_comes() {
    let mut fixture = Fixture::new("").await;
    let (address, server) = answering_only_a([9, 9, 9, 9]).await;
    fixture.options.nameservers = vec![address];
    fixture.options.timeout = Duration::from_secs(2);
    fixture.has_ipv6_route = || true;
    assert_eq!(
        fixture.resolve("half.example").await,
        Ok(public("9.9.9.9:443"))
    );
    server.abort();
}

#[tokio::test]
async fn a_name_server_that_hangs_is_waited_for_no_longer_than_the_timeout() {
    let mut fixture = Fixture::new("").await;
    fixture.options.timeout = Duration::from_millis(200);
    fixture.server.answer("hanging.example", Answer::Hang);
    assert_eq!(
        fixture.resolve("hanging.example").await,
        Err(ResolveError::TimedOut)
    );
}

#[tokio::test]
async fn nobody_at_the_name_servers_port_is_a_timeout() {
    let mut fixture = Fixture::new("").await;
    fixture.options.timeout = Duration::from_millis(200);
    fixture.options.nameservers = vec![SocketAddr::from(([127, 0, 0, 1], 1))];
    assert_eq!(
        fixture.resolve("api.example").await,
        Err(ResolveError::TimedOut)
    );
}

#[tokio::test]
async fn a_name_server_that_cannot_answer_is_a_failure() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut fixture = Fixture::new("").await;
    fixture.options.nameservers = vec![socket.local_addr().unwrap()];
    let server = tokio::spawn(async move {
        let mut packet = [0; 512];
        loop {
            let (length, client) = socket.recv_from(&mut packet).await.unwrap();
            // The query itself, marked as a response with code SERVFAIL (RFC 1035, section 4.1.1).
            packet[2] |= 0x80;
            packet[3] = 0x82;
            socket.send_to(&packet[..length], client).await.unwrap();
        }
    });
    assert_eq!(
        fixture.resolve("api.example").await,
        Err(ResolveError::ServerFailure)
    );
    server.abort();
}

/// A name server that leaves every question but those for IPv4 addresses unanswered.
async fn answering_only_a(ip: [u8; 4]) -> (SocketAddr, JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let mut packet = [0; 512];
        loop {
            let (length, client) = socket.recv_from(&mut packet).await.unwrap();
            let query = Message::from_vec(&packet[..length]).unwrap();
            let question = query.queries.first().unwrap();
            if question.query_type() == RecordType::A {
                let mut response = Message::response(query.metadata.id, query.metadata.op_code);
                response.add_query(question.clone());
                let data = RData::A(Ipv4Addr::from(ip).into());
                response.add_answer(Record::from_rdata(question.name().clone(), 0, data));
                socket
                    .send_to(&response.to_vec().unwrap(), client)
                    .await
                    .unwrap();
            }
        }
    });
    (address, server)
}
