//! A signed permission as a line of JSON: what `export` and `grant --offline` write and `import`
//! reads.

use permission::{Destination, Id, Identity, Permission, Spki, Timestamp, Window};
use registry::{PermissionEntry, SignedRow};
use serde::{Deserialize, Serialize};

use crate::terminal::json_line;

/// The text that is signed, and so the version of the line.
const V1: &str = "agent-gateway-permission-v1";

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

/// Why a line is no signed permission.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Not JSON, cut off, or with other fields.
    #[error("not a line that `export` or `grant --offline` wrote: {0}")]
    Json(#[from] serde_json::Error),
    /// Made by another version.
    #[error("version {0} is not {V1}")]
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

fn written(line: &Line) -> String {
    // Strings under string keys: nothing that JSON could refuse.
    json_line(&serde_json::to_value(line).unwrap_or_default())
}

/// Reads a line back; nothing is verified.
pub(crate) fn read(text: &str) -> Result<SignedRow, LineError> {
    let line: Line = serde_json::from_str(text)?;
    if line.version != V1 {
        return Err(LineError::Version(line.version));
    }
    let time = |text: &str, field| {
        text.parse::<Timestamp>()
            .map_err(|_| LineError::Field(field))
    };
    let id = |text: &str, field| Id::parse(text).map_err(|_| LineError::Field(field));
    let window = Window::new(
        time(&line.not_before, "not_before")?,
        time(&line.not_after, "not_after")?,
    );
    let revoked_at = line.revoked_at.map(|text| time(&text, "revoked_at"));
    Ok(SignedRow {
        permission: Permission {
            permission_id: id(&line.permission_id, "permission_id")?,
            signing_key_id: id(&line.key_id, "key_id")?,
            subject_identity: Identity::parse(&line.identity)
                .map_err(|_| LineError::Field("identity"))?,
            subject_spki: Spki::from_hex(&line.spki).map_err(|_| LineError::Field("spki"))?,
            destination: Destination::from_normal_form(&line.destination)
                .ok_or(LineError::Field("destination"))?,
            window: window.map_err(|_| LineError::Field("not_after"))?,
        },
        signature: hex::decode(&line.signature).map_err(|_| LineError::Field("signature"))?,
        revoked_at: revoked_at.transpose()?,
    })
}
