//! TPMs that are full, crowded, or go away in the middle of it.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use testbed::Swtpm;
use testbed::port::free_ports;

use crate::office::{AGENT, KEY, Office, refusal};

/// A stretch of network in front of a TPM that breaks after so many of its commands; each takes a
/// connection of its own.
struct Fragile {
    port: u16,
    left: Arc<AtomicUsize>,
}

impl Fragile {
    fn before(tpm: &Swtpm) -> Fragile {
        let target: u16 = tpm.tcti().rsplit_once('=').unwrap().1.parse().unwrap();
        let port = free_ports(2).unwrap();
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        serve(port, target, Some(Arc::clone(&left)));
        serve(port + 1, target + 1, None);
        Fragile { port, left }
    }

    fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    fn breaks_after(&self, commands: usize) {
        self.left.store(commands, Ordering::SeqCst);
    }
}

fn serve(port: u16, target: u16, left: Option<Arc<AtomicUsize>>) {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    thread::spawn(move || {
        for client in listener.incoming().map(Result::unwrap) {
            let fewer = |left: usize| left.checked_sub(1);
            let whole = left.as_ref().is_none_or(|left| {
                left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer)
                    .is_ok()
            });
            if whole {
                let server = TcpStream::connect(("127.0.0.1", target)).unwrap();
                hand_on(client.try_clone().unwrap(), server.try_clone().unwrap());
                hand_on(server, client);
            }
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

fn grant<'a>(spki: &'a str, tcti: &'a str) -> Vec<&'a str> {
    let to = ["--destination", "a", "b", "c"];
    let by = ["grant", "--key", KEY, "--identity", AGENT, "--spki", spki];
    [&by[..], &["--tcti", tcti], &to].concat()
}

#[tokio::test]
async fn tpm_that_goes_away_in_the_middle_leaves_nothing_half_done() {
    let office = Office::new().await;
    let tpm = Swtpm::start().unwrap();
    let fragile = Fragile::before(&tpm);
    let tcti = fragile.tcti();
    office.done(&["register-key", KEY, "--tcti", &tcti]);
    office.done(&["grant-scope", KEY, "a", "b", "c"]);
    let spki = office.spki();
    let grant = grant(&spki, &tcti);
    let mut failed = 0;
    for commands in 0.. {
        fragile.breaks_after(commands);
        let output = office.cli(&grant);
        if output.status.success() {
            break;
        }
        failed += 1;
        let (status, said) = refusal(&output);
        assert_eq!(status, 69, "{said}");
        assert!(said.starts_with("error: cannot reach the TPM"), "{said}");
        assert_eq!(office.count("permission_registry"), 0);
    }
    // Opening takes some, and each of the three signatures one.
    assert!(failed > 3, "{failed}");
    assert_eq!(office.count("permission_registry"), 3);
}

#[tokio::test]
async fn full_tpm_is_told_with_what_to_do() {
    let office = Office::new().await;
    let tpm = Swtpm::start().unwrap();
    let tcti = tpm.tcti();
    let register = |number: u32| {
        let (id, handle) = (
            format!("key-{number}"),
            format!("{:#010x}", 0x8101_0010 + number),
        );
        office.cli(&["register-key", &id, "--tcti", &tcti, "--handle", &handle])
    };
    let outcomes = (0..100).map(register);
    let output = outcomes.into_iter().find(|output| !output.status.success());
    let (status, said) = refusal(&output.unwrap());
    assert_eq!(status, 73);
    assert!(
        said.starts_with("error: the TPM has no room for another key"),
        "{said}"
    );
    assert!(said.contains("`tpm2_evictcontrol -c HANDLE`"), "{said}");
}

#[tokio::test]
async fn commands_at_once_on_one_tpm_all_succeed() {
    let office = Office::new().await;
    let tpm = Swtpm::start().unwrap();
    let tcti = tpm.tcti();
    let at_once = |commands: &[Vec<&str>]| -> Vec<Output> {
        let started: Vec<_> = commands
            .iter()
            .map(|arguments| {
                let mut command = office.command(arguments);
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                command.spawn().unwrap()
            })
            .collect();
        let outcomes = started
            .into_iter()
            .map(|child| child.wait_with_output().unwrap());
        outcomes.collect()
    };
    let handles = ["0x81010010", "0x81010011", "0x81010012"];
    let ids = [KEY, "org-bob", "org-carol"];
    let register: Vec<_> = ids
        .iter()
        .zip(&handles)
        .map(|(id, handle)| vec!["register-key", id, "--tcti", &tcti, "--handle", handle])
        .collect();
    for output in at_once(&register) {
        assert!(output.status.success(), "{output:?}");
    }
    office.done(&["grant-scope", KEY, "a", "b", "c"]);
    let spki = office.spki();
    let grants = vec![grant(&spki, &tcti); 4];
    for output in at_once(&grants) {
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(office.count("permission_registry"), 12);

    // One handle: one of them makes the key, and to the other it belongs to somebody else.
    let same = ["x", "y"].map(|id| {
        vec![
            "register-key",
            id,
            "--tcti",
            &tcti,
            "--handle",
            "0x81010020",
        ]
    });
    let mut statuses: Vec<_> = at_once(&same)
        .iter()
        .map(|output| output.status.code())
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [Some(0), Some(73)]);
}
