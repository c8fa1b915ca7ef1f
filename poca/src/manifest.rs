//! The manifest: its JSON, its bounds, and the two headers that carry it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use permission::{Identity, Timestamp};
use serde::{Deserialize, Serialize};

use crate::key::SecretKey;
use crate::reason::Reason;

/// The one version there is.
const VERSION: &str = "poca-1";
/// Longest `X-PoCA-Manifest` that is looked at, in bytes.
pub const MAX_HEADER_BYTES: usize = 8192;
/// Longest tool, nonce and scope, in bytes of UTF-8.
pub const MAX_TEXT_BYTES: usize = 256;
/// Longest intent, in bytes of UTF-8.
pub const MAX_INTENT_BYTES: usize = 1024;
/// Most scopes.
pub const MAX_SCOPES: usize = 32;

/// What an agent says about one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Who calls: the identity in the certificate that the call is made with.
    pub caller: Identity,
    /// Which tool.
    pub tool: String,
    /// What for, in the agent's words; nothing is checked against it.
    pub intent: String,
    /// What the agent says it needs; nothing is checked against them.
    pub scopes: Vec<String>,
    /// SHA-256 of the whole request body.
    pub payload_sha256: [u8; 32],
    /// Never used before by this caller: 16 random bytes in hexadecimal do.
    pub nonce: String,
    /// When it ends; carried in whole seconds.
    pub expires: Timestamp,
}

/// A manifest that no verifier would take; names the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field} is empty, too long, or holds a control character")]
pub struct ManifestError {
    /// The field's name in the JSON.
    pub field: &'static str,
}

/// The values of the two headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedHeaders {
    /// Of `X-PoCA-Manifest`.
    pub manifest: String,
    /// Of `X-PoCA-Signature`.
    pub signature: String,
}

/// Writes and signs a manifest.
pub fn sign(key: &SecretKey, manifest: &Manifest) -> Result<SignedHeaders, ManifestError> {
    let claims = Claims::of(manifest);
    claims.check_bounds()?;
    for (text, field) in [(&manifest.tool, "tool"), (&manifest.nonce, "nonce")] {
        if text.is_empty() {
            return Err(ManifestError { field });
        }
    }
    let too_long = ManifestError { field: "manifest" };
    let json = serde_json::to_vec(&claims).map_err(|_| too_long)?;
    let manifest = URL_SAFE_NO_PAD.encode(json);
    if manifest.len() > MAX_HEADER_BYTES {
        return Err(too_long);
    }
    let signature = URL_SAFE_NO_PAD.encode(key.sign(manifest.as_bytes()));
    Ok(SignedHeaders {
        manifest,
        signature,
    })
}

/// The manifest's JSON. Unknown and repeated keys are refused: nobody is bound by what one reader
/// ignores and another one sees.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claims {
    ver: Option<String>,
    caller_id: Option<String>,
    tool: Option<String>,
    intent: Option<String>,
    scopes: Option<Vec<String>>,
    payload_sha256: Option<String>,
    nonce: Option<String>,
    exp: Option<String>,
}

/// Claims among which none is missing that is needed.
#[derive(Debug)]
pub(crate) struct Complete {
    pub(crate) caller_id: String,
    pub(crate) tool: String,
    pub(crate) intent: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) payload_sha256: String,
    pub(crate) nonce: String,
    pub(crate) exp: String,
}

impl Claims {
    fn of(manifest: &Manifest) -> Self {
        Self {
            ver: Some(VERSION.to_owned()),
            caller_id: Some(manifest.caller.to_string()),
            tool: Some(manifest.tool.clone()),
            intent: Some(manifest.intent.clone()),
            scopes: Some(manifest.scopes.clone()),
            payload_sha256: Some(hex::encode(manifest.payload_sha256)),
            nonce: Some(manifest.nonce.clone()),
            exp: Some(whole_seconds(manifest.expires)),
        }
    }

    /// Reads the value of `X-PoCA-Manifest`.
    pub(crate) fn read(header: &[u8]) -> Result<Self, Reason> {
        if header.len() > MAX_HEADER_BYTES {
            return Err(Reason::ManifestBase64);
        }
        let json = URL_SAFE_NO_PAD
            .decode(header)
            .map_err(|_| Reason::ManifestBase64)?;
        // serde_json would also read the fields from an array.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err(Reason::ManifestJson);
        }
        let claims: Self = serde_json::from_slice(&json).map_err(|_| Reason::ManifestJson)?;
        let version = claims.ver.as_deref().unwrap_or_default();
        if !matches!(version, "" | VERSION) || claims.check_bounds().is_err() {
            return Err(Reason::ManifestJson);
        }
        Ok(claims)
    }

    pub(crate) fn complete(self) -> Result<Complete, Reason> {
        let needed = |field: Option<String>| {
            field
                .filter(|text| !text.is_empty())
                .ok_or(Reason::ManifestMissingFields)
        };
        Ok(Complete {
            caller_id: needed(self.caller_id)?,
            tool: needed(self.tool)?,
            payload_sha256: needed(self.payload_sha256)?,
            nonce: needed(self.nonce)?,
            exp: needed(self.exp)?,
            intent: self.intent.unwrap_or_default(),
            scopes: self.scopes.unwrap_or_default(),
        })
    }

    fn check_bounds(&self) -> Result<(), ManifestError> {
        let fits = |text: &String, max| text.len() <= max && !text.chars().any(char::is_control);
        for (text, field, max) in [
            (&self.caller_id, "caller_id", MAX_TEXT_BYTES),
            (&self.tool, "tool", MAX_TEXT_BYTES),
            (&self.intent, "intent", MAX_INTENT_BYTES),
            (&self.payload_sha256, "payload_sha256", MAX_TEXT_BYTES),
            (&self.nonce, "nonce", MAX_TEXT_BYTES),
            (&self.exp, "exp", MAX_TEXT_BYTES),
        ] {
            if !text.as_ref().is_none_or(|text| fits(text, max)) {
                return Err(ManifestError { field });
            }
        }
        let scopes = self.scopes.as_deref().unwrap_or_default();
        if scopes.len() > MAX_SCOPES || !scopes.iter().all(|scope| fits(scope, MAX_TEXT_BYTES)) {
            return Err(ManifestError { field: "scopes" });
        }
        Ok(())
    }
}

/// As Go's `time.RFC3339` writes UTC.
fn whole_seconds(time: Timestamp) -> String {
    let text = time.to_string();
    let seconds = text
        .split_once('.')
        .map_or(text.as_str(), |(seconds, _)| seconds);
    format!("{seconds}Z")
}
