//! How a command ends that could not do its work: exit code, `error:` and `hint:`.

mod call;

use std::io::{self, ErrorKind};
use std::process::ExitCode;

use listeners::SocketError;
use manual::ManualError;
use rustls::pki_types::pem;
use tpm::{SignError, TpmError};

use crate::certificate::IssueError;
use crate::config::{ConfigError, ParseError};
use crate::doctor::DoctorError;
use crate::exec::ExecError;
use crate::init::InitError;
use crate::output::{OutputError, say};
use crate::pin::PinError;
use crate::prompt::PromptError;
use crate::rotate::RotateError;
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
    /// As in the registry's program: a PIN is missing or wrong.
    Pin = 67,
    /// As there: the TPM is locked after too many wrong PINs.
    Locked = 68,
    /// `EX_UNAVAILABLE`
    Unavailable = 69,
    /// `EX_CANTCREAT`
    CantCreate = 73,
    /// `EX_IOERR`: the result could not be written.
    Io = 74,
    /// `EX_TEMPFAIL`: done so far, to be gone on with.
    Temporary = 75,
    /// `EX_NOPERM`
    NoPermission = 77,
    /// As a shell says it: ended by Ctrl-C.
    Interrupted = 130,
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
    pub fn report(&self) -> ExitCode {
        say(format_args!("error: {}", self.message));
        if !self.hint.is_empty() {
            say(format_args!("hint: {}", self.hint));
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

/// What is said of wrong usage is longer only where it repeats a value that is.
const MAX_USAGE_BYTES: usize = 4096;

/// A line without the middle that makes it long.
fn shortened(line: &str) -> String {
    const KEPT: usize = 120;
    let count = line.chars().count();
    if count <= 2 * KEPT {
        return line.to_owned();
    }
    let start: String = line.chars().take(KEPT).collect();
    let end: String = line.chars().skip(count - KEPT).collect();
    format!("{start}…{end}")
}

/// Also how `--help` and `--version` end.
fn report_usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    if error.use_stderr() && text.len() > MAX_USAGE_BYTES {
        text.lines()
            .for_each(|line| say(format_args!("{}", shortened(line))));
        return ExitCode::from(Exit::Usage as u8);
    }
    // stdout or stderr, as fits.
    match (error.print(), error.use_stderr()) {
        (_, true) => ExitCode::from(Exit::Usage as u8),
        (Ok(()), false) => ExitCode::SUCCESS,
        (Err(_), false) => ExitCode::from(Exit::Io as u8),
    }
}

const RUN_INIT: &str = "make it with `agent-gateway-sidecar init --identity NAME --state DIR`";
const CONFIG: &str = "sidecar.example.toml shows every key that --config may hold";
const CA_BUNDLE: &str = "give certificates in PEM as --ca-bundle";
const START: &str =
    "start it with `agent-gateway-sidecar run --gateway HOST:PORT --ca FILE --state DIR`";
const TPM_DOWN: &str = "check that the TPM runs, that --tcti names it, and that this user may use it \
     (for /dev/tpmrm0: as a member of the group tss)";
const TPM_REFUSED: &str = "look at the TPM: `tpm2_getcap properties-variable` shows how it is";
const OTHER_STATE: &str = "use another --state folder, or remove this one to begin anew; \
     permissions of the old key then no longer apply";

fn tpm_exit(error: &TpmError) -> (Exit, &'static str) {
    match error {
        TpmError::Unreachable { .. } | TpmError::TimedOut { .. } => (Exit::Unavailable, TPM_DOWN),
        TpmError::HandleTaken { .. } => (Exit::Data, "choose another --handle"),
        TpmError::OwnerPin { .. } => (
            Exit::Pin,
            "set AGENT_GATEWAY_TPM_SO_PIN to the owner's PIN, or run this at a terminal to be asked",
        ),
        TpmError::Full { .. } => (
            Exit::CantCreate,
            "remove a key that nobody needs: `tpm2_getcap handles-persistent` lists them, \
             `tpm2_evictcontrol -c HANDLE` removes one",
        ),
        TpmError::Refused { .. }
        | TpmError::Vanished { .. }
        | TpmError::Thread(_)
        | TpmError::ThreadEnded => (Exit::Unavailable, TPM_REFUSED),
    }
}

fn sign_exit(error: &SignError) -> (Exit, &'static str) {
    match error {
        SignError::Unavailable(error) => tpm_exit(error),
        SignError::TimedOut { .. } | SignError::Busy { .. } => (Exit::Unavailable, TPM_DOWN),
        SignError::KeyChanged { .. } => (Exit::Data, OTHER_STATE),
        SignError::PinMissing { .. } => (
            Exit::Pin,
            "set AGENT_GATEWAY_TPM_USER_PIN, or run this at a terminal to be asked",
        ),
        SignError::WrongPin { .. } => (
            Exit::Pin,
            "give the right one in AGENT_GATEWAY_TPM_USER_PIN, or when asked",
        ),
        SignError::LockedOut { .. } => (
            Exit::Locked,
            "wait, or let the TPM's owner unlock it with `tpm2_dictionarylockout -c`",
        ),
        SignError::Refused { .. } | SignError::Software => (Exit::Unavailable, TPM_REFUSED),
    }
}

fn pin_exit(error: &PinError) -> (Exit, &'static str) {
    match error {
        PinError::NotText(_) | PinError::Variable { .. } => {
            (Exit::Usage, "set it to the PIN, or leave it unset")
        }
        PinError::NoneGiven => (
            Exit::Usage,
            "set AGENT_GATEWAY_TPM_USER_PIN, or run this at a terminal to be asked",
        ),
        PinError::Prompt(PromptError::Interrupted) => (Exit::Interrupted, "nothing was changed"),
        PinError::Typed(_) | PinError::Differ | PinError::Prompt(_) => {
            (Exit::Usage, "nothing was changed; try again")
        }
        PinError::Tpm(error) => tpm_exit(error),
        PinError::Key(error) => sign_exit(error),
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
        StateError::Changing { .. } => (Exit::Unavailable, "wait for it, then try again"),
        StateError::Running { .. } => (
            Exit::Unavailable,
            "stop it first, or give each agent a --state of its own",
        ),
    }
}

fn socket_exit(error: &SocketError) -> (Exit, &'static str) {
    match error {
        SocketError::UnsafeFolder(_) => (
            Exit::NoPermission,
            "put it into a folder of your own that others can't write to",
        ),
        SocketError::NotASocket(_) => (Exit::CantCreate, "choose another path"),
        SocketError::Exposed { .. } => (
            Exit::NoPermission,
            "set SocketMode=0600 in its socket unit, or name the users with --socket-uid",
        ),
        SocketError::InUse(_) => (Exit::Unavailable, "choose another path"),
        SocketError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            (Exit::NoPermission, "")
        }
        SocketError::Io { .. } => (Exit::CantCreate, "its folder must exist"),
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
            InitError::Pin(error) => pin_exit(error),
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
            RunError::Pin(error) => pin_exit(error),
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
            RunError::Socket(error) => socket_exit(error),
            RunError::Inherited(_) => (
                Exit::Usage,
                "let the socket unit listen where --listen and --socket say, and nowhere else",
            ),
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

impl From<RotateError> for Failure {
    fn from(error: RotateError) -> Self {
        let (exit, hint) = match error {
            // As the command that fails on it says it.
            RotateError::NoState(path) => return RunError::NoState(path).into(),
            RotateError::Run(error) => return error.into(),
            RotateError::Output(error) => return error.into(),
            RotateError::Credential(error) => return RunError::Credential(error).into(),
            RotateError::State(ref error) => state_exit(error),
            RotateError::Tpm(ref error) => tpm_exit(error),
            RotateError::Pin(ref error) => pin_exit(error),
            RotateError::Issue(IssueError::Encoding) => (Exit::Data, ""),
            RotateError::Issue(IssueError::Signing(ref error)) => sign_exit(error),
            RotateError::SameHandle(_) | RotateError::Occupied(_) => {
                (Exit::Data, "choose another --new-handle")
            }
            RotateError::OtherBegun(_) => (
                Exit::Data,
                "go on without --new-handle, or give that one up with `rotate --cancel`",
            ),
            RotateError::NoneBegun => (
                Exit::Data,
                "begin one with `agent-gateway-sidecar rotate --state DIR`",
            ),
            RotateError::Lost(_) => (
                Exit::Data,
                "nothing has changed; give it up with `rotate --cancel`, and begin anew",
            ),
            RotateError::NoGateway => (
                Exit::Usage,
                "add --gateway HOST:PORT --ca FILE, or --granted if the key need not be tried",
            ),
            RotateError::Refused { .. } => (
                Exit::NoPermission,
                "nothing has changed; a principal grants it, see `certificate --next --request`",
            ),
            RotateError::Untried(_) => (
                Exit::Unavailable,
                "nothing has changed; try again, or use --granted if the key need not be tried",
            ),
            RotateError::NotTakenOver(_) => (
                Exit::Temporary,
                "the old key stays in the TPM: restart the sidecar, then give the command again",
            ),
        };
        Failure::new(exit, &error, hint)
    }
}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Self {
        Failure::new(Exit::Io, &error, "")
    }
}

impl From<ManualError> for Failure {
    fn from(error: ManualError) -> Self {
        let exit = match &error {
            ManualError::Stdout(_) => Exit::Io,
            ManualError::Folder { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                Exit::NoPermission
            }
            ManualError::Folder { .. } => Exit::CantCreate,
        };
        Failure::new(exit, &error, "")
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
            StatusError::Output(_) => (Exit::Io, ""),
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
            DoctorError::Output(_) => (Exit::Io, ""),
            DoctorError::Runtime(_) | DoctorError::Failed { .. } => (Exit::Unavailable, ""),
        };
        Failure::new(exit, &error, hint)
    }
}
