//! What an operator keeps: one tool, its contract, the policy as shipped, and the agents' keys.

use std::fmt::Write as _;
use std::fs;

use anyhow::Result;
use poca::SecretKey;
use tempfile::TempDir;

use crate::population::setting;

const POLICY: &str = include_str!("../../../policy/mcp/authz.rego");

/// Of a list, so that readers and contracts have something to do.
const CONTRACT: &str = r#"{
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "items.v1",
    "type": "object",
    "required": ["items"],
    "additionalProperties": false,
    "properties": {"items": {"type": "array", "items": {
        "type": "object",
        "required": ["id", "title"],
        "additionalProperties": false,
        "properties": {
            "id": {"type": "integer", "minimum": 0},
            "title": {"type": "string", "minLength": 1, "maxLength": 200}
        }
    }}}
}"#;

/// The files.
#[derive(Debug)]
pub(super) struct Rules(TempDir);

impl Rules {
    /// The tool is at `destination`; each of the agents has a key.
    pub(super) fn write<'a>(
        destination: &str,
        agents: impl Iterator<Item = &'a str>,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for name in ["contracts", "policy"] {
            fs::create_dir(folder.path().join(name))?;
        }
        let mut keys = "agents:\n".to_owned();
        for (number, agent) in agents.enumerate() {
            let key = key(number).public_key();
            writeln!(keys, "  {agent}: {{ed25519_pubkey_b64: '{key}'}}")?;
        }
        let url = format!("http://{destination}/call");
        for (name, text) in [
            (
                "tools.yaml",
                format!(
                    "tools:\n- {{name: echo, url: '{url}', contract: items.v1, \
                     private: [127.0.0.1/32]}}\n"
                ),
            ),
            (
                "egress.yaml",
                format!("default: deny\nallow:\n- {{name: echo, url: '{url}'}}\n"),
            ),
            ("agents.yaml", keys),
            ("contracts/items.json", CONTRACT.to_owned()),
            ("policy/authz.rego", POLICY.to_owned()),
        ] {
            fs::write(folder.path().join(name), text)?;
        }
        Ok(Self(folder))
    }

    /// What has a service use them.
    pub(super) fn environment(&self, with_policy: bool) -> Vec<(String, String)> {
        let mut names = vec![
            ("RELAY__TOOLS_FILE", "tools.yaml"),
            ("RELAY__EGRESS_FILE", "egress.yaml"),
            ("RELAY__AGENTS_FILE", "agents.yaml"),
            ("RELAY__CONTRACTS_DIR", "contracts"),
        ];
        names.extend(with_policy.then_some(("RELAY__POLICY_DIR", "policy")));
        let variable = |(key, name)| setting(key, &self.0.path().join(name).display().to_string());
        names.into_iter().map(variable).collect()
    }
}

/// An agent's key, by its number.
pub(super) fn key(number: usize) -> SecretKey {
    let mut seed = [7; 32];
    for (byte, of_number) in seed.iter_mut().zip(number.to_be_bytes()) {
        *byte = of_number;
    }
    SecretKey::from_seed(&seed)
}

/// An envelope of so many bytes, which meets the contract.
pub(super) fn body(bytes: usize) -> Vec<u8> {
    let item = |id: usize, title: &str| format!(r#"{{"id":{id},"title":"{title}"}}"#);
    let mut body = r#"{"tool":"echo","payload":{"items":["#.to_owned();
    let mut id = 1000;
    while body.len() + 200 < bytes {
        body += &item(id, &"a title of some length ".repeat(2));
        body.push(',');
        id += 1;
    }
    let rest = bytes.saturating_sub(body.len() + item(id, "").len() + "]}}".len());
    body += &item(id, &"x".repeat(rest.max(1)));
    body += "]}}";
    body.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_json_of_the_size_that_was_asked_for() {
        for bytes in [1024, 256 * 1024] {
            let body = body(bytes);
            assert_eq!(body.len(), bytes);
            let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let items = value["payload"]["items"].as_array().unwrap();
            assert!(
                items
                    .iter()
                    .all(|item| item["title"].as_str().unwrap().len() <= 200)
            );
        }
    }
}
