//! What the operator's files say about tool calls: read all at once, or not at all.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::agents::{Agents, AgentsError, AgentsFile};
use super::contracts::{Contracts, ContractsError};
use super::egress::Egress;
use super::files::{self, FileError, Fingerprint};
use super::policy::rego::{Rego, RegoError};
use super::tools::{Entry, ToolName, ToolUrl, Tools, ToolsError, ToolsFile};

/// Most files that are watched.
const MAX_FILES: usize = 10_000;

/// Where the rules are.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `tools.yaml`, where there is one.
    pub tools_file: Option<PathBuf>,
    /// Tools that the environment places: their URLs win over those of the file.
    pub tool_urls: Vec<(ToolName, ToolUrl)>,
    /// `egress.yaml`.
    pub egress_file: PathBuf,
    /// `agents.yaml`, where there is one.
    pub agents_file: Option<PathBuf>,
    /// The folder of contracts; none without it.
    pub contracts_dir: Option<PathBuf>,
    /// The folder of Rego; none where an OPA server is asked.
    pub policy_dir: Option<PathBuf>,
    /// Longest that Rego may take.
    pub policy_time_limit: Duration,
    /// The gateway's own listeners, which no tool may be.
    pub own_listeners: Vec<SocketAddr>,
}

/// One state of them.
#[derive(Debug)]
pub struct Rules {
    /// What may be called.
    pub tools: Tools,
    /// Where calls may go.
    pub egress: Egress,
    /// Whose proofs count.
    pub agents: Agents,
    /// What payloads must meet.
    pub contracts: Contracts,
    /// Who may call what; `None` where an OPA server is asked.
    pub rego: Option<Rego>,
}

/// Why a state is refused.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// A file can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not the YAML that is expected there.
    #[error("{}: {reason}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// The list of tools.
    #[error(transparent)]
    Tools(#[from] ToolsError),
    /// The list of agents' keys.
    #[error(transparent)]
    Agents(#[from] AgentsError),
    /// A contract.
    #[error(transparent)]
    Contracts(#[from] ContractsError),
    /// A tool's own contract is not there.
    #[error("tool {tool}: there is no contract with the $id {contract:?}")]
    NoSuchContract {
        /// The tool.
        tool: ToolName,
        /// What its entry says.
        contract: String,
    },
    /// The policy.
    #[error(transparent)]
    Policy(#[from] RegoError),
}

impl Sources {
    /// Reads all of it.
    pub fn load(&self) -> Result<Rules, RulesError> {
        let tools = Tools::new(self.entries()?, &self.own_listeners)?;
        let contracts = match &self.contracts_dir {
            Some(folder) => Contracts::load(folder)?,
            None => Contracts::default(),
        };
        for tool in tools.iter() {
            if let Some(contract) = &tool.contract
                && !contracts.contains(contract)
            {
                return Err(RulesError::NoSuchContract {
                    tool: tool.name.clone(),
                    contract: contract.clone(),
                });
            }
        }
        let rego = match &self.policy_dir {
            Some(folder) => Some(Rego::load(folder, self.policy_time_limit)?),
            None => None,
        };
        let agents: AgentsFile = match &self.agents_file {
            Some(path) => yaml(path)?,
            None => AgentsFile::default(),
        };
        Ok(Rules {
            tools,
            agents: agents.try_into()?,
            egress: yaml(&self.egress_file)?,
            contracts,
            rego,
        })
    }

    /// The file's tools, and the environment's.
    fn entries(&self) -> Result<Vec<Entry>, RulesError> {
        let file: ToolsFile = match &self.tools_file {
            Some(path) => yaml(path)?,
            None => ToolsFile::default(),
        };
        let mut entries = file.tools;
        let placed: BTreeMap<_, _> = self.tool_urls.iter().cloned().collect();
        for (name, url) in placed {
            match entries.iter_mut().find(|entry| entry.name == name) {
                Some(entry) => entry.url = url,
                None => entries.push(Entry::new(name, url)),
            }
        }
        Ok(entries)
    }

    /// What the files look like from outside.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let files = [
            &self.tools_file,
            &self.agents_file,
            &self.contracts_dir,
            &self.policy_dir,
        ];
        let files = files.into_iter().flatten().map(PathBuf::as_path);
        Fingerprint::of(files.chain([&*self.egress_file]), MAX_FILES)
    }
}

fn yaml<T: DeserializeOwned>(path: &Path) -> Result<T, RulesError> {
    let text = files::read(path)?;
    serde_saphyr::from_str(&text).map_err(|error| RulesError::Yaml {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}
