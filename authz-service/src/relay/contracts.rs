//! Contracts: JSON Schemas (draft 2020-12) that payloads must meet, by their `$id`.
//!
//! Each is compiled once. A schema refers to nothing outside itself: nothing is fetched, neither
//! when it is read nor later. Patterns are matched in linear time, whatever the payload.
//! Numbers are compared as doubles; what the tool gets is the payload's own bytes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

use super::files::{self, FileError};

/// Most contracts.
const MAX_CONTRACTS: usize = 1000;
/// Largest compiled pattern, in bytes, about.
const MAX_PATTERN: usize = 1024 * 1024;
/// Longest pointer that is told, in bytes: property names in it are the caller's.
const MAX_POINTER: usize = 256;

/// Compiled contracts by `$id`.
#[derive(Debug, Default)]
pub struct Contracts(HashMap<String, Validator>);

/// Why a payload doesn't meet its contract. It holds nothing of the payload's values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// JSON pointer (RFC 6901) into the payload.
    pub pointer: String,
    /// The schema's keyword that was not met, such as `required`.
    pub keyword: String,
}

/// Why a folder of contracts is refused.
#[derive(Debug, thiserror::Error)]
pub enum ContractsError {
    /// The folder or a file in it can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not JSON.
    #[error("{}: not JSON: {source}", path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Nothing could ask for it.
    #[error("{}: $id is missing, empty or not a text", path.display())]
    NoId {
        /// The file.
        path: PathBuf,
    },
    /// Two files of one `$id`.
    #[error("{}: another file has the $id {id:?} too", path.display())]
    Twice {
        /// The second file.
        path: PathBuf,
        /// Their `$id`.
        id: String,
    },
    /// Another draft than 2020-12.
    #[error("{}: $schema names another draft than 2020-12", path.display())]
    OtherDraft {
        /// The file.
        path: PathBuf,
    },
    /// Not a schema, or one that refers to something outside itself.
    #[error("{}: not a schema of its own: {reason}", path.display())]
    NotASchema {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Contracts {
    /// Reads and compiles every `*.json` of a folder.
    pub fn load(folder: &Path) -> Result<Self, ContractsError> {
        let mut contracts = HashMap::new();
        for path in files::with_extension(folder, "json", MAX_CONTRACTS)? {
            let text = files::read(&path)?;
            let schema: Value =
                serde_json::from_str(&text).map_err(|source| ContractsError::NotJson {
                    path: path.clone(),
                    source,
                })?;
            let (id, validator) = compile(&path, &schema)?;
            if contracts.insert(id.clone(), validator).is_some() {
                return Err(ContractsError::Twice { path, id });
            }
        }
        Ok(Self(contracts))
    }

    /// Whether there is a contract of that `$id`.
    pub fn contains(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    /// Holds a payload against the contract `id`: `None` if there is none, or what was not met.
    pub fn check(&self, id: &str, payload: &Value) -> Option<Result<(), Violation>> {
        let first = self.0.get(id)?.iter_errors(payload).next();
        Some(first.map_or(Ok(()), |error| {
            let mut pointer = error.instance_path().to_string();
            let end = pointer.floor_char_boundary(MAX_POINTER);
            pointer.truncate(end);
            Err(Violation {
                pointer,
                keyword: error.kind().keyword().to_owned(),
            })
        }))
    }
}

fn compile(path: &Path, schema: &Value) -> Result<(String, Validator), ContractsError> {
    let path = || path.to_owned();
    let id = match schema.get("$id") {
        Some(Value::String(id)) if !id.is_empty() => id.clone(),
        _ => return Err(ContractsError::NoId { path: path() }),
    };
    let draft = schema.get("$schema");
    if draft.is_some_and(|draft| draft != "https://json-schema.org/draft/2020-12/schema") {
        return Err(ContractsError::OtherDraft { path: path() });
    }
    let validator = jsonschema::options()
        .with_draft(Draft::Draft202012)
        .offline()
        .with_pattern_options(PatternOptions::regex().size_limit(MAX_PATTERN))
        .build(schema)
        .map_err(|error| ContractsError::NotASchema {
            path: path(),
            reason: error.to_string(),
        })?;
    Ok((id, validator))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn load(files: &[(&str, &str)]) -> Result<Contracts, ContractsError> {
        Contracts::load(folder(files).path())
    }

    #[test]
    fn a_violation_says_where_and_which_rule_and_no_value() {
        let contracts = load(&[(
            "a.json",
            r#"{"$id":"a.v1","type":"object","required":["op"],"properties":{
                "op":{"const":"create"},
                "list":{"type":"array","items":{"type":"integer","maximum":9}},
                "name":{"type":"string","pattern":"^[a-z]+$"}}}"#,
        )])
        .unwrap();
        let check = |payload: Value| contracts.check("a.v1", &payload).unwrap();
        assert_eq!(
            check(json!({"op": "create", "list": [1, 2], "name": "x"})),
            Ok(())
        );
        for (payload, pointer, keyword) in [
            (json!({}), "", "required"),
            (json!("secret"), "", "type"),
            (json!({"op": "secret"}), "/op", "const"),
            (
                json!({"op": "create", "list": [1, "secret"]}),
                "/list/1",
                "type",
            ),
            (json!({"op": "create", "list": [10]}), "/list/0", "maximum"),
            (
                json!({"op": "create", "name": "SECRET"}),
                "/name",
                "pattern",
            ),
        ] {
            let violation = check(payload).unwrap_err();
            assert_eq!(
                (&*violation.pointer, &*violation.keyword),
                (pointer, keyword)
            );
        }
        assert_eq!(contracts.check("b.v1", &json!(null)), None);
    }

    #[test]
    fn a_long_pointer_is_cut() {
        let contracts = load(&[(
            "a.json",
            r#"{"$id":"a","additionalProperties":{"type":"null"}}"#,
        )])
        .unwrap();
        let payload = json!({"ä".repeat(1000): 1});
        let violation = contracts.check("a", &payload).unwrap().unwrap_err();
        assert!(violation.pointer.len() <= MAX_POINTER);
        assert!(violation.pointer.starts_with("/ää"));
    }

    #[test]
    fn a_folder_is_taken_only_as_a_whole() {
        let good = ("good.json", r#"{"$id":"good","type":"object"}"#);
        assert!(
            load(&[good, ("readme.txt", "no contract")])
                .unwrap()
                .contains("good")
        );
        for (bad, told) in [
            ("{", "not JSON"),
            ("{}", "$id"),
            (r#"{"$id":""}"#, "$id"),
            (r#"{"$id":7}"#, "$id"),
            (r#"{"$id":"good"}"#, "another file"),
            (r#"{"$id":"x","type":"objekt"}"#, "not a schema"),
            (r#"{"$id":"x","pattern":"("}"#, "not a schema"),
            // Not matched in linear time.
            (r#"{"$id":"x","pattern":"(?=a)b"}"#, "not a schema"),
            (
                r#"{"$id":"x","$ref":"https://example.com/schema.json"}"#,
                "not a schema",
            ),
            (r#"{"$id":"x","$ref":"file:///etc/passwd"}"#, "not a schema"),
            (r#"{"$id":"x","$ref":"good"}"#, "not a schema"),
            (
                r#"{"$id":"x","$schema":"http://json-schema.org/draft-07/schema#"}"#,
                "draft",
            ),
        ] {
            let error = load(&[good, ("z.json", bad)]).unwrap_err().to_string();
            assert!(
                error.contains("z.json") && error.contains(told),
                "{bad}: {error}"
            );
        }
        assert!(Contracts::load(Path::new("/nonexistent")).is_err());
    }
}
