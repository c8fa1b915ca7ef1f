//! Free ports on loopback that stay this process's own.
//!
//! They lie below the kernel's ephemeral range, so no outgoing connection takes one in the
//! meantime; and a UDP socket on the same number, held until the process ends, keeps test
//! processes that run side by side from choosing the same.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

const RANGE: std::ops::Range<u16> = 15000..32000;

struct Ports {
    next: u16,
    reserved: Vec<UdpSocket>,
}

static PORTS: Mutex<Option<Ports>> = Mutex::new(None);

/// A TCP port that nothing listens on and that no other caller gets.
pub fn free_port() -> Result<u16> {
    free_ports(1)
}

/// The first of `count` free ports in a row.
pub fn free_ports(count: u16) -> Result<u16> {
    let mut ports = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    let ports = ports.get_or_insert_with(|| Ports {
        next: first_port(),
        reserved: Vec::new(),
    });
    for _ in RANGE {
        let first = ports.next;
        ports.next = if first + 2 * count < RANGE.end {
            first + count
        } else {
            RANGE.start
        };
        let reserved: Option<Vec<_>> = (first..first + count).map(reserve).collect();
        if let Some(reserved) = reserved {
            ports.reserved.extend(reserved);
            return Ok(first);
        }
    }
    None.context("no free port on 127.0.0.1")
}

/// Processes start at different places, so that they seldom meet.
fn first_port() -> u16 {
    let places = u32::from(RANGE.end - RANGE.start);
    let offset = std::process::id().wrapping_mul(97) % places;
    RANGE.start + u16::try_from(offset).unwrap_or(0)
}

fn reserve(port: u16) -> Option<UdpSocket> {
    let reservation = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
    Some(reservation)
}
