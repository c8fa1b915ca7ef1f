//! A stretch of network in front of swtpm, which can be cut for one command.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use testbed::Swtpm;
use testbed::port::free_ports;

/// Hands connections on to swtpm; its threads end with the test process.
pub(crate) struct Relay {
    port: u16,
    cut: Arc<AtomicBool>,
}

impl Relay {
    pub(crate) fn start(swtpm: &Swtpm) -> Relay {
        let tcti = swtpm.tcti();
        let target: u16 = tcti.rsplit_once('=').unwrap().1.parse().unwrap();
        let port = free_ports(2).unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        // Commands go over the first port, control over the second; only commands are cut.
        serve(port, target, Arc::clone(&cut));
        serve(port + 1, target + 1, Arc::default());
        Relay { port, cut }
    }

    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// Closes the next connection before it can carry anything.
    pub(crate) fn cut_next(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    /// Whether the cut has happened.
    pub(crate) fn has_cut(&self) -> bool {
        !self.cut.load(Ordering::SeqCst)
    }
}

fn serve(port: u16, target: u16, cut: Arc<AtomicBool>) {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    thread::spawn(move || {
        for client in listener.incoming().map(Result::unwrap) {
            if cut.swap(false, Ordering::SeqCst) {
                continue;
            }
            let server = TcpStream::connect(("127.0.0.1", target)).unwrap();
            hand_on(client.try_clone().unwrap(), server.try_clone().unwrap());
            hand_on(server, client);
        }
    });
}

fn hand_on(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        // An end with an error is an end.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}
