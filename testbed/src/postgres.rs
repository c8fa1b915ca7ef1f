//! Real Postgres: private clusters that a test may stop, and fresh databases on a shared one.
//!
//! Schemas are not made here; that is the registry's part.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Signal;
use tempfile::TempDir;
use url::Url;

use crate::process::{self, PATIENCE, Process};
use crate::wire::Wire;

/// A Postgres cluster of the test's own, with the superuser `postgres` and no password.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    port: u16,
    folder: TempDir,
}

impl Postgres {
    /// Makes a cluster and waits until it answers (about a second).
    pub async fn start() -> Result<Postgres> {
        blocking(Postgres::start_now).await
    }

    /// Makes a streaming standby of this server, which has all that is there now.
    pub async fn standby(&self) -> Result<Postgres> {
        let primary = self.port;
        blocking(move || {
            let folder = crate::scratch::folder("standby")?;
            let mut copy = Command::new(script());
            copy.arg("standby")
                .arg(folder.path())
                .arg(primary.to_string());
            process::output(&mut copy)?;
            let port = crate::free_port()?;
            Ok(Postgres {
                process: run(folder.path(), port)?,
                port,
                folder,
            })
        })
        .await
    }

    /// Runs SQL statements in one of its databases, as superuser.
    pub fn execute(&self, database: &str, sql: &str) -> Result<()> {
        psql(&self.url(database), sql).map(drop)
    }

    /// The connection URL of one of its databases, as superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Creates an empty database on this server.
    pub fn database(&self, name: &str) -> Result<Database> {
        self.create_database(name)?;
        let server = Url::parse(&self.url("postgres")).context("server URL")?;
        Ok(Database {
            server,
            name: name.to_owned(),
        })
    }

    /// Makes an empty database, and returns its URL.
    pub fn create_database(&self, name: &str) -> Result<String> {
        create(&self.url("postgres"), name)?;
        Ok(self.url(name))
    }

    /// Shuts the server down, cutting all connections ("fast" shutdown).
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop_by(Signal::INT)?;
        Ok(())
    }

    /// Starts the server again: same data, same port.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process.stop_by(Signal::INT)?;
        let (folder, port) = (self.folder.path().to_owned(), self.port);
        self.process = blocking(move || run(&folder, port)).await?;
        Ok(())
    }

    /// Keeps a copy of all its databases; the server is stopped and started for it.
    pub async fn save(&mut self) -> Result<()> {
        self.stop()?;
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(self.data()).arg(self.saved());
        process::output(&mut copy)?;
        self.start_again().await
    }

    /// Puts the copy in the place of what is there now.
    pub async fn restore(&mut self) -> Result<()> {
        self.stop()?;
        fs::remove_dir_all(self.data())?;
        fs::rename(self.saved(), self.data())?;
        self.start_again().await
    }

    /// As if a standby that had all of the data had taken over: the same, on another timeline.
    pub async fn fail_over(&mut self) -> Result<()> {
        self.stop()?;
        fs::write(self.data().join("recovery.signal"), "")?;
        let mut settings = fs::OpenOptions::new()
            .append(true)
            .open(self.data().join("postgresql.auto.conf"))?;
        // No archive has anything to recover, so recovery ends at once.
        writeln!(settings, "restore_command = 'false'")?;
        self.start_again().await
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn saved(&self) -> PathBuf {
        self.folder.path().join("saved")
    }

    /// Stops the server and all its backends in their tracks (SIGSTOP): connections stay open and
    /// new ones are taken by the kernel, but nothing answers.
    pub fn pause(&mut self) -> Result<()> {
        // The parent first, so that it makes no further children.
        self.process.pause()?;
        for child in children(self.process.id())? {
            process::send(child, Signal::STOP)?;
        }
        Ok(())
    }

    /// Lets a paused server go on.
    pub fn resume(&mut self) -> Result<()> {
        for child in children(self.process.id())? {
            process::send(child, Signal::CONT)?;
        }
        self.process.resume()
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    fn start_now() -> Result<Postgres> {
        let folder = crate::scratch::folder("postgres")?;
        let mut init = Command::new(script());
        process::output(init.arg("init").arg(folder.path()))?;
        let port = crate::free_port()?;
        Ok(Postgres {
            process: run(folder.path(), port)?,
            port,
            folder,
        })
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGQUIT is Postgres's "immediate" shutdown: it leaves no shared memory behind, and
        // needs its children to be running.
        let _ = self.resume();
        let _ = self.process.stop_by(Signal::QUIT);
    }
}

/// An empty database; removed when dropped.
#[derive(Debug)]
pub struct Database {
    server: Url,
    name: String,
}

/// Makes an empty database: on the server of `TEST_DATABASE_URL` where that is set, else on a
/// private cluster that the tests of this process share.
pub async fn database() -> Result<Database> {
    blocking(|| {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let server = match std::env::var("TEST_DATABASE_URL") {
            Ok(url) => url,
            Err(_) => shared_cluster()?,
        };
        let server = Url::parse(&server).context("TEST_DATABASE_URL is not a URL")?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Process ids come round again, and a server of TEST_DATABASE_URL may be shared.
        let started = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let name = format!(
            "agent_gateway_test_{}_{count}_{started:x}",
            std::process::id()
        );
        create(server.as_str(), &name)?;
        Ok(Database { server, name })
    })
    .await
}

impl Database {
    /// Its connection URL, as the role that made (and owns) it.
    pub fn url(&self) -> String {
        let mut url = self.server.clone();
        url.set_path(&self.name);
        url.into()
    }

    /// Its connection URL for another role.
    pub fn url_as(&self, role: &str, password: &str) -> Result<String> {
        let mut url = self.server.clone();
        url.set_path(&self.name);
        let password = (!password.is_empty()).then_some(password);
        if url.set_username(role).is_err() || url.set_password(password).is_err() {
            bail!("{role} cannot stand in a URL");
        }
        Ok(url.into())
    }

    /// Its connection URL by way of a [`Wire`] to its server.
    pub fn url_over(&self, wire: &Wire) -> Result<String> {
        let mut url = Url::parse(&self.url())?;
        url.set_ip_host(wire.addr().ip())
            .map_err(|()| anyhow!("not a URL with a host"))?;
        url.set_port(Some(wire.addr().port()))
            .map_err(|()| anyhow!("not a URL with a port"))?;
        Ok(url.into())
    }

    /// Where its server listens.
    pub fn server_addr(&self) -> Result<SocketAddr> {
        let (host, port) = (self.server.host_str(), self.server.port().unwrap_or(5432));
        let mut found = (host.unwrap_or("localhost"), port).to_socket_addrs()?;
        found.next().context("the server of TEST_DATABASE_URL")
    }

    /// Runs SQL statements as the owner.
    pub fn execute(&self, sql: &str) -> Result<()> {
        psql(&self.url(), sql).map(drop)
    }

    /// Runs a query as the owner; columns are separated by `|`, rows by line ends.
    pub fn query(&self, sql: &str) -> Result<String> {
        psql(&self.url(), sql)
    }

    /// psql as the owner; what it shall do is for the caller to add.
    pub(crate) fn psql(&self) -> Result<Command> {
        psql_command(&self.url())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // If the server is gone, so is the database.
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let _ = psql(self.server.as_str(), &sql);
    }
}

/// The URL of the cluster that the tests of this process share.
fn shared_cluster() -> Result<String> {
    // A static is never dropped; the cluster goes by its parent-death signal.
    static SHARED: Mutex<Option<Postgres>> = Mutex::new(None);
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = match &mut *shared {
        Some(cluster) => cluster,
        empty => empty.insert(Postgres::start_now()?),
    };
    Ok(cluster.url("postgres"))
}

fn create(server: &str, name: &str) -> Result<()> {
    psql(
        server,
        &format!("CREATE DATABASE {name} TEMPLATE template0"),
    )
    .map(drop)
}

/// Runs statements, and returns what they select.
fn psql(url: &str, sql: &str) -> Result<String> {
    let output = process::output(psql_command(url)?.args(["-c", sql]))?;
    Ok(output.trim_end().to_owned())
}

/// psql with its connection in the environment: arguments are there for all to see.
fn psql_command(url: &str) -> Result<Command> {
    let url = Url::parse(url).context("not a database URL")?;
    let mut command = Command::new("psql");
    command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
    let mut set = |key: &str, value: &str| {
        if !value.is_empty() {
            command.env(key, percent_decode(value));
        }
    };
    set("PGHOST", url.host_str().unwrap_or_default());
    set("PGUSER", url.username());
    set("PGPASSWORD", url.password().unwrap_or_default());
    set("PGDATABASE", url.path().trim_start_matches('/'));
    set("PGPORT", &url.port().unwrap_or(5432).to_string());
    // A server that was left paused must not hold up the end of a test that failed.
    set("PGCONNECT_TIMEOUT", &PATIENCE.as_secs().to_string());
    for (key, value) in url.query_pairs() {
        match &*key {
            "host" => set("PGHOST", &value),
            "sslmode" => set("PGSSLMODE", &value),
            _ => {}
        }
    }
    Ok(command)
}

fn percent_decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text)
        .decode_utf8_lossy()
        .into_owned()
}

fn run(folder: &Path, port: u16) -> Result<Process> {
    let mut command = Command::new(script());
    command.arg("run").arg(folder).arg(port.to_string());
    let mut process = Process::start("postgres", &command)?;
    // It listens before it has finished recovery, so ask it something.
    let deadline = Instant::now() + PATIENCE;
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    // A standby takes "read-only connections".
    process.wait_for_log("database system is ready to accept")?;
    while let Err(error) = psql(&url, "SELECT 1") {
        if Instant::now() >= deadline {
            return Err(error.context(process.log()));
        }
    }
    Ok(process)
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("postgres-cluster")
}

/// The processes whose parent is `parent`.
fn children(parent: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(id) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // "ID (NAME) STATE PARENT …", where NAME may hold anything. A process may just have gone.
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        if after_name.split(' ').nth(1) == Some(parent.to_string().as_str()) {
            children.push(id);
        }
    }
    Ok(children)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}
