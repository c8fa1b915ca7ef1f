//! Settings of tool calls, and the names that they had in the existing gateway.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use figment::providers::Env;
use serde::{Deserialize, Deserializer, de};

use super::{ConfigError, MINUTE, Policy, Secret};
use crate::relay::Options;
use crate::relay::rules::Sources;
use crate::relay::tools::{ToolName, ToolUrl};

/// Variables of the existing relay gateway, and the keys that they set here.
pub(super) const EXISTING_NAMES: [(&str, &str); 7] = [
    ("OPA_URL", "policy.opa_url"),
    ("AUDIT_PATH", "audit.path"),
    ("BACKEND_URL", "relay.tool_urls.echo"),
    ("TODOS_URL", "relay.tool_urls.todos"),
    ("POCA_REQUIRED", "relay.poca_required"),
    ("POCA_AGENTS_PATH", "relay.agents_file"),
    ("EGRESS_CONFIG_PATH", "relay.egress_file"),
];

/// What figment calls their source.
pub(super) const EXISTING_ENVIRONMENT: &str = "environment variable(s)";

/// Tool calls. Without `tools_file` or `tool_urls` there are none.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Relay {
    /// `tools.yaml`: what may be called.
    pub tools_file: Option<PathBuf>,
    /// Further tools by name, or other URLs for those of the file.
    #[serde(deserialize_with = "tool_urls")]
    pub tool_urls: BTreeMap<ToolName, ToolUrl>,
    /// `egress.yaml`: where calls may go.
    pub egress_file: Option<PathBuf>,
    /// `agents.yaml`: the keys with which agents prove the context of their calls.
    pub agents_file: Option<PathBuf>,
    /// Whether each call must be proven (`PoCA`). A permission is needed in any case.
    pub poca_required: bool,
    /// How far away a proof's end may be, in milliseconds.
    pub max_manifest_ttl_ms: u64,
    /// The Postgres URL at which used nonces are remembered, for all replicas and across restarts;
    /// in memory if neither this nor `nonce_database_url_env` is set. Its role needs to be a member
    /// of `agent_gateway_relay` alone.
    pub nonce_database_url: Option<Secret>,
    /// Name of the environment variable that holds it.
    pub nonce_database_url_env: Option<String>,
    /// Most nonces remembered; with as many, further calls are refused (503).
    pub max_nonces: usize,
    /// How many replicas decide about tool calls; several need a database for nonces.
    pub replicas: u64,
    /// Folder of JSON Schemas that payloads must meet.
    pub contracts_dir: Option<PathBuf>,
    /// Folder of Rego (package `mcp.authz`) that says who may call what.
    pub policy_dir: Option<PathBuf>,
    /// Longest that Rego may take, in milliseconds.
    pub policy_timeout_ms: u64,
    /// Longest a decision about a call may take, in milliseconds; an OPA server has 3 s of it.
    /// Below Envoy's own `timeout` on the relay's routes (5 s).
    pub check_timeout_ms: u64,
    /// About how many bytes of bodies are in memory at a time; further calls fail at once (503).
    pub max_bodies_bytes: usize,
}

/// As `from_text`, of each name and URL.
fn tool_urls<'de, D>(deserializer: D) -> Result<BTreeMap<ToolName, ToolUrl>, D::Error>
where
    D: Deserializer<'de>,
{
    let texts = BTreeMap::<String, String>::deserialize(deserializer)?;
    let parsed = texts.into_iter().map(|(name, url)| {
        let name = name.parse().map_err(de::Error::custom)?;
        Ok((name, url.parse().map_err(de::Error::custom)?))
    });
    parsed.collect()
}

/// What the variables in [`EXISTING_NAMES`] say.
pub(super) fn existing_environment() -> Env {
    let names: Vec<&str> = EXISTING_NAMES.iter().map(|(name, _)| *name).collect();
    Env::raw().only(&names).map(|name| {
        let mut names = EXISTING_NAMES.iter();
        let known = names.find(|(existing, _)| name == *existing);
        known.map_or(name.as_str(), |(_, ours)| ours).into()
    })
}

impl Relay {
    /// Every number, and the largest that it may be.
    pub(super) fn bounds(&self) -> [(&'static str, u64, u64); 6] {
        [
            ("relay.policy_timeout_ms", self.policy_timeout_ms, MINUTE),
            (
                "relay.max_manifest_ttl_ms",
                self.max_manifest_ttl_ms,
                24 * 60 * MINUTE,
            ),
            ("relay.max_nonces", self.max_nonces as u64, 100_000_000),
            ("relay.replicas", self.replicas, 1000),
            ("relay.check_timeout_ms", self.check_timeout_ms, MINUTE),
            (
                "relay.max_bodies_bytes",
                self.max_bodies_bytes as u64,
                1 << 32,
            ),
        ]
    }

    /// Refuses tool calls that nothing would judge.
    pub(super) fn check(&self, policy: &Policy) -> Result<(), ConfigError> {
        if !self.is_on() {
            return Ok(());
        }
        if self.egress_file.is_none() {
            return Err(ConfigError::RelayIncomplete("relay.egress_file is not"));
        }
        if self.policy_dir.is_none() && policy.opa_url.is_none() {
            let neither = "neither relay.policy_dir nor policy.opa_url is";
            return Err(ConfigError::RelayIncomplete(neither));
        }
        let in_memory = self.nonce_database_url.is_none() && self.nonce_database_url_env.is_none();
        if in_memory && self.replicas > 1 {
            let forgetful = "relay.replicas is over 1 without a relay.nonce_database_url_env, so \
                             none would know which nonces the others have seen";
            return Err(ConfigError::RelayIncomplete(forgetful));
        }
        Ok(())
    }

    /// Whether there are tools to call.
    fn is_on(&self) -> bool {
        self.tools_file.is_some() || !self.tool_urls.is_empty()
    }

    /// How calls are decided about.
    pub fn options(&self) -> Options {
        Options {
            timeout: Duration::from_millis(self.check_timeout_ms),
            poca_required: self.poca_required,
            max_manifest_ttl: Duration::from_millis(self.max_manifest_ttl_ms),
        }
    }

    /// Where the rules are; `None` where there are to be no calls.
    pub(super) fn sources(
        &self,
        policy: &Policy,
        own_listeners: Vec<SocketAddr>,
    ) -> Option<Sources> {
        if !self.is_on() {
            return None;
        }
        let tool_urls = self.tool_urls.iter();
        Some(Sources {
            tools_file: self.tools_file.clone(),
            tool_urls: tool_urls
                .map(|(name, url)| (name.clone(), url.clone()))
                .collect(),
            egress_file: self.egress_file.clone()?,
            agents_file: self.agents_file.clone(),
            contracts_dir: self.contracts_dir.clone(),
            // Not even read where an OPA server judges.
            policy_dir: match policy.opa_url {
                Some(_) => None,
                None => self.policy_dir.clone(),
            },
            policy_time_limit: Duration::from_millis(self.policy_timeout_ms),
            own_listeners,
        })
    }
}
