//! The DNS server, asked by hand-made packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use testbed::DnsServer;
use testbed::dns::Answer;
use tokio::net::UdpSocket;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const OTHER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// The response, or none in half a second.
async fn ask(server: &DnsServer, name: &str, record: RecordType) -> Option<Message> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(server.addr()).await.unwrap();
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_str(name).unwrap(), record));
    socket.send(&query.to_vec().unwrap()).await.unwrap();
    let mut packet = [0; 1024];
    let received = tokio::time::timeout(Duration::from_millis(500), socket.recv(&mut packet)).await;
    let response = Message::from_vec(&packet[..received.ok()?.unwrap()]).unwrap();
    assert_eq!(response.metadata.id, query.metadata.id);
    assert_eq!(response.queries, query.queries);
    Some(response)
}

async fn addresses(server: &DnsServer, name: &str, record: RecordType) -> Vec<IpAddr> {
    let response = ask(server, name, record).await.unwrap();
    assert_eq!(response.metadata.response_code, ResponseCode::NoError);
    response
        .answers
        .iter()
        .map(|record| record.data.ip_addr().unwrap())
        .collect()
}

#[tokio::test]
async fn addresses_are_answered_by_type_in_order() {
    let server = DnsServer::start().await.unwrap();
    server.answer("docstore.test", Answer::Addresses(vec![OTHER_V4, V6, V4]));
    assert_eq!(
        addresses(&server, "docstore.test.", RecordType::A).await,
        [OTHER_V4, V4]
    );
    assert_eq!(
        addresses(&server, "DocStore.Test.", RecordType::AAAA).await,
        [V6]
    );
    assert_eq!(server.queries("docstore.test"), 2);
}

#[tokio::test]
async fn sequence_goes_on_per_type_and_stays_at_its_end() {
    let server = DnsServer::start().await.unwrap();
    server.answer(
        "moves.test",
        Answer::Sequence(vec![vec![V4, V6], vec![OTHER_V4]]),
    );
    assert_eq!(addresses(&server, "moves.test.", RecordType::A).await, [V4]);
    assert_eq!(
        addresses(&server, "moves.test.", RecordType::AAAA).await,
        [V6]
    );
    assert_eq!(
        addresses(&server, "moves.test.", RecordType::A).await,
        [OTHER_V4]
    );
    assert_eq!(
        addresses(&server, "moves.test.", RecordType::A).await,
        [OTHER_V4]
    );
}

#[tokio::test]
async fn unknown_names_do_not_exist() {
    let server = DnsServer::start().await.unwrap();
    server.answer("gone.test", Answer::NxDomain);
    for name in ["gone.test.", "never-mentioned.test."] {
        let response = ask(&server, name, RecordType::A).await.unwrap();
        assert_eq!(response.metadata.response_code, ResponseCode::NXDomain);
        assert!(response.answers.is_empty());
    }
}

#[tokio::test]
async fn hanging_name_gets_no_answer_and_others_do() {
    let server = DnsServer::start().await.unwrap();
    server.answer("hangs.test", Answer::Hang);
    server.answer("docstore.test", Answer::Addresses(vec![V4]));
    assert!(ask(&server, "hangs.test.", RecordType::A).await.is_none());
    assert_eq!(
        addresses(&server, "docstore.test.", RecordType::A).await,
        [V4]
    );
}

#[tokio::test]
async fn ttl_is_the_tests_choice() {
    let server = DnsServer::start().await.unwrap();
    server.answer("docstore.test", Answer::Addresses(vec![V4]));
    assert_eq!(
        ask(&server, "docstore.test.", RecordType::A)
            .await
            .unwrap()
            .answers[0]
            .ttl,
        0
    );
    server.set_ttl(300);
    assert_eq!(
        ask(&server, "docstore.test.", RecordType::A)
            .await
            .unwrap()
            .answers[0]
            .ttl,
        300
    );
}
