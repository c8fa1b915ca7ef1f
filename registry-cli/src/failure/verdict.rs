//! Which exit status and which hint belong to which failure.

use std::io::ErrorKind;

use permission::Id;
use registry::{OpenError, SchemaError, WriteError};
use tpm::{SignError, SoftwareKeyError, TpmError};

use crate::failure::{Failure, PinFailure};
use crate::import::{ImportError, StatementFault};
use crate::poca_key::PocaKeyError;
use crate::scope::{Delegation, ScopeGap};
use crate::signing::elsewhere::ElsewhereError;
use crate::subject::SubjectError;

/// Exit statuses: 1 and those of sysexits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    NothingMatched = 1,
    /// `EX_USAGE`
    Usage = 64,
    /// `EX_DATAERR`
    Data = 65,
    /// `EX_NOINPUT`
    NoInput = 66,
    /// A PIN is missing or wrong; `EX_NOUSER`, which is as near as any.
    Pin = 67,
    /// Too many wrong PINs; `EX_NOHOST`.
    Locked = 68,
    /// `EX_UNAVAILABLE`
    Unavailable = 69,
    /// `EX_SOFTWARE`
    Internal = 70,
    /// `EX_CANTCREAT`
    CantCreate = 73,
    /// `EX_IOERR`
    Output = 74,
    /// `EX_TEMPFAIL`
    Temporary = 75,
    /// `EX_NOPERM`
    NoPermission = 77,
    /// `EX_CONFIG`
    Schema = 78,
}

const MIGRATE: &str = "run `agent-gateway-authz migrate --config …` as the owner of the tables";
const TPM_DOWN: &str = "check that the TPM runs, and that --tcti or AGENT_GATEWAY_TCTI names it";
const DATABASE_DOWN: &str = "is Postgres running there, and does the role exist with that password";
const WRITER: &str = "the role needs to write: GRANT agent_gateway_writer TO it, and connect to \
                      the primary";
const SPKI_FORMS: &str = "take spki.hex or the certificate that `agent-gateway-sidecar init` made, or the \
                          public key of a mesh's certificate";
const POCA_KEY_FORMS: &str = "take what `agent-gateway-sidecar poca keygen` prints";
pub(super) const SYSTEM: &str = "the system's message says why";

impl Failure {
    /// What to do about it.
    #[expect(
        clippy::too_many_lines,
        reason = "one exhaustive match is where every failure has its status and hint"
    )]
    pub(super) fn verdict(&self) -> (Exit, String) {
        let (exit, hint) = match self {
            Self::NoDatabaseUrl | Self::NotText { .. } => (
                Exit::Usage,
                "set AGENT_GATEWAY_DATABASE_URL to postgres://user:password@host:5432/database, or \
                 give --database-url",
            ),
            Self::Tcti { .. } => (Exit::Usage, "set it right, or give --tcti"),
            Self::NoFilter { options, .. } => return (Exit::Usage, format!("give {options}")),
            Self::SeveralFilters { .. } => (
                Exit::Usage,
                "add --all-of if every one must match, or revoke one after the other",
            ),
            Self::NobodyToAsk => (
                Exit::Usage,
                "add --yes; `impact` shows first who loses what",
            ),
            Self::Pin(error) => pin(error),
            Self::Declined => (Exit::NothingMatched, "nothing was changed"),
            Self::Unconfirmed { .. } => (
                Exit::Temporary,
                "it is revoked in the registry; a service that can't reach it allows nothing soon",
            ),
            Self::NoAdmin => (
                Exit::Usage,
                "give --admin HOST:PORT or unix:/PATH: admin.grpc_addr or admin.socket of the service",
            ),
            Self::Replica { .. } => (
                Exit::Unavailable,
                "check --admin: it is admin.grpc_addr or admin.socket of the service",
            ),
            Self::NoSuchFilter { .. } => (
                Exit::Usage,
                "keys have --key and --spki, scopes --key and --destination, PoCA keys --id, --key, \
                 --identity and --public-key, tunnels all but --key",
            ),
            Self::Id { .. } | Self::Identity(_) => (
                Exit::Data,
                "write 1 to 256 bytes of UTF-8 without control characters",
            ),
            Self::Destination { text, .. } => (Exit::Data, destination(text)),
            Self::Subject(error) => subject(error),
            Self::PocaKey(error) => poca_key(error),
            Self::Open(error) => open(error),
            Self::Write(error) => write(error),
            Self::DatabaseSilent(_) => (
                Exit::Unavailable,
                "whether a change was made is unknown: look with `agent-gateway-registry list`",
            ),
            Self::Tpm(error) => tpm(error),
            Self::SoftwareKey(error) => software_key(error),
            Self::Sign(error) => sign(error),
            Self::KeyAbsent(_) => (
                Exit::NoInput,
                "check --tcti and --handle, or --key-file; `register-key` makes a key",
            ),
            Self::KeyUnknown(key_id) => return (Exit::Data, register(key_id)),
            Self::KeyInactive { .. } => (
                Exit::Data,
                "register another key (another --handle) under another id",
            ),
            Self::OtherKey { .. } => (
                Exit::Data,
                "check --tcti and --handle, or --key-file; `list keys` shows what is registered",
            ),
            Self::IdTaken { .. } => (
                Exit::CantCreate,
                "check --tcti and --handle, or --key-file; another key needs another id",
            ),
            Self::KeyTaken { .. } => (
                Exit::CantCreate,
                "use that id, or another key: another --handle or --key-file",
            ),
            Self::Root(failure) => return failure.verdict(),
            Self::NoScope(key_id) => {
                let grant = format!("`agent-gateway-registry grant-scope {key_id} DEST`");
                return (
                    Exit::Data,
                    format!("let the key delegate the agent's tools with {grant}"),
                );
            }
            Self::Scope { delegation, gap } => return (Exit::Data, scope(delegation, gap)),
            Self::NothingMatched { .. } | Self::NoSuchId(_) => (
                Exit::NothingMatched,
                "see what there is with `agent-gateway-registry list`",
            ),
            Self::Import { source, .. } => import(source),
            Self::AuditFile { source, .. } => match source.kind() {
                ErrorKind::InvalidData => (Exit::Data, "`audit verify` says more"),
                _ => (Exit::NoInput, SYSTEM),
            },
            Self::Elsewhere { source, .. } => elsewhere(source),
            Self::OneId(_) => (Exit::Usage, "give one --destination with --id"),
            Self::Unusable { .. } | Self::Key(_) | Self::Window(_) => (
                Exit::Internal,
                "nothing was written; this should not happen",
            ),
            Self::Output(_) => (
                Exit::Output,
                "see what there is now with `agent-gateway-registry list`",
            ),
            Self::NoTime => (Exit::Unavailable, "set the clock"),
            Self::Runtime(_) => (
                Exit::Internal,
                "the system refused a thread or a file descriptor",
            ),
        };
        (exit, hint.to_owned())
    }
}

fn destination(text: &str) -> &'static str {
    if text.is_ascii() {
        "write HOST or HOST:PORT, as in docstore or [2001:db8::1]:8443"
    } else {
        "write an international name in its ASCII form (xn--…)"
    }
}

fn register(key_id: &Id) -> String {
    format!("register it with `agent-gateway-registry register-key {key_id}`")
}

fn scope(
    Delegation {
        key_id,
        destination,
    }: &Delegation,
    gap: &ScopeGap,
) -> String {
    let grant = format!("`agent-gateway-registry grant-scope {key_id} {destination}`");
    match gap {
        ScopeGap::Short {
            covered: Some(covered),
            ..
        } => format!("give a shorter --valid, such as {covered}, or a longer scope with {grant}"),
        ScopeGap::Untrusted => {
            format!("have it signed with `agent-gateway-registry root sign {key_id}`")
        }
        ScopeGap::Short { covered: None, .. }
        | ScopeGap::Missing
        | ScopeGap::Future(_)
        | ScopeGap::Past(_) => format!("let the key delegate it with {grant}"),
    }
}

fn subject(error: &SubjectError) -> (Exit, &'static str) {
    match error {
        SubjectError::Read { source, .. } => match source.kind() {
            ErrorKind::PermissionDenied => (Exit::NoPermission, SYSTEM),
            _ => (Exit::NoInput, SPKI_FORMS),
        },
        SubjectError::TooLarge { .. }
        | SubjectError::BadPem
        | SubjectError::OtherPem { .. }
        | SubjectError::Spki(_)
        | SubjectError::Certificate(_) => (Exit::Data, SPKI_FORMS),
        SubjectError::NotP256 => (
            Exit::Data,
            "agents have P-256 keys; `agent-gateway-sidecar init` makes one",
        ),
        SubjectError::OtherIdentity { .. } => (
            Exit::Data,
            "check --identity (upper and lower case count) and whose certificate this is",
        ),
    }
}

fn poca_key(error: &PocaKeyError) -> (Exit, &'static str) {
    match error {
        PocaKeyError::Read { source, .. } => match source.kind() {
            ErrorKind::PermissionDenied => (Exit::NoPermission, SYSTEM),
            _ => (Exit::NoInput, POCA_KEY_FORMS),
        },
        PocaKeyError::TooLarge(_) | PocaKeyError::OtherPem | PocaKeyError::NotAKey(_) => {
            (Exit::Data, POCA_KEY_FORMS)
        }
    }
}

fn import(error: &ImportError) -> (Exit, &'static str) {
    match error {
        ImportError::Read(source) => match source.kind() {
            ErrorKind::PermissionDenied => (Exit::NoPermission, SYSTEM),
            ErrorKind::InvalidData => (Exit::Data, "it is not UTF-8 text"),
            _ => (Exit::NoInput, SYSTEM),
        },
        ImportError::CutOff(_) | ImportError::Line(..) => (
            Exit::Data,
            "nothing was imported: get the file again from where it was written",
        ),
        ImportError::Fault { .. } => (
            Exit::Data,
            "nothing was imported: the key needs a scope that begins before the permission; or leave \
             the line out",
        ),
        ImportError::Statement { fault, .. } => match fault {
            StatementFault::NoTrustRoot => (
                Exit::Usage,
                "nothing was imported: give --trust-root and --registry-id",
            ),
            StatementFault::NotSigned => (
                Exit::Data,
                "nothing was imported: check --trust-root, and have it signed for this registry",
            ),
            StatementFault::KeyUnknown => (
                Exit::Data,
                "nothing was imported: register the key, or import it before its scopes",
            ),
            StatementFault::Taken => (
                Exit::CantCreate,
                "nothing was imported: `agent-gateway-registry show` tells what is there",
            ),
        },
        ImportError::Taken { .. } => (
            Exit::CantCreate,
            "nothing was imported: `agent-gateway-registry show` tells what is there",
        ),
    }
}

pub(super) fn elsewhere(error: &ElsewhereError) -> (Exit, &'static str) {
    match error {
        ElsewhereError::Read(source) => match source.kind() {
            ErrorKind::PermissionDenied => (Exit::NoPermission, SYSTEM),
            _ => (Exit::NoInput, SYSTEM),
        },
        ElsewhereError::TooLarge | ElsewhereError::Text(_) => (
            Exit::Data,
            "give one text exactly as --dry-run wrote it, a permission's with one destination",
        ),
        ElsewhereError::NoRoot | ElsewhereError::Denied { .. } => (
            Exit::Data,
            "sign the file's exact bytes with the registered key: ECDSA, SHA-256, DER",
        ),
    }
}

fn open(error: &OpenError) -> (Exit, &'static str) {
    match error {
        OpenError::BadUrl => (
            Exit::Usage,
            "it looks like postgres://user:password@host:5432/database",
        ),
        OpenError::TimedOut(_) | OpenError::Unreachable(_) => (Exit::Unavailable, DATABASE_DOWN),
        OpenError::Schema(SchemaError::Missing | SchemaError::Older { .. }) => {
            (Exit::Schema, MIGRATE)
        }
        OpenError::OtherRegistry { .. } => (Exit::Data, "check the database url and --registry-id"),
        OpenError::Schema(SchemaError::Newer { .. }) => (
            Exit::Schema,
            "run the version of this program that made it, or a newer one",
        ),
        OpenError::NoRight(_) => (Exit::NoPermission, WRITER),
        OpenError::Schema(SchemaError::Unreadable(_)) => (
            Exit::Schema,
            "the role needs at least SELECT there: GRANT agent_gateway_writer TO it",
        ),
    }
}

fn write(error: &WriteError) -> (Exit, &'static str) {
    match error {
        WriteError::Exists("permission id" | "PoCA key id") => (
            Exit::CantCreate,
            "see it with `agent-gateway-registry show`; --replace puts the new one in its place",
        ),
        WriteError::Exists(_) => (
            Exit::CantCreate,
            "see what there is with `agent-gateway-registry list keys`",
        ),
        WriteError::Forbidden(_) => (Exit::NoPermission, WRITER),
        WriteError::Inconsistent { .. } => (
            Exit::Data,
            "something else wrote that row; its owner must mend it",
        ),
        WriteError::Failed(_) => (
            Exit::Unavailable,
            "try again once the database works; look with `agent-gateway-registry list` first",
        ),
    }
}

fn pin(error: &PinFailure) -> (Exit, &'static str) {
    match error {
        PinFailure::Variable { .. } => (Exit::Pin, "set it to the PIN, or to nothing at all"),
        PinFailure::Typed(_) | PinFailure::Differ => {
            (Exit::Pin, "type the same short text both times")
        }
        PinFailure::Missing => (
            Exit::Usage,
            "set AGENT_GATEWAY_TPM_USER_PIN, or run this at a terminal to be asked",
        ),
    }
}

fn tpm(error: &TpmError) -> (Exit, &'static str) {
    match error {
        TpmError::HandleTaken { .. } => (Exit::Data, "choose another --handle"),
        TpmError::OwnerPin { .. } => (Exit::Pin, "set AGENT_GATEWAY_TPM_SO_PIN to the owner's PIN"),
        TpmError::Full { .. } => (
            Exit::CantCreate,
            "remove a key that nobody needs: `tpm2_getcap handles-persistent` lists them, \
             `tpm2_evictcontrol -c HANDLE` removes one",
        ),
        TpmError::Unreachable { .. }
        | TpmError::TimedOut { .. }
        | TpmError::Refused { .. }
        | TpmError::Vanished { .. }
        | TpmError::Thread(_)
        | TpmError::ThreadEnded => (Exit::Unavailable, TPM_DOWN),
    }
}

fn sign(error: &SignError) -> (Exit, &'static str) {
    match error {
        SignError::Unavailable(error) => tpm(error),
        SignError::TimedOut { .. } | SignError::Busy { .. } | SignError::Refused { .. } => {
            (Exit::Unavailable, TPM_DOWN)
        }
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
        SignError::KeyChanged { .. } => (Exit::Data, "check who else uses this TPM"),
        SignError::Software => (Exit::Internal, "nothing was written"),
    }
}

fn software_key(error: &SoftwareKeyError) -> (Exit, &'static str) {
    match error {
        SoftwareKeyError::Exists { .. } => (Exit::CantCreate, "try again: it was just made"),
        SoftwareKeyError::Exposed { .. } => (
            Exit::NoPermission,
            "if nobody can have read it, chmod 600; else make another key",
        ),
        SoftwareKeyError::NotAKey { .. } => (
            Exit::Data,
            "name another --key-file; `register-key` makes one that is missing",
        ),
        SoftwareKeyError::Read { source, .. } => match source.kind() {
            ErrorKind::PermissionDenied => (Exit::NoPermission, SYSTEM),
            _ => (Exit::NoInput, SYSTEM),
        },
        SoftwareKeyError::Write { source, .. } => match source.kind() {
            ErrorKind::PermissionDenied => (Exit::NoPermission, SYSTEM),
            _ => (Exit::CantCreate, "the folder must exist and be writable"),
        },
    }
}
