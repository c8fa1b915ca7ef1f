//! Signed rows as lines of JSON: what `export` and `--offline` write and `import` reads.

use permission::{
    Claim, Destination, ECDSA_P256_SHA256, Id, Identity, Permission, PocaKey, PrincipalKey, Spki,
    Statement, Timestamp, Window,
};
use poca::PublicKey;
use registry::{PermissionEntry, PocaKeyEntry, SignedRow, StatementRow};
use serde::{Deserialize, Serialize};

use crate::terminal::json_line;

/// The text that is signed, and so the version of the line.
const V1: &str = "agent-gateway-permission-v1";
const POCA_KEY_V1: &str = "agent-gateway-poca-key-v1";
const KEY_V1: &str = "agent-gateway-signing-key-v1";
const SCOPE_V1: &str = "agent-gateway-scope-v1";

/// The line's fields, as text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    version: String,
    permission_id: String,
    key_id: String,
    identity: String,
    spki: String,
    destination: String,
    not_before: String,
    not_after: String,
    revoked_at: Option<String>,
    signature: String,
}

/// As [`Line`], of an agent's key for proofs of context.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PocaKeyLine {
    version: String,
    poca_key_id: String,
    key_id: String,
    identity: String,
    ed25519_public_key: String,
    not_before: String,
    not_after: String,
    revoked_at: Option<String>,
    signature: String,
}

/// As [`Line`], of a key or a scope.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatementLine {
    version: String,
    registry_id: String,
    key_id: String,
    spki: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    not_before: String,
    not_after: String,
    revoked_at: Option<String>,
    root_signature: Option<String>,
}

/// What tells one kind of line from another.
#[derive(Debug, Deserialize)]
struct AnyLine {
    version: String,
}

/// A row of any kind.
#[derive(Debug)]
pub(crate) enum AnyRow {
    Permission(SignedRow<Permission>),
    PocaKey(SignedRow<PocaKey>),
    Statement(StatementRow),
}

/// Why a line is no signed row.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Not JSON, cut off, or with other fields.
    #[error("not a line that `export` or `--offline` wrote: {0}")]
    Json(#[from] serde_json::Error),
    /// Made by another version.
    #[error("version {0} is not {V1}, {POCA_KEY_V1}, {KEY_V1} or {SCOPE_V1}")]
    Version(String),
    /// A field that can't be what it should be.
    #[error("unusable {0}")]
    Field(&'static str),
}

/// Writes a row as stored, whatever it holds.
pub(crate) fn entry(entry: &PermissionEntry) -> String {
    written(&Line {
        version: V1.to_owned(),
        permission_id: entry.permission_id.clone(),
        key_id: entry.signing_key_id.clone(),
        identity: entry.subject_identity.clone(),
        spki: hex::encode(&entry.subject_spki),
        destination: entry.destination.clone(),
        not_before: entry.window.not_before().to_string(),
        not_after: entry.window.not_after().to_string(),
        revoked_at: entry.revoked_at.map(|time| time.to_string()),
        signature: hex::encode(&entry.signature),
    })
}

/// Writes what was just signed.
pub(crate) fn signed(permission: &Permission, signature: &[u8]) -> String {
    written(&Line {
        version: V1.to_owned(),
        permission_id: permission.permission_id.to_string(),
        key_id: permission.signing_key_id.to_string(),
        identity: permission.subject_identity.to_string(),
        spki: permission.subject_spki.to_hex(),
        destination: permission.destination.to_string(),
        not_before: permission.window.not_before().to_string(),
        not_after: permission.window.not_after().to_string(),
        revoked_at: None,
        signature: hex::encode(signature),
    })
}

/// As [`entry`], of an agent's key for proofs of context.
pub(crate) fn poca_key_entry(entry: &PocaKeyEntry) -> String {
    written(&PocaKeyLine {
        version: POCA_KEY_V1.to_owned(),
        poca_key_id: entry.poca_key_id.clone(),
        key_id: entry.signing_key_id.clone(),
        identity: entry.subject_identity.clone(),
        ed25519_public_key: hex::encode(&entry.ed25519_public_key),
        not_before: entry.window.not_before().to_string(),
        not_after: entry.window.not_after().to_string(),
        revoked_at: entry.revoked_at.map(|time| time.to_string()),
        signature: hex::encode(&entry.signature),
    })
}

/// As [`signed`], of an agent's key for proofs of context.
pub(crate) fn signed_poca_key(key: &PocaKey, signature: &[u8]) -> String {
    written(&PocaKeyLine {
        version: POCA_KEY_V1.to_owned(),
        poca_key_id: key.poca_key_id.to_string(),
        key_id: key.signing_key_id.to_string(),
        identity: key.subject_identity.to_string(),
        ed25519_public_key: hex::encode(key.ed25519_public_key),
        not_before: key.window.not_before().to_string(),
        not_after: key.window.not_after().to_string(),
        revoked_at: None,
        signature: hex::encode(signature),
    })
}

/// Writes a key or a scope.
pub(crate) fn statement(row: &StatementRow) -> String {
    let statement = &row.statement;
    let (version, destination) = match &statement.claim {
        Claim::Signs => (KEY_V1, None),
        Claim::Delegates(destination) => (SCOPE_V1, Some(destination.to_string())),
    };
    written(&StatementLine {
        version: version.to_owned(),
        registry_id: statement.registry_id.to_string(),
        key_id: statement.key_id.to_string(),
        spki: statement.key.spki().to_hex(),
        destination,
        not_before: statement.window.not_before().to_string(),
        not_after: statement.window.not_after().to_string(),
        revoked_at: row.revoked_at.map(|time| time.to_string()),
        root_signature: row.root_signature.as_ref().map(hex::encode),
    })
}

fn written(line: &impl Serialize) -> String {
    // Strings under string keys: nothing that JSON could refuse.
    json_line(&serde_json::to_value(line).unwrap_or_default())
}

/// Reads a line back; nothing is verified.
pub(crate) fn read(text: &str) -> Result<AnyRow, LineError> {
    let AnyLine { version } = serde_json::from_str(text)?;
    match version.as_str() {
        V1 => permission(serde_json::from_str(text)?).map(AnyRow::Permission),
        POCA_KEY_V1 => poca_key(serde_json::from_str(text)?).map(AnyRow::PocaKey),
        KEY_V1 | SCOPE_V1 => about_a_key(serde_json::from_str(text)?).map(AnyRow::Statement),
        _ => Err(LineError::Version(version)),
    }
}

fn id(text: &str, field: &'static str) -> Result<Id, LineError> {
    Id::parse(text).map_err(|_| LineError::Field(field))
}

fn time(text: &str, field: &'static str) -> Result<Timestamp, LineError> {
    text.parse().map_err(|_| LineError::Field(field))
}

fn destination(text: &str) -> Result<Destination, LineError> {
    Destination::from_normal_form(text).ok_or(LineError::Field("destination"))
}

fn window(not_before: &str, not_after: &str) -> Result<Window, LineError> {
    let (from, to) = (
        time(not_before, "not_before")?,
        time(not_after, "not_after")?,
    );
    Window::new(from, to).map_err(|_| LineError::Field("not_after"))
}

fn about_a_key(line: StatementLine) -> Result<StatementRow, LineError> {
    let claim = match (line.version == SCOPE_V1, &line.destination) {
        (true, Some(text)) => Claim::Delegates(destination(text)?),
        (false, None) => Claim::Signs,
        _ => return Err(LineError::Field("destination")),
    };
    let spki = Spki::from_hex(&line.spki).map_err(|_| LineError::Field("spki"))?;
    let revoked_at = line.revoked_at.map(|text| time(&text, "revoked_at"));
    let signature = line.root_signature.map(hex::decode).transpose();
    Ok(StatementRow {
        statement: Statement {
            registry_id: id(&line.registry_id, "registry_id")?,
            key_id: id(&line.key_id, "key_id")?,
            key: PrincipalKey::from_stored(ECDSA_P256_SHA256, spki.as_der())
                .map_err(|_| LineError::Field("spki"))?,
            claim,
            window: window(&line.not_before, &line.not_after)?,
        },
        root_signature: signature.map_err(|_| LineError::Field("root_signature"))?,
        revoked_at: revoked_at.transpose()?,
    })
}

fn poca_key(line: PocaKeyLine) -> Result<SignedRow<PocaKey>, LineError> {
    let revoked_at = line.revoked_at.map(|text| time(&text, "revoked_at"));
    let public_key = hex::decode(&line.ed25519_public_key).ok();
    let public_key = public_key.and_then(|bytes| PublicKey::from_bytes(&bytes).ok());
    let public_key = public_key.ok_or(LineError::Field("ed25519_public_key"))?;
    Ok(SignedRow {
        signed: PocaKey {
            poca_key_id: id(&line.poca_key_id, "poca_key_id")?,
            signing_key_id: id(&line.key_id, "key_id")?,
            subject_identity: Identity::parse(&line.identity)
                .map_err(|_| LineError::Field("identity"))?,
            ed25519_public_key: public_key.to_bytes(),
            window: window(&line.not_before, &line.not_after)?,
        },
        signature: hex::decode(&line.signature).map_err(|_| LineError::Field("signature"))?,
        revoked_at: revoked_at.transpose()?,
    })
}

fn permission(line: Line) -> Result<SignedRow<Permission>, LineError> {
    let revoked_at = line.revoked_at.map(|text| time(&text, "revoked_at"));
    Ok(SignedRow {
        signed: Permission {
            permission_id: id(&line.permission_id, "permission_id")?,
            signing_key_id: id(&line.key_id, "key_id")?,
            subject_identity: Identity::parse(&line.identity)
                .map_err(|_| LineError::Field("identity"))?,
            subject_spki: Spki::from_hex(&line.spki).map_err(|_| LineError::Field("spki"))?,
            destination: destination(&line.destination)?,
            window: window(&line.not_before, &line.not_after)?,
        },
        signature: hex::decode(&line.signature).map_err(|_| LineError::Field("signature"))?,
        revoked_at: revoked_at.transpose()?,
    })
}
