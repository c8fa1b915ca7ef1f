//! `can-i`: what the gateway would say to a request, by the rules that it goes by.

use permission::{Decision, Identity, Request, Timestamp, decide};
use registry::Writer;
use serde_json::{Value, json};

use crate::Outcome;
use crate::arguments::destination;
use crate::cli::RequestArgs;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::subject::Subject;
use crate::terminal::{Report, escape, when};
use crate::trust::Trust;

/// A request, and the time at which it is looked at.
pub(crate) struct Asked {
    pub(crate) request: Request,
    at: Option<Timestamp>,
}

impl Asked {
    pub(crate) fn read(args: &RequestArgs) -> Result<Self, Failure> {
        let identity = Identity::parse(&args.identity)?;
        let destination = destination(&args.destination)?;
        let subject = Subject::read(&args.spki)?;
        subject.must_be(&identity)?;
        Ok(Self {
            request: Request {
                identity,
                spki: subject.spki,
                destination,
            },
            at: args.at,
        })
    }

    /// The database's time, and the time that is asked about.
    pub(crate) async fn times(
        &self,
        registry: &mut Writer,
    ) -> Result<(Timestamp, Timestamp), Failure> {
        let now = within(registry.now()).await?;
        Ok((now, self.at.unwrap_or(now)))
    }

    pub(crate) fn json(&self, at: Timestamp) -> Value {
        json!({
            "identity": self.request.identity.as_str(),
            "spki": self.request.spki.to_hex(),
            "destination": self.request.destination.to_string(),
            "at": at.to_string(),
        })
    }
}

/// Runs the command.
pub(crate) async fn run(args: &RequestArgs, trust: &Trust) -> Result<(Report, Outcome), Failure> {
    let asked = Asked::read(args)?;
    let mut registry = database::open(trust).await?;
    let (now, at) = asked.times(&mut registry).await?;
    let facts = within(registry.facts(&asked.request)).await?;
    let mut json = asked.json(at);
    let (text, answer, outcome) = match decide(&facts, &asked.request, at) {
        Decision::Allow(permit) => {
            let id = permit.permission().permission_id.as_str();
            let ends_at = permit.ends_at();
            let until = when(ends_at, now);
            (
                format!("yes - {}; a tunnel ends {until}\n", escape(id)),
                json!({
                    "allowed": true, "reason": null,
                    "permission_id": id, "ends_at": ends_at.to_string(),
                }),
                Outcome::Yes,
            )
        }
        Decision::Deny(reason) => (
            format!("no - {reason}\n"),
            json!({
                "allowed": false, "reason": reason.code(),
                "permission_id": null, "ends_at": null,
            }),
            Outcome::No,
        ),
    };
    if let (Some(json), Value::Object(answer)) = (json.as_object_mut(), answer) {
        json.extend(answer);
    }
    Ok((Report { text, json }, outcome))
}
