//! `why`: every row that a request could rest on, and the check at which each one falls.

use permission::{Reason, Request, Timestamp, judge};
use registry::Stored;
use serde_json::{Value, json};

use crate::can_i::Asked;
use crate::cli::RequestArgs;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::terminal::{Report, table, when};
use crate::trust::Trust;

/// A row, and what `judge` says of it.
struct Judged {
    permission_id: String,
    key_id: String,
    times: Option<(Timestamp, Timestamp)>,
    fell: Option<Fell>,
}

/// Where a row fell.
enum Fell {
    /// It can't be read: this column holds what no permission can.
    Column(&'static str),
    /// At a check.
    Check(Reason),
}

/// Runs the command.
pub(crate) async fn run(args: &RequestArgs, trust: &Trust) -> Result<Report, Failure> {
    let asked = Asked::read(args)?;
    let mut registry = database::open(trust).await?;
    let (now, at) = asked.times(&mut registry).await?;
    let rows = within(registry.stored_for(&asked.request)).await?;
    let judged: Vec<Judged> = rows
        .iter()
        .map(|row| Judged::new(row, &asked.request, at))
        .collect();
    let mut json = asked.json(at);
    if let Some(json) = json.as_object_mut() {
        let rows: Value = judged.iter().map(Judged::json).collect();
        json.insert("candidates".to_owned(), rows);
    }
    Ok(Report {
        text: shown(&judged, &asked.request, now),
        json,
    })
}

fn shown(judged: &[Judged], request: &Request, now: Timestamp) -> String {
    if judged.is_empty() {
        let Request {
            identity,
            destination,
            ..
        } = request;
        let none = format!("no permission for {identity} with this key to {destination}");
        return crate::terminal::escape(&none) + "\n";
    }
    let headings = [
        "PERMISSION ID",
        "KEY ID",
        "VERDICT",
        "NOT BEFORE",
        "NOT AFTER",
    ];
    let mut lines = vec![headings.map(str::to_owned).to_vec()];
    lines.extend(judged.iter().map(|row| {
        let (from, to) = match row.times {
            Some((from, to)) => (when(from, now), when(to, now)),
            None => (String::new(), String::new()),
        };
        vec![
            row.permission_id.clone(),
            row.key_id.clone(),
            row.verdict(),
            from,
            to,
        ]
    }));
    table(&lines)
}

impl Judged {
    fn new(row: &Stored, request: &Request, at: Timestamp) -> Self {
        let permission_id = row.permission_id().to_owned();
        match row.candidate() {
            Ok(candidate) => {
                let permission = candidate.permission();
                let window = permission.window;
                Self {
                    permission_id,
                    key_id: permission.signing_key_id.to_string(),
                    times: Some((window.not_before(), window.not_after())),
                    fell: judge(&candidate, request, at).err().map(Fell::Check),
                }
            }
            Err(column) => Self {
                permission_id,
                key_id: String::new(),
                times: None,
                fell: Some(Fell::Column(column)),
            },
        }
    }

    fn verdict(&self) -> String {
        match self.fell {
            None => "allows".to_owned(),
            Some(Fell::Check(reason)) => reason.code().to_owned(),
            Some(Fell::Column(column)) => {
                format!("{}: unusable {column}", Reason::SignatureInvalid)
            }
        }
    }

    fn json(&self) -> Value {
        let (reason, column) = match self.fell {
            None => (None, None),
            Some(Fell::Check(reason)) => (Some(reason.code()), None),
            Some(Fell::Column(column)) => (Some(Reason::SignatureInvalid.code()), Some(column)),
        };
        json!({
            "permission_id": self.permission_id,
            "key_id": self.key_id,
            "allows": reason.is_none(),
            "reason": reason,
            "unusable_column": column,
            "not_before": self.times.map(|(from, _)| from.to_string()),
            "not_after": self.times.map(|(_, to)| to.to_string()),
        })
    }
}
