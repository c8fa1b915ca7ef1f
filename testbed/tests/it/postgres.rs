//! Private and shared Postgres.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use testbed::Postgres;
use testbed::process::PATIENCE;

#[tokio::test]
async fn each_database_is_empty_and_apart() {
    let one = testbed::database().await.unwrap();
    let other = testbed::database().await.unwrap();
    one.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2)")
        .unwrap();

    assert_eq!(one.query("SELECT a FROM t ORDER BY a").unwrap(), "1\n2");
    let error = other.query("SELECT a FROM t").unwrap_err().to_string();
    assert!(error.contains("relation \"t\" does not exist"), "{error}");
}

#[tokio::test]
async fn database_is_dropped_with_its_handle() {
    let watcher = testbed::database().await.unwrap();
    let gone = testbed::database().await.unwrap();
    let name = gone.query("SELECT current_database()").unwrap();
    let count = format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'");
    assert_eq!(watcher.query(&count).unwrap(), "1");
    drop(gone);
    assert_eq!(watcher.query(&count).unwrap(), "0");
}

#[tokio::test]
async fn stopped_cluster_comes_back_with_its_data() {
    let mut postgres = Postgres::start().await.unwrap();
    let url = postgres.create_database("kept").unwrap();
    assert_eq!(url, postgres.url("kept"));
    assert!(TcpStream::connect(postgres.addr()).is_ok());

    postgres.stop().unwrap();
    assert!(TcpStream::connect(postgres.addr()).is_err());

    postgres.start_again().await.unwrap();
    let error = postgres.create_database("kept").unwrap_err().to_string();
    assert!(error.contains("already exists"), "{error}");
}

#[tokio::test]
async fn paused_cluster_answers_nothing_until_resumed() {
    let mut postgres = Postgres::start().await.unwrap();
    postgres.pause().unwrap();
    // The kernel still takes the connection; Postgres does not answer the SSL request on it.
    assert_eq!(ssl_answer(&postgres, Duration::from_millis(500)), None);
    postgres.resume().unwrap();
    assert_eq!(ssl_answer(&postgres, PATIENCE), Some(b'N'));
}

#[test]
fn cluster_of_the_demo_wants_its_password() {
    let folder = testbed::scratch::folder("demo-cluster").unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "made-for-this-run\n").unwrap();
    let folder = folder.path().to_str().unwrap();
    let port = testbed::free_port().unwrap().to_string();
    let cluster = |arguments: &[&str]| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/postgres-cluster");
        Command::new(script)
            .args(arguments)
            .status()
            .unwrap()
            .success()
    };
    let may_connect = |password: &str| {
        let mut psql = Command::new("psql");
        psql.args([
            "-X",
            "-w",
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-c",
            "SELECT 1",
            "-p",
            &port,
        ]);
        psql.env("PGPASSWORD", password)
            .output()
            .unwrap()
            .status
            .success()
    };
    let authentication = [
        "--auth",
        "scram-sha-256",
        "--pwfile",
        password.to_str().unwrap(),
    ];
    assert!(cluster(&[&["init", folder][..], &authentication].concat()));
    assert!(cluster(&["start", folder, &port]));
    assert!(may_connect("made-for-this-run"));
    assert!(!may_connect("guessed"));
    assert!(cluster(&["stop", folder]));
    assert!(!may_connect("made-for-this-run"));
    assert!(cluster(&["stop", folder]), "stopping twice is no error");
}

fn ssl_answer(postgres: &Postgres, patience: Duration) -> Option<u8> {
    use std::io::{Read, Write};

    let mut connection = TcpStream::connect(postgres.addr()).unwrap();
    connection
        .write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f])
        .unwrap();
    connection.set_read_timeout(Some(patience)).unwrap();
    let mut answer = [0];
    connection
        .read_exact(&mut answer)
        .is_ok()
        .then_some(answer[0])
}
