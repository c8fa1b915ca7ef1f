//! Rego, evaluated in this process.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value};

use super::{Answer, Document, Input};
#[cfg(test)]
use super::{MAX_REASON, MAX_REASONS};
use crate::relay::files::{self, FileError};

/// Most files.
const MAX_FILES: usize = 1000;
/// How many steps of the evaluation go by between looks at the clock.
const STEPS_PER_LOOK: NonZeroU32 = NonZeroU32::new(64).unwrap();

const ALLOW: &str = "data.mcp.authz.allow";
const REASON: &str = "data.mcp.authz.reason";

/// A compiled policy.
#[derive(Debug, Clone)]
pub struct Rego {
    engine: Engine,
    has_reason: bool,
}

/// Why a folder of Rego is refused.
#[derive(Debug, thiserror::Error)]
pub enum RegoError {
    /// The folder or a file in it can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not Rego.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Files that don't fit together, or without the one rule that is asked for.
    #[error("the policy can't be compiled, or has no rule data.mcp.authz.allow: {0}")]
    NotCompiled(String),
}

/// Why a call can't be judged.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// The policy failed, or took too long.
    #[error("the policy failed: {0}")]
    Failed(String),
    /// `allow` is no boolean, or `reason` no list of texts.
    #[error("the policy's result is not {{allow: bool, reason: [text]}}")]
    BadResult,
}

impl Rego {
    /// Reads and compiles every `*.rego` of a folder but tests (`*_test.rego`).
    pub fn load(folder: &Path, time_limit: Duration) -> Result<Self, RegoError> {
        let mut engine = Engine::new();
        engine.set_strict_builtin_errors(true);
        for path in files::with_extension(folder, "rego", MAX_FILES)? {
            let name = path.to_string_lossy().into_owned();
            if name.ends_with("_test.rego") {
                continue;
            }
            let text = files::read(&path)?;
            engine
                .add_policy(name, text)
                .map_err(|error| RegoError::Invalid {
                    path,
                    reason: error.to_string(),
                })?;
        }
        // Also prepares the engine, once for all its clones.
        engine
            .compile_with_entrypoint(&ALLOW.into())
            .map_err(|error| RegoError::NotCompiled(error.to_string()))?;
        let has_reason = has_rule(&mut engine, REASON);
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit: time_limit,
            check_interval: STEPS_PER_LOOK,
        });
        Ok(Self { engine, has_reason })
    }

    /// Judges one call, in an engine of its own, which shares what was compiled.
    pub fn evaluate(&self, input: &Input<'_>) -> Result<Answer, EvaluationError> {
        let failed = |error: String| EvaluationError::Failed(error);
        let mut engine = self.engine.clone();
        let input = serde_json::to_string(input).map_err(|error| failed(error.to_string()))?;
        let input = Value::from_json_str(&input).map_err(|error| failed(error.to_string()))?;
        engine.set_input(input);
        let mut evaluate = |rule: &str| {
            let value = engine.eval_rule(rule.to_owned());
            value.map_err(|error| failed(error.to_string()))
        };
        match evaluate(ALLOW)? {
            Value::Bool(true) => return Ok(Answer::Allow),
            // Undefined is no, as for OPA.
            Value::Bool(false) | Value::Undefined => {}
            _ => return Err(EvaluationError::BadResult),
        }
        let reason = if self.has_reason {
            evaluate(REASON)?
        } else {
            Value::Undefined
        };
        let reason = match reason {
            Value::Undefined => Vec::new(),
            // A set (`reason contains "…"`) is written as a list too.
            reason => serde_json::to_value(&reason)
                .and_then(serde_json::from_value)
                .map_err(|_| EvaluationError::BadResult)?,
        };
        Ok(Answer::from(Document {
            allow: false,
            reason,
        }))
    }
}

fn has_rule(engine: &mut Engine, rule: &str) -> bool {
    engine.compile_with_entrypoint(&rule.into()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn load(files: &[(&str, &str)]) -> Result<Rego, RegoError> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Rego::load(folder.path(), LIMIT)
    }

    fn policy(rules: &str) -> Rego {
        load(&[("a.rego", &format!("package mcp.authz\n{rules}"))]).unwrap()
    }

    fn input(tool: &str) -> Input<'_> {
        Input {
            caller: "agent-alpha",
            tool,
            poca_verified: true,
            trace_id: "0af7651916cd43dd8448eb211c80319c",
            schema_id: None,
        }
    }

    #[test]
    fn the_policy_allows_denies_and_says_why() {
        let rego = policy(
            "default allow := false\n\
             allow if { input.caller == \"agent-alpha\"; input.tool == \"echo\"; input.poca_verified }\n\
             reason := [\"not allowed\"] if not allow",
        );
        assert_eq!(rego.evaluate(&input("echo")).unwrap(), Answer::Allow);
        let denied = Answer::Deny(vec!["not allowed".to_owned()]);
        assert_eq!(rego.evaluate(&input("todos")).unwrap(), denied);
        let unproven = Input {
            poca_verified: false,
            ..input("echo")
        };
        assert_eq!(rego.evaluate(&unproven).unwrap(), denied);
    }

    #[test]
    fn an_undefined_answer_is_no() {
        let rego =
            policy("allow if input.tool == \"echo\"\nreason contains \"b\"\nreason contains \"a\"");
        let reasons = ["a", "b"].map(str::to_owned).to_vec();
        assert_eq!(
            rego.evaluate(&input("todos")).unwrap(),
            Answer::Deny(reasons)
        );
        let rego = policy("allow if input.tool == \"echo\"");
        assert_eq!(
            rego.evaluate(&input("todos")).unwrap(),
            Answer::Deny(Vec::new())
        );
    }

    #[test]
    fn reasons_are_bounded() {
        let rego = policy(
            "default allow := false\nreason := [sprintf(\"%d%s\", [i, concat(\"\", [\"ä\" | numbers.range(1, 300)[_]])]) | i := numbers.range(1, 20)[_]]",
        );
        let Answer::Deny(reasons) = rego.evaluate(&input("x")).unwrap() else {
            panic!("allowed")
        };
        assert_eq!(reasons.len(), MAX_REASONS);
        assert!(reasons.iter().all(|reason| reason.len() <= MAX_REASON));
    }

    #[test]
    fn what_fails_or_is_no_answer_is_an_error() {
        for rules in [
            "allow if 1 / 0 == 1",
            "allow if to_number(input.tool) == 1",
            "allow if no_such_function(1)",
            "allow if http.send({}).status_code == 200",
            "allow := true if input.tool == \"echo\"\nallow := false if input.poca_verified",
            "allow := \"yes\"",
            "default allow := false\nreason := \"no list\"",
            "default allow := false\nreason := [1]",
        ] {
            assert!(policy(rules).evaluate(&input("echo")).is_err(), "{rules}");
        }
    }

    #[test]
    fn an_evaluation_ends_in_time() {
        let mut rego = policy(
            "allow if { some i in numbers.range(1, 1000); some j in numbers.range(1, 1000); \
             some k in numbers.range(1, 1000); i + j + k < 0 }",
        );
        rego.engine
            .set_execution_timer_config(ExecutionTimerConfig {
                limit: Duration::from_millis(20),
                check_interval: STEPS_PER_LOOK,
            });
        assert!(matches!(
            rego.evaluate(&input("echo")),
            Err(EvaluationError::Failed(_))
        ));
    }

    #[test]
    fn our_own_policy_passes_its_own_tests() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy");
        let tests = "mcp/authz_test.rego";
        let text = files::read(&folder.join(tests)).unwrap();
        let names = text
            .lines()
            .filter_map(|line| line.strip_prefix("test_")?.split(' ').next());
        let names: Vec<_> = names.collect();
        assert_eq!(names.len(), 6);
        let mut engine = Rego::load(&folder, LIMIT).unwrap().engine;
        engine.add_policy(tests.to_owned(), text.clone()).unwrap();
        for name in names {
            let rule = format!("data.mcp.authz_test.test_{name}");
            assert_eq!(engine.eval_rule(rule).unwrap(), Value::Bool(true), "{name}");
        }
    }

    #[test]
    fn a_folder_is_taken_only_as_a_whole_and_without_its_tests() {
        let good = ("a.rego", "package mcp.authz\ndefault allow := false");
        assert!(load(&[good, ("a_test.rego", "not rego"), ("b.txt", "nor this")]).is_ok());
        for files in [
            &[][..],
            &[("a.rego", "package mcp.other\ndefault allow := true")],
            &[("a.rego", "package mcp.authz\nreason := []")],
            &[good, ("b.rego", "not rego")],
        ] {
            assert!(load(files).is_err(), "{files:?}");
        }
    }
}
