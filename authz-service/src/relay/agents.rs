//! Agents' keys, as `agents.yaml` lists them.

use std::collections::HashMap;

use permission::Identity;
use poca::PublicKey;
use serde::Deserialize;

/// Most agents.
const MAX_AGENTS: usize = 100_000;

/// Keys by caller.
#[derive(Debug, Default)]
pub struct Agents(HashMap<Identity, Vec<PublicKey>>);

/// Why a list of keys is refused. It holds nothing of the keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentsError {
    /// Not what a certificate could hold.
    #[error("agent {0:?}: not an identity (1 to 256 bytes without control characters)")]
    NotAnIdentity(String),
    /// Not a key.
    #[error("agent {agent:?}: ed25519_pubkey_b64: {source}")]
    NotAKey {
        /// Whose.
        agent: String,
        /// Why not.
        source: poca::PublicKeyError,
    },
    /// More than anybody has.
    #[error("more than {MAX_AGENTS} agents")]
    TooMany,
}

/// `agents.yaml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentsFile {
    agents: HashMap<String, Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    ed25519_pubkey_b64: String,
}

impl Agents {
    /// The keys with which this caller may sign.
    pub fn keys(&self, caller: &Identity) -> &[PublicKey] {
        self.0.get(caller).map(Vec::as_slice).unwrap_or_default()
    }
}

impl TryFrom<AgentsFile> for Agents {
    type Error = AgentsError;

    fn try_from(file: AgentsFile) -> Result<Self, AgentsError> {
        if file.agents.len() > MAX_AGENTS {
            return Err(AgentsError::TooMany);
        }
        let keys = file.agents.into_iter().map(|(agent, entry)| {
            let key = entry.ed25519_pubkey_b64.parse();
            let key = key.map_err(|source| AgentsError::NotAKey {
                agent: agent.clone(),
                source,
            })?;
            let identity = Identity::parse(&agent);
            let identity = identity.map_err(|_| AgentsError::NotAnIdentity(agent))?;
            Ok((identity, vec![key]))
        });
        keys.collect::<Result<_, _>>().map(Self)
    }
}
