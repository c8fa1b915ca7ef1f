//! A gateway with two tools, an agent that may call them, and the operator's files.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use permission::{Identity, Timestamp};
use poca::{Manifest, SecretKey};
use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::caller::{Sent, Version, say};
use testbed::gateway::AGENT;
use testbed::process::PATIENCE;
use testbed::tool::Conduct;
use testbed::tunnel::Answer;
use testbed::{
    Authz, AuthzOptions, Caller, ClientCertificate, Envoy, EnvoyOptions, Gateway, ToolServer,
};

/// The headers of one call's proof.
pub(crate) struct Headers(Vec<(&'static str, String)>);

impl Headers {
    /// These values, whatever they are.
    pub(crate) fn of(manifest: &str, signature: &str) -> Self {
        Self(vec![
            ("x-poca-manifest", manifest.to_owned()),
            ("x-poca-signature", signature.to_owned()),
        ])
    }

    /// With these too.
    pub(crate) fn with<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let ours = self.0.iter().map(|(name, value)| (*name, value.as_str()));
        ours.chain(more.iter().copied()).collect()
    }

    /// With the content type of JSON.
    pub(crate) fn with_json(&self) -> Vec<(&str, &str)> {
        self.with(&[("content-type", "application/json")])
    }
}

/// A manifest of the agent's that is good for five minutes and any one call of `tool`.
pub(crate) fn manifest(tool: &str, body: &[u8]) -> Manifest {
    static SERIAL: AtomicU64 = AtomicU64::new(1);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let ends = i64::try_from(now.as_micros()).unwrap() + 300_000_000;
    Manifest {
        caller: Identity::parse(AGENT).unwrap(),
        tool: tool.to_owned(),
        intent: "a test".to_owned(),
        scopes: Vec::new(),
        payload_sha256: sha256(body),
        nonce: format!("{:032x}", SERIAL.fetch_add(1, Ordering::Relaxed)),
        expires: Timestamp::from_unix_micros(ends).unwrap(),
    }
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().unwrap()
}

/// The agent's signing key.
pub(crate) fn key() -> SecretKey {
    SecretKey::from_seed(&[7; 32])
}

/// The headers of a manifest that `key` signs.
pub(crate) fn signed(key: &SecretKey, manifest: &Manifest) -> Headers {
    let signed = poca::sign(key, manifest).unwrap();
    Headers::of(&signed.manifest, &signed.signature)
}

/// Everything that a call needs. `echo` and `todos` are names in the gateway's hosts file.
pub(crate) struct Scene {
    pub(crate) gateway: Gateway,
    pub(crate) agent: ClientCertificate,
    pub(crate) echo: ToolServer,
    pub(crate) todos: ToolServer,
    pub(crate) files: Files,
    options: AuthzOptions,
}

/// What the operator keeps.
pub(crate) struct Files(TempDir);

impl Files {
    /// The repository's own contracts and policy, and these tools.
    pub(crate) fn new(tools: &str) -> Self {
        let files = Self(testbed::scratch::folder("relay").unwrap());
        for folder in ["contracts", "policy"] {
            fs::create_dir(files.path(folder)).unwrap();
        }
        let repository = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
        for (theirs, ours) in [
            ("contracts/echo.v1.schema.json", "contracts/echo.json"),
            ("contracts/todos.v1.schema.json", "contracts/todos.json"),
            ("policy/mcp/authz.rego", "policy/authz.rego"),
        ] {
            fs::copy(repository.join(theirs), files.path(ours)).unwrap();
        }
        files.write("tools.yaml", tools);
        let key = key().public_key();
        let agents = format!("agents:\n  {AGENT}: {{ed25519_pubkey_b64: '{key}'}}\n");
        files.write("agents.yaml", &agents);
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        // As an editor or a careful operator does: the whole file at once.
        let new = self.path("new.tmp");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path(name)).unwrap();
    }

    /// Lists these URLs as the only ones that may be called.
    pub(crate) fn allow(&self, urls: &[&str]) {
        let mut list = "default: deny\n".to_owned();
        if !urls.is_empty() {
            list += "allow:\n";
        }
        for (number, url) in urls.iter().enumerate() {
            writeln!(list, "- {{name: tool-{number}, url: '{url}'}}").unwrap();
        }
        self.write("egress.yaml", &list);
    }

    /// The environment that has the service use them.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let file = |key: &str, name: &str| {
            let path = self.path(name).to_str().unwrap().to_owned();
            (format!("AGENT_GATEWAY__RELAY__{key}"), path)
        };
        vec![
            file("TOOLS_FILE", "tools.yaml"),
            file("EGRESS_FILE", "egress.yaml"),
            file("AGENTS_FILE", "agents.yaml"),
            file("CONTRACTS_DIR", "contracts"),
            file("POLICY_DIR", "policy"),
        ]
    }
}

/// A rule for `tools.yaml`, without `more`.
pub(crate) fn tool(name: &str, url: &str, more: &str) -> String {
    format!("- {{name: {name}, url: '{url}', private: [127.0.0.1/32]{more}}}\n")
}

/// What differs from the usual.
#[derive(Default)]
pub(crate) struct Unlike {
    /// Further lines of `tools.yaml`; their URLs are on the egress list too.
    pub(crate) tools: Vec<(String, String)>,
    /// Further environment of the service.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Not used: an OPA server is.
    pub(crate) without_rego: bool,
    /// Lines of the hosts file.
    pub(crate) hosts: String,
    /// Used nonces are remembered in the registry's database, not in the service's memory.
    pub(crate) nonces_in_postgres: bool,
    /// What can be set by the existing gateway's names is set by them alone, the tools' URLs too.
    pub(crate) existing_names: bool,
}

/// The existing gateway's names for what the scene sets by ours.
const EXISTING_NAMES: [(&str, &str); 2] = [
    ("AGENT_GATEWAY__RELAY__AGENTS_FILE", "POCA_AGENTS_PATH"),
    ("AGENT_GATEWAY__RELAY__EGRESS_FILE", "EGRESS_CONFIG_PATH"),
];

impl Scene {
    pub(crate) async fn start() -> Self {
        Self::start_unlike(Unlike::default()).await
    }

    pub(crate) async fn start_unlike(unlike: Unlike) -> Self {
        let echo = ToolServer::start([127, 0, 0, 1], Conduct::Echo)
            .await
            .unwrap();
        let todos = ToolServer::start([127, 0, 0, 1], Conduct::Echo)
            .await
            .unwrap();
        let urls = [
            format!("http://echo:{}/echo", echo.addr().port()),
            format!("http://todos:{}/call", todos.addr().port()),
        ];
        let in_file = if unlike.existing_names {
            ["http://elsewhere/", "http://elsewhere/"]
        } else {
            [urls[0].as_str(), &urls[1]]
        };
        let mut tools = "tools:\n".to_owned();
        tools += &tool("echo", in_file[0], "");
        tools += &tool(
            "todos",
            in_file[1],
            ", contract: todos.v1, time_limit_ms: 2000",
        );
        for (line, _) in &unlike.tools {
            tools += line;
        }
        let files = Files::new(&tools);
        let further = unlike.tools.iter().map(|(_, url)| url.as_str());
        let listed: Vec<&str> = urls.iter().map(String::as_str).chain(further).collect();
        files.allow(&listed);
        let mut environment = files.environment();
        if unlike.without_rego {
            environment.retain(|(key, _)| !key.ends_with("POLICY_DIR"));
        }
        if unlike.existing_names {
            for (name, _) in &mut environment {
                let existing = EXISTING_NAMES.iter().find(|(ours, _)| ours == name);
                if let Some((_, existing)) = existing {
                    (*existing).clone_into(name);
                }
            }
            let names = ["BACKEND_URL", "TODOS_URL"].map(str::to_owned);
            environment.extend(names.into_iter().zip(urls.clone()));
        }
        let more = unlike.environment.into_iter();
        environment.extend(more.map(|(key, value)| (key.to_owned(), value)));
        let database = testbed::database().await.unwrap();
        if unlike.nonces_in_postgres {
            let name = "AGENT_GATEWAY__RELAY__NONCE_DATABASE_URL".to_owned();
            environment.push((name, database.url()));
        }
        let options = AuthzOptions {
            hosts: format!("127.0.0.1 echo todos\n{}", unlike.hosts),
            environment,
            ..AuthzOptions::default()
        };
        let gateway = Gateway::start_on(database, options.clone()).await.unwrap();
        let agent = ClientCertificate::for_identity(AGENT).unwrap();
        let scene = Self {
            gateway,
            agent,
            echo,
            todos,
            files,
            options,
        };
        scene.grant(&scene.destination("echo"));
        scene.grant(&scene.destination("todos"));
        scene.settle().await;
        scene
    }

    /// A second replica of the service, and an Envoy that asks it alone.
    pub(crate) async fn replica(&self) -> (Authz, Envoy) {
        let Gateway {
            pki, database, dns, ..
        } = &self.gateway;
        let authz = Authz::start(&AuthzOptions {
            database_url: database.url(),
            nameservers: vec![dns.addr()],
            ..self.options.clone()
        });
        let authz = authz.unwrap();
        authz.settle().await;
        let envoy = Envoy::start(EnvoyOptions::new(authz.grpc_addr(), pki)).await;
        (authz, envoy.unwrap())
    }

    /// `echo:port` or `todos:port`.
    pub(crate) fn destination(&self, name: &str) -> String {
        let server = if name == "echo" {
            &self.echo
        } else {
            &self.todos
        };
        format!("{name}:{}", server.addr().port())
    }

    /// Lets the agent go there.
    pub(crate) fn grant(&self, destination: &str) {
        self.gateway.grant(&self.agent, destination).unwrap();
    }

    /// Waits until the service knows all that was committed.
    pub(crate) async fn settle(&self) {
        self.gateway.authz.settle().await;
    }

    /// A connection of the agent's.
    pub(crate) async fn caller(&self, version: Version) -> Caller {
        self.caller_with(&self.agent, version).await
    }

    /// A connection of somebody's.
    pub(crate) async fn caller_with(
        &self,
        certificate: &ClientCertificate,
        version: Version,
    ) -> Caller {
        let Gateway { envoy, pki, .. } = &self.gateway;
        Caller::connect(envoy.addr(), pki, certificate, version)
            .await
            .unwrap()
    }

    /// How often changed rules were taken.
    pub(crate) async fn reads(&self) -> u32 {
        self.rules_reads("taken").await
    }

    /// Waits until changed rules were taken so often.
    pub(crate) async fn reloaded(&self, times: u32) {
        self.wait_for_reads("taken", times).await;
    }

    /// Waits until changed rules were refused so often.
    pub(crate) async fn refused(&self, times: u32) {
        self.wait_for_reads("refused", times).await;
    }

    async fn wait_for_reads(&self, outcome: &str, times: u32) {
        let deadline = Instant::now() + PATIENCE;
        while self.rules_reads(outcome).await < times {
            assert!(
                Instant::now() < deadline,
                "rules were not {outcome} {times} times"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn rules_reads(&self, outcome: &str) -> u32 {
        let name = format!("agent_gateway_relay_rules_reads_total{{outcome=\"{outcome}\"}}");
        let reads = self.gateway.authz.metric(&name).await;
        reads.map_or(0, |reads| format!("{reads:.0}").parse().unwrap())
    }

    /// Makes this the URL of the only tool, `echo`, and the only one on the egress list.
    pub(crate) async fn leads_echo_to(&self, url: &str, listed: &str) {
        // One file after another, or the service may look between the two.
        let reads = self.reads().await;
        self.files.allow(&[listed]);
        self.reloaded(reads + 1).await;
        let tools = format!("tools:\n{}", tool("echo", url, ""));
        self.files.write("tools.yaml", &tools);
        self.reloaded(reads + 2).await;
    }

    /// A policy that lets everybody call everything.
    pub(crate) async fn policy_for_all(&self) {
        let reads = self.reads().await;
        self.files
            .write("policy/authz.rego", "package mcp.authz\nallow := true\n");
        self.reloaded(reads + 1).await;
    }

    /// Says these words on an HTTP/1.1 connection; returns what comes back.
    pub(crate) async fn say(&self, words: &str) -> String {
        let Gateway { envoy, pki, .. } = &self.gateway;
        say(envoy.addr(), pki, &self.agent, words.as_bytes())
            .await
            .unwrap()
    }

    /// The headers that prove one call.
    #[expect(clippy::unused_self, reason = "reads as what it is")]
    pub(crate) fn proof(&self, tool: &str, body: &[u8]) -> Headers {
        signed(&key(), &manifest(tool, body))
    }

    /// The agent posts JSON, over HTTP/2, with a proof.
    pub(crate) async fn post(&self, body: &str) -> Answer {
        self.post_with(&[], body.as_bytes()).await
    }

    /// As [`Scene::post`], of any bytes and with further headers; the content type is JSON's if
    /// they name none.
    pub(crate) async fn post_with(&self, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let tool = serde_json::from_slice::<Value>(body).ok();
        let tool = tool.and_then(|body| Some(body.get("tool")?.as_str()?.to_owned()));
        let proof = self.proof(tool.as_deref().unwrap_or("echo"), body);
        let mut headers = proof.with(headers);
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            headers.push(("content-type", "application/json"));
        }
        let mut caller = self.caller(Version::Http2).await;
        caller
            .call(&headers, Sent::whole(body.to_vec()))
            .await
            .unwrap()
    }
}

/// `{"tool": …, "payload": …}`.
pub(crate) fn envelope(tool: &str, payload: &Value) -> String {
    json!({"tool": tool, "payload": payload}).to_string()
}

/// Asserts a deny: the status, a body and headers that say why, and which decision it was.
#[track_caller]
pub(crate) fn assert_denied(answer: &Answer, status: u16, reason: &str) {
    let body = answer.json().unwrap_or_default();
    assert_eq!(
        (answer.status.as_u16(), body["reason"].as_str()),
        (status, Some(reason)),
        "{answer:?}"
    );
    let id = body["decision_id"].as_str().unwrap();
    assert_eq!(answer.header("x-agent-gateway-decision-id"), Some(id));
    assert!(!body["hint"].as_str().unwrap().is_empty());
    let proxy_status = answer.header("proxy-status").unwrap();
    assert!(
        proxy_status.ends_with(&format!("; details=\"{reason}\"")),
        "{proxy_status}"
    );
}

/// Asserts that Envoy itself refused, or gave up on the tool.
#[track_caller]
pub(crate) fn assert_failed(answer: &Answer, status: u16, reason: &str) {
    let body = answer.json().unwrap_or_default();
    assert_eq!(
        (answer.status.as_u16(), body["reason"].as_str()),
        (status, Some(reason)),
        "{answer:?}"
    );
    let proxy_status = answer.header("proxy-status").unwrap();
    assert!(
        proxy_status.ends_with(&format!("; details=\"{reason}\"")),
        "{proxy_status}"
    );
}

/// How long to wait for what must not come.
pub(crate) const A_WHILE: Duration = Duration::from_millis(300);
