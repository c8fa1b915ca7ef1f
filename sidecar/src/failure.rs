//! How a command ends that could not do its work: exit code, `error:` and `hint:`.

use std::io::{self, ErrorKind};
use std::process::ExitCode;

use rustls::pki_types::pem;
use tpm::{SignError, TpmError};

use crate::certificate::IssueError;
use crate::config::{ConfigError, ParseError};
use crate::doctor::DoctorError;
use crate::exec::ExecError;
use crate::init::InitError;
use crate::run::RunError;
use crate::state::StateError;
use crate::status::StatusError;

/// Exit codes as in sysexits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// `EX_USAGE`
    Usage = 64,
    /// `EX_DATAERR`: state, key and certificate don't fit together.
    Data = 65,
    /// `EX_NOINPUT`
    NoInput = 66,
    /// `EX_UNAVAILABLE`
    Unavailable = 69,
    /// `EX_CANTCREAT`
    CantCreate = 73,
    /// `EX_NOPERM`
    NoPermission = 77,
}

/// What went wrong, and what to do about it.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
    hint: &'static str,
}

impl Failure {
    fn new(exit: Exit, error: &dyn std::error::Error, hint: &'static str) -> Self {
        Self {
            code: exit as u8,
            message: error.to_string(),
            hint,
        }
    }

    /// What went wrong.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it; may be empty.
    pub(crate) fn hint(&self) -> &str {
        self.hint
    }

    /// Tells the user, and gives the exit code.
    #[expect(
        clippy::print_stderr,
        reason = "this is where a command's failure is told"
    )]
    pub fn report(&self) -> ExitCode {
        eprintln!("error: {}", self.message);
        if !self.hint.is_empty() {
            eprintln!("hint: {}", self.hint);
        }
        ExitCode::from(self.code)
    }
}

/// Tells what is wrong with the command line, or with the file that it names.
pub fn report_unread(error: ParseError) -> ExitCode {
    match error {
        ParseError::Usage(error) => report_usage(&error),
        ParseError::Config(error) => Failure::from(error).report(),
    }
}

/// Also how `--help` and `--version` end.
fn report_usage(error: &clap::Error) -> ExitCode {
    // stdout or stderr, as fits; a closed one can't be helped.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(Exit::Usage as u8)
    } else {
        ExitCode::SUCCESS
    }
}

const RUN_INIT: &str = "make it with `agent-gateway-sidecar init --identity NAME --state DIR`";
const CONFIG: &str = "sidecar.example.toml shows every key that --config may hold";
const CA_BUNDLE: &str = "give certificates in PEM as --ca-bundle";
const START: &str =
    "start it with `agent-gateway-sidecar run --gateway HOST:PORT --ca FILE --state DIR`";
const TPM_DOWN: &str = "check that the TPM runs and that --tcti names it";
const OTHER_STATE: &str = "use another --state folder, or remove this one to begin anew; \
     permissions of the old key then no longer apply";

fn tpm_exit(error: &TpmError) -> (Exit, &'static str) {
    match error {
        TpmError::Unreachable { .. } | TpmError::TimedOut { .. } => (Exit::Unavailable, TPM_DOWN),
        TpmError::HandleTaken { .. } => (Exit::Data, "choose another --handle"),
        TpmError::OwnerPin { .. } => (Exit::NoPermission, ""),
        TpmError::Full { .. } => (
            Exit::CantCreate,
            "remove a key that nobody needs: `tpm2_getcap handles-persistent`, `tpm2_evictcontrol`",
        ),
        TpmError::Refused { .. }
        | TpmError::Vanished { .. }
        | TpmError::Thread(_)
        | TpmError::ThreadEnded => (Exit::Unavailable, ""),
    }
}

fn sign_exit(error: &SignError) -> (Exit, &'static str) {
    match error {
        SignError::Unavailable(error) => tpm_exit(error),
        SignError::TimedOut { .. } | SignError::Busy { .. } => (Exit::Unavailable, TPM_DOWN),
        SignError::KeyChanged { .. } => (Exit::Data, OTHER_STATE),
        SignError::PinMissing { .. } | SignError::WrongPin { .. } => (Exit::NoPermission, ""),
        SignError::LockedOut { .. } => (
            Exit::Unavailable,
            "wait, or let the TPM's owner unlock it with `tpm2_dictionarylockout -c`",
        ),
        SignError::Refused { .. } | SignError::Software => (Exit::Unavailable, ""),
    }
}

fn state_exit(error: &StateError) -> (Exit, &'static str) {
    match error {
        StateError::Read { source, .. } => read_exit(source, RUN_INIT),
        StateError::Write { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            (Exit::NoPermission, "")
        }
        StateError::Write { .. } => (Exit::CantCreate, ""),
        StateError::Exposed { .. } => (
            Exit::NoPermission,
            "make it yours alone: chown it, and chmod 700",
        ),
        StateError::Damaged { .. } => (Exit::Data, OTHER_STATE),
        StateError::Running { .. } => (
            Exit::Unavailable,
            "stop it first, or give each agent a --state of its own",
        ),
    }
}

fn read_exit(source: &io::Error, hint: &'static str) -> (Exit, &'static str) {
    match source.kind() {
        ErrorKind::PermissionDenied => (Exit::NoPermission, ""),
        _ => (Exit::NoInput, hint),
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let (exit, hint) = match &error {
            ConfigError::Unreadable { source, .. } => read_exit(source, CONFIG),
            ConfigError::Invalid(_) => (Exit::Usage, CONFIG),
        };
        Failure::new(exit, &error, hint)
    }
}

impl From<InitError> for Failure {
    fn from(error: InitError) -> Self {
        let (exit, hint) = match &error {
            InitError::State(error) => state_exit(error),
            InitError::Tpm(error) => tpm_exit(error),
            InitError::Issue(IssueError::Encoding) => (Exit::Data, ""),
            InitError::Issue(IssueError::Signing(error)) => sign_exit(error),
            InitError::OtherIdentity { .. } | InitError::OtherKey { .. } => {
                (Exit::Data, OTHER_STATE)
            }
            InitError::KeyGone { .. } => (
                Exit::Data,
                "check --tcti and --handle; a new key needs another --state folder",
            ),
        };
        Failure::new(exit, &error, hint)
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let (exit, hint) = match &error {
            RunError::NoState(_) => (Exit::NoInput, RUN_INIT),
            RunError::State(error) => state_exit(error),
            RunError::Tpm(error) => tpm_exit(error),
            RunError::NoKey { .. } => (
                Exit::Data,
                "check with `init` that --tcti and --handle still lead to the key",
            ),
            RunError::Credential(_) => (Exit::Data, OTHER_STATE),
            RunError::Authorities { source, .. } => {
                read_exit(source, "give the gateway's CA certificate as --ca, in PEM")
            }
            RunError::NoAuthority(_) => (
                Exit::Data,
                "give the gateway's CA certificate as --ca, in PEM",
            ),
            RunError::Listen { source, .. } => match source.kind() {
                ErrorKind::PermissionDenied => (Exit::NoPermission, "choose a port above 1023"),
                _ => (Exit::Unavailable, "choose another --listen address"),
            },
            RunError::OpenToNetwork(_) => (
                Exit::Usage,
                "leave --open-to-all away, or let --listen be a loopback address",
            ),
            RunError::Tls(_) | RunError::NoRandomness | RunError::Runtime(_) => {
                (Exit::Unavailable, "")
            }
            RunError::LogFilter(_) => (Exit::Usage, "set RUST_LOG to something like info"),
            RunError::Exporter(_) => (
                Exit::Usage,
                "set OTEL_EXPORTER_OTLP_ENDPOINT to something like http://host:4317",
            ),
        };
        Failure::new(exit, &error, hint)
    }
}

impl From<ExecError> for Failure {
    fn from(error: ExecError) -> Self {
        let (exit, hint) = match &error {
            ExecError::Start { source, .. } => {
                let code = ExecError::shell_code(source);
                return Failure {
                    code,
                    message: error.to_string(),
                    hint: "",
                };
            }
            ExecError::State(error) => state_exit(error),
            ExecError::CaBundle { source, .. } => match source {
                pem::Error::Io(source) => read_exit(source, CA_BUNDLE),
                _ => (Exit::Data, CA_BUNDLE),
            },
            ExecError::NotRunning(_) => (Exit::Unavailable, START),
        };
        Failure::new(exit, &error, hint)
    }
}

impl From<StatusError> for Failure {
    fn from(error: StatusError) -> Self {
        let (exit, hint) = match &error {
            StatusError::NoState(_) => (Exit::NoInput, RUN_INIT),
            StatusError::State(error) => state_exit(error),
            StatusError::NotRunning(_) => (Exit::Unavailable, START),
            StatusError::NoAnswer(_) => (Exit::Unavailable, "its log may say more; restart it"),
        };
        Failure::new(exit, &error, hint)
    }
}

impl From<DoctorError> for Failure {
    fn from(error: DoctorError) -> Self {
        let (exit, hint) = match &error {
            DoctorError::NoGateway(_) => (
                Exit::Usage,
                "add --gateway HOST:PORT --ca FILE, or start the sidecar first",
            ),
            DoctorError::Runtime(_) | DoctorError::Failed { .. } => (Exit::Unavailable, ""),
        };
        Failure::new(exit, &error, hint)
    }
}
