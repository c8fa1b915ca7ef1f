//! A principal's office: a registry, a folder for keys, an agent to grant to, and the binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use permission::{Facts, Identity, PocaCandidate, Request, Spki, Timestamp, TrustRoots};
use poca::{PublicKey, SecretKey};
use registry::{Options, Reader};
use serde_json::Value;
use tempfile::TempDir;
use testbed::{ClientCertificate, Database};
use tokio::time::Instant;

pub(crate) const KEY: &str = "org-alice";
pub(crate) const AGENT: &str = "agent-alpha";
const PATIENCE: Duration = testbed::process::PATIENCE;

pub(crate) struct Office {
    pub(crate) database: Database,
    pub(crate) agent: ClientCertificate,
    folder: TempDir,
}

impl Office {
    /// A registry without any rows.
    pub(crate) async fn new() -> Self {
        let office = Self::unmigrated().await;
        registry::migrate(&office.database.url()).await.unwrap();
        office
    }

    pub(crate) async fn unmigrated() -> Self {
        Self {
            database: testbed::database().await.unwrap(),
            agent: ClientCertificate::for_identity(AGENT).unwrap(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// With a registered software key, and scopes for these destinations.
    pub(crate) async fn with_scopes(destinations: &[&str]) -> Self {
        let office = Self::new().await;
        office.done(&["register-key", KEY, "--key-file", &office.key_file()]);
        if !destinations.is_empty() {
            office.done(&[&["grant-scope", KEY], destinations].concat());
        }
        office
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, and returns its path as an argument.
    pub(crate) fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), contents).unwrap();
        text(&self.path(name))
    }

    pub(crate) fn key_file(&self) -> String {
        text(&self.path("principal.pem"))
    }

    /// The agent's public key in hex.
    pub(crate) fn spki(&self) -> String {
        hex::encode(self.agent.spki_der())
    }

    /// The agent's public key for proofs of context.
    #[expect(
        clippy::unused_self,
        reason = "it is this agent's, as its other key is"
    )]
    pub(crate) fn poca_key(&self) -> PublicKey {
        SecretKey::from_seed(&[7; 32]).public_key()
    }

    /// The binary with this registry, and nothing else of the environment's.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent-gateway-registry"));
        command
            .args(arguments)
            .stdin(Stdio::null())
            .env_remove("DATABASE_URL")
            .env_remove("AGENT_GATEWAY_TCTI")
            .env_remove("AGENT_GATEWAY_TPM_USER_PIN")
            .env_remove("AGENT_GATEWAY_TPM_SO_PIN")
            .env_remove("TSS2_LOG")
            .env_remove("AGENT_GATEWAY_TRUST_ROOTS")
            .env_remove("AGENT_GATEWAY_REGISTRY_ID")
            .env("AGENT_GATEWAY_DATABASE_URL", self.database.url());
        command
    }

    pub(crate) fn cli(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed, and returns its JSON.
    pub(crate) fn done(&self, arguments: &[&str]) -> Value {
        let output = self.cli(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs a command that must be refused and change nothing; returns the status and what it
    /// said.
    pub(crate) fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let before = self.rows();
        let refusal = refusal(&self.cli(arguments));
        assert_eq!(self.rows(), before, "{arguments:?}: {refusal:?}");
        refusal
    }

    /// `grant` with the usual arguments, but for those in `changed`.
    pub(crate) fn grant_arguments(&self, changed: &[(&str, &str)]) -> Vec<String> {
        let (key_file, spki) = (self.key_file(), self.spki());
        let usual = [
            ("--key", KEY),
            ("--identity", AGENT),
            ("--spki", &spki),
            ("--destination", "docstore"),
            ("--key-file", &key_file),
        ];
        let kept = usual
            .iter()
            .filter(|(name, _)| changed.iter().all(|(other, _)| name != other));
        let mut arguments = vec!["grant".to_owned()];
        for (name, value) in kept.chain(changed) {
            arguments.push(format!("{name}={value}"));
        }
        arguments
    }

    pub(crate) fn grant(&self, changed: &[(&str, &str)]) -> Value {
        self.done(&strs(&self.grant_arguments(changed)))
    }

    pub(crate) fn refused_grant(&self, changed: &[(&str, &str)]) -> (i32, String) {
        self.refused(&strs(&self.grant_arguments(changed)))
    }

    /// Everything in the tables.
    pub(crate) fn rows(&self) -> String {
        self.database
            .query(
                "SELECT t::text FROM principal_signing_keys t UNION ALL
                 SELECT t::text FROM principal_key_permissions t UNION ALL
                 SELECT t::text FROM poca_keys t UNION ALL
                 SELECT t::text FROM permission_registry t ORDER BY 1",
            )
            .unwrap()
    }

    pub(crate) fn count(&self, table: &str) -> u32 {
        let sql = format!("SELECT count(*) FROM {table}");
        self.database.query(&sql).unwrap().parse().unwrap()
    }

    /// What the agent asks at the gateway.
    pub(crate) fn request(&self, destination: &str) -> Request {
        Request {
            identity: Identity::parse(AGENT).unwrap(),
            spki: Spki::from_der(self.agent.spki_der()).unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    /// What the service reads when it is asked that.
    pub(crate) async fn facts(&self, request: &Request) -> Facts {
        self.facts_under(request, None).await
    }

    /// As [`Office::facts`], of a service with these roots of trust.
    pub(crate) async fn facts_under(
        &self,
        request: &Request,
        trust_roots: Option<TrustRoots>,
    ) -> Facts {
        let reader = self.reader(trust_roots).await;
        let deadline = Instant::now() + PATIENCE;
        reader.facts(request, deadline).await.unwrap()
    }

    /// The keys under which the service lets the agent's calls to a destination be proven now.
    pub(crate) async fn proving(&self, destination: &str) -> Vec<PublicKey> {
        let reader = self.reader(None).await;
        let (identity, to) = (
            Identity::parse(AGENT).unwrap(),
            destination.parse().unwrap(),
        );
        let deadline = Instant::now() + PATIENCE;
        let read = reader.poca_keys(&identity, &to, deadline).await.unwrap();
        let counts = |row: &PocaCandidate| row.judge(&identity, &to, now()).is_ok();
        let key = |row: PocaCandidate| PublicKey::from_bytes(&row.key().ed25519_public_key);
        let counting = read.into_iter().filter(counts);
        counting.map(|row| key(row).unwrap()).collect()
    }

    async fn reader(&self, trust_roots: Option<TrustRoots>) -> Reader {
        let options = Options {
            url: self.database.url(),
            max_connections: 1,
            connect_timeout: PATIENCE,
            acquire_timeout: PATIENCE,
            query_timeout: PATIENCE,
            trust_roots,
        };
        Reader::open(&options).await.unwrap()
    }
}

/// Exit status and stderr of a command that failed as a command should: nothing on stdout, and
/// on stderr one `error:` line and one `hint:` line, in this order.
pub(crate) fn refusal(output: &Output) -> (i32, String) {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.stdout, b"", "{said}");
    let kinds: Vec<_> = said
        .lines()
        .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{said}")).0)
        .filter(|kind| !matches!(*kind, "warning" | "note"))
        .collect();
    assert_eq!(kinds, ["error", "hint"], "{said}");
    (output.status.code().unwrap(), said)
}

pub(crate) fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::from_unix_micros(i64::try_from(now.as_micros()).unwrap()).unwrap()
}

pub(crate) fn strs(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Runs openssl, which must succeed.
pub(crate) fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
