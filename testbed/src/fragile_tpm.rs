//! A stretch of network in front of a simulated TPM that breaks when a test says so.
//!
//! One command goes through after another, whoever sends them, as a device's driver sees to it.
//! swtpm itself lets two connections wait, and the kernel drops what comes beyond.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};

use crate::Swtpm;
use crate::port::free_ports;

/// Hands on a number of the TPM's commands, each of which takes a connection of its own.
#[derive(Debug)]
pub struct FragileTpm {
    port: u16,
    left: Arc<AtomicUsize>,
}

impl FragileTpm {
    /// Whole, at first.
    pub fn before(tpm: &Swtpm) -> Result<FragileTpm> {
        let tcti = tpm.tcti();
        let target = tcti.rsplit_once('=').context("no port")?.1.parse()?;
        let port = free_ports(2)?;
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        serve(port, target, Some(Arc::clone(&left)))?;
        serve(port + 1, target + 1, None)?;
        Ok(FragileTpm { port, left })
    }

    /// As [`Swtpm::tcti`].
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// So many commands reach the TPM from now on.
    pub fn breaks_after(&self, commands: usize) {
        self.left.store(commands, Ordering::SeqCst);
    }

    /// All do.
    pub fn heals(&self) {
        self.breaks_after(usize::MAX);
    }
}

fn serve(port: u16, target: u16, left: Option<Arc<AtomicUsize>>) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let fewer = |left: usize| left.checked_sub(1);
            let whole = left.as_ref().is_none_or(|left| {
                left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer)
                    .is_ok()
            });
            // Otherwise the connection ends here.
            if whole && let Ok(server) = TcpStream::connect(("127.0.0.1", target)) {
                let both = client
                    .try_clone()
                    .and_then(|to| Ok((to, server.try_clone()?)));
                if let Ok((to_client, to_server)) = both {
                    let there = hand_on(client, to_server);
                    let back = hand_on(server, to_client);
                    // They don't panic.
                    let _ = (there.join(), back.join());
                }
            }
        }
    });
    Ok(())
}

fn hand_on(mut from: TcpStream, mut to: TcpStream) -> JoinHandle<()> {
    thread::spawn(move || {
        // An end with an error is an end.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    })
}
