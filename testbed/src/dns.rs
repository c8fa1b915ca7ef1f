//! A DNS server (UDP) with answers of the test's choice.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// What the server says about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These addresses: A or AAAA as asked for.
    Addresses(Vec<IpAddr>),
    /// Each time the next of these; the last one for ever. A and AAAA queries count apart.
    Sequence(Vec<Vec<IpAddr>>),
    /// There is no such name. Also the answer for every name that was never given one.
    NxDomain,
    /// No answer at all.
    Hang,
}

/// The running server; it ends when dropped.
#[derive(Debug)]
pub struct DnsServer {
    addr: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    task: JoinHandle<()>,
}

/// What is answered and what was asked. Held only while one query is looked up.
#[derive(Debug, Default)]
struct Zone {
    ttl_seconds: u32,
    answers: HashMap<String, Answer>,
    queries: HashMap<(String, RecordType), usize>,
}

impl DnsServer {
    /// Starts on a free port of 127.0.0.1, with a TTL of zero.
    pub async fn start() -> Result<DnsServer> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = socket.local_addr()?;
        let zone = Arc::new(Mutex::new(Zone::default()));
        let task = tokio::spawn(serve(socket, zone.clone()));
        Ok(DnsServer { addr, zone, task })
    }

    /// Where it listens (UDP).
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Sets or replaces the answer for a name.
    pub fn answer(&self, name: &str, answer: Answer) {
        let mut zone = lock(&self.zone);
        zone.queries.retain(|(asked, _), _| *asked != key(name));
        zone.answers.insert(key(name), answer);
    }

    /// Sets the TTL of all answers from now on.
    pub fn set_ttl(&self, seconds: u32) {
        lock(&self.zone).ttl_seconds = seconds;
    }

    /// How often A or AAAA was asked for this name since its answer was set.
    pub fn queries(&self, name: &str) -> usize {
        let zone = lock(&self.zone);
        zone.queries
            .iter()
            .filter(|((asked, _), _)| *asked == key(name))
            .map(|(_, n)| n)
            .sum()
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut packet = [0; 4096];
    loop {
        // A client that went away shows as an error of the next receive.
        let Ok((length, client)) = socket.recv_from(&mut packet).await else {
            continue;
        };
        let Some(query) = packet.get(..length) else {
            continue;
        };
        let response = respond(query, &mut lock(&zone));
        if let Some(response) = response {
            let _ = socket.send_to(&response, client).await;
        }
    }
}

/// The response's bytes; none to a query that hangs or is not a DNS query.
fn respond(packet: &[u8], zone: &mut Zone) -> Option<Vec<u8>> {
    let query = Message::from_vec(packet).ok()?;
    let question = query.queries.first()?;
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.edns.clone_from(&query.edns);
    response.add_query(question.clone());
    match zone.look_up(question) {
        Answer::Hang => return None,
        Answer::NxDomain => response.metadata.response_code = ResponseCode::NXDomain,
        Answer::Addresses(addresses) => {
            let ttl = zone.ttl_seconds;
            let records = addresses
                .iter()
                .filter_map(|address| record(question, *address, ttl));
            response.add_answers(records);
        }
        Answer::Sequence(_) => {}
    }
    response.to_vec().ok()
}

impl Zone {
    /// Counts the query, and takes this time's step of a sequence.
    fn look_up(&mut self, question: &Query) -> Answer {
        let name = key(&question.name().to_ascii());
        let count = self
            .queries
            .entry((name.clone(), question.query_type()))
            .or_default();
        let step = *count;
        *count += 1;
        match self.answers.get(&name) {
            None => Answer::NxDomain,
            Some(Answer::Sequence(steps)) => {
                let addresses = steps
                    .get(step)
                    .or(steps.last())
                    .cloned()
                    .unwrap_or_default();
                Answer::Addresses(addresses)
            }
            Some(answer) => answer.clone(),
        }
    }
}

fn record(question: &Query, address: IpAddr, ttl: u32) -> Option<Record> {
    let data = match (question.query_type(), address) {
        (RecordType::A, IpAddr::V4(address)) => RData::A(address.into()),
        (RecordType::AAAA, IpAddr::V6(address)) => RData::AAAA(address.into()),
        _ => return None,
    };
    Some(Record::from_rdata(question.name().clone(), ttl, data))
}

/// Names compare without case, and with or without their final dot.
fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn lock(zone: &Mutex<Zone>) -> MutexGuard<'_, Zone> {
    zone.lock().unwrap_or_else(PoisonError::into_inner)
}
