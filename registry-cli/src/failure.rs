//! How a command ends that could not do its work: exit status, `error:` and `hint:`.

mod root;
mod verdict;

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use permission::{DestinationError, Id, IdentityError, KeyError, Reason, TextError, WindowError};
use registry::{OpenError, WriteError};
use tpm::{ParseTctiError, PinError, SignError, SoftwareKeyError, TpmError};

pub use self::root::RootFailure;
use self::verdict::Exit;
use crate::import::ImportError;
use crate::poca_key::PocaKeyError;
use crate::principal::Place;
use crate::replicas::{Replica, ReplicaError};
use crate::scope::{Delegation, ScopeGap};
use crate::signing::elsewhere::ElsewhereError;
use crate::subject::SubjectError;
use crate::terminal::say;

/// Why nothing, or nothing more, was done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The environment names no database.
    #[error("no database url: AGENT_GATEWAY_DATABASE_URL and DATABASE_URL are not set")]
    NoDatabaseUrl,
    /// An environment variable that isn't UTF-8; its value is not repeated.
    #[error("{variable} is not UTF-8 text")]
    NotText {
        /// Its name.
        variable: &'static str,
    },
    /// An environment variable that names no TPM.
    #[error("{variable}: {source}")]
    Tcti {
        /// Its name.
        variable: &'static str,
        /// What is wrong.
        source: ParseTctiError,
    },
    /// No PIN, or none that can be one.
    #[error(transparent)]
    Pin(#[from] PinFailure),
    /// To revoke without anything to match would revoke all.
    #[error("nothing given that a {kind} must match")]
    NoFilter {
        /// Of what.
        kind: &'static str,
        /// What can be given.
        options: &'static str,
    },
    /// `list` with a filter on what the rows don't have.
    #[error("{option} does not apply to what is listed")]
    NoSuchFilter {
        /// Which one.
        option: &'static str,
    },
    /// `list tunnels`, and nobody to ask.
    #[error("no --admin given: the gateway's services know their tunnels")]
    NoAdmin,
    /// A service gave no answer.
    #[error("{replica} {source}")]
    Replica {
        /// Which one.
        replica: Replica,
        /// Why.
        source: ReplicaError,
    },
    /// An id that can't be one.
    #[error("{what} {source}")]
    Id {
        /// Whose.
        what: &'static str,
        /// What is wrong.
        source: TextError,
    },
    /// An identity that can't be one.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A destination that can't be one.
    #[error("destination {text}: {source}")]
    Destination {
        /// As given.
        text: String,
        /// What is wrong.
        source: DestinationError,
    },
    /// No public key of an agent.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// No key of an agent's for proofs of context.
    #[error(transparent)]
    PocaKey(#[from] PocaKeyError),
    /// The registry can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The registry refused or failed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The database took what was sent and kept silent.
    #[error("database gave no answer within {0:?}")]
    DatabaseSilent(Duration),
    /// The TPM gives no key.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The file gives no key.
    #[error(transparent)]
    SoftwareKey(#[from] SoftwareKeyError),
    /// No signature.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The key that is to sign is not there.
    #[error("there is no key {0}")]
    KeyAbsent(Place),
    /// No key of that id.
    #[error("no key {0} is registered")]
    KeyUnknown(Id),
    /// What that key signs doesn't count.
    #[error("key {key_id} {state}")]
    KeyInactive {
        /// Which key.
        key_id: Id,
        /// Why.
        state: String,
    },
    /// The key at hand is not the registered one.
    #[error("the key {place} is not the one registered as {key_id}")]
    OtherKey {
        /// The id.
        key_id: Id,
        /// Where the key was found.
        place: Place,
    },
    /// The id belongs to another key than the one at hand.
    #[error("{key_id} is already registered, with another key than {place}")]
    IdTaken {
        /// The id.
        key_id: Id,
        /// Where a key, or none, was found.
        place: Place,
    },
    /// The key at hand belongs to another id.
    #[error("this key is already registered as {registered}")]
    KeyTaken {
        /// The id in the registry.
        registered: String,
    },
    /// What roots of trust are asked for.
    #[error(transparent)]
    Root(#[from] RootFailure),
    /// The key may delegate nothing.
    #[error("{0} has no scope")]
    NoScope(Id),
    /// The key may not delegate this.
    #[error("the scope of {} for {} {gap}", delegation.key_id, delegation.destination)]
    Scope {
        /// Who, and what.
        delegation: Delegation,
        /// What is missing.
        gap: ScopeGap,
    },
    /// Several selectors, and not said that all must match.
    #[error("several things given that a {kind} must match")]
    SeveralFilters {
        /// Of what.
        kind: &'static str,
    },
    /// A question, and nobody at a terminal.
    #[error("not done without a yes, and there is nobody to ask")]
    NobodyToAsk,
    /// The user did not agree.
    #[error("not done: no yes was given")]
    Declined,
    /// There was nothing to revoke.
    #[error("no {kind} matches that was not already revoked")]
    NothingMatched {
        /// Of what.
        kind: &'static str,
    },
    /// It is done, but not every service knows.
    #[error("revoked ({revoked}), but not confirmed by {}", listed(missing))]
    Unconfirmed {
        /// How many rows.
        revoked: usize,
        /// Who, and why not.
        missing: Vec<(Replica, ReplicaError)>,
    },
    /// No row of that id.
    #[error("no permission, PoCA key or key has the id {0}")]
    NoSuchId(Id),
    /// A file of signed permissions that can't be taken.
    #[error("{}: {source}", path.display())]
    Import {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: ImportError,
    },
    /// A file of the gateway's audit that can't be read.
    #[error("{}: {source}", path.display())]
    AuditFile {
        /// Which file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// `--id` for more than one permission.
    #[error("one id can't name {0} permissions")]
    OneId(usize),
    /// The text to be signed elsewhere, or its signature.
    #[error("{}: {source}", path.display())]
    Elsewhere {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: ElsewhereError,
    },
    /// Something was signed that would not count at the gateway; it was not stored.
    #[error("the signed {kind} would be denied: {reason}")]
    Unusable {
        /// Of what.
        kind: &'static str,
        /// Why.
        reason: Reason,
    },
    /// A key that can't be written as one.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The database's clock stands at the end of time.
    #[error("no time is left after the database's clock: {0}")]
    Window(#[from] WindowError),
    /// The result, which stands, can't be shown.
    #[error("done, but the result can't be written")]
    Output(#[source] io::Error),
    /// This machine has no usable time.
    #[error("this machine's clock is outside the years 1970 to 9999")]
    NoTime,
    /// The operating system has no resources for us.
    #[error("can't start")]
    Runtime(#[source] io::Error),
}

/// Why there is no PIN; what was given is not repeated.
#[derive(Debug, thiserror::Error)]
pub enum PinFailure {
    /// An environment variable that holds none.
    #[error("{variable}: {source}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// What is wrong.
        source: PinError,
    },
    /// What was typed is none.
    #[error("not a PIN: {0}")]
    Typed(PinError),
    /// The PIN of a new key was not typed twice.
    #[error("the two PINs differ, or are empty")]
    Differ,
    /// `--pin`, and none was given.
    #[error("no PIN was given for the new key")]
    Missing,
}

/// Tells what is wrong with the command line; also how `--help` and `--version` end.
pub fn report_usage(error: &clap::Error) -> ExitCode {
    // stdout or stderr, as fits; a closed one can't be helped.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(Exit::Usage as u8)
    } else {
        ExitCode::SUCCESS
    }
}

impl Failure {
    /// The message, and what to do about it.
    pub(crate) fn explained(&self) -> String {
        format!("{}: {}", with_causes(self), self.verdict().1)
    }

    /// Tells the user, and gives the exit status.
    pub fn report(&self) -> ExitCode {
        let (exit, hint) = self.verdict();
        say("error", &with_causes(self));
        say("hint", &hint);
        ExitCode::from(exit as u8)
    }
}

fn listed(missing: &[(Replica, ReplicaError)]) -> String {
    let one =
        |(replica, error): &(Replica, ReplicaError)| format!("{replica} ({})", with_causes(error));
    missing.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The message, and those of its causes that it doesn't repeat.
fn with_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = error.source();
    }
    message
}
