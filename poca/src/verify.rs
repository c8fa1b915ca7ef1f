//! The checks, in their order, and what is known once they have passed.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use permission::{Identity, Timestamp};

use crate::key::PublicKey;
use crate::manifest::Claims;
use crate::reason::Reason;

/// How far the agent's clock may be from ours.
pub const CLOCK_SKEW: Duration = Duration::from_mins(1);

/// The values of the two headers, where the call has them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Headers<'a> {
    /// Of `X-PoCA-Manifest`.
    pub manifest: Option<&'a str>,
    /// Of `X-PoCA-Signature`.
    pub signature: Option<&'a str>,
}

/// What the call is, as the verifier sees it.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The certificate's identity.
    pub caller: &'a Identity,
    /// The tool that is called.
    pub tool: &'a str,
    /// SHA-256 of the whole request body.
    pub payload_sha256: [u8; 32],
    /// The caller's keys that are active now.
    pub keys: &'a [PublicKey],
    /// The time.
    pub now: Timestamp,
    /// How far away an expiry may be.
    pub max_ttl: Duration,
}

/// A call's proof: signed by the caller, for this tool and this body, and not expired. Whether its
/// nonce was used before is still to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    caller: Identity,
    nonce: String,
    expires_at: Timestamp,
    intent: String,
    scopes: Vec<String>,
    key: PublicKey,
}

impl Proof {
    /// Who signed.
    pub fn caller(&self) -> &Identity {
        &self.caller
    }

    /// What the caller never used before, 1 to 256 bytes.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// The first moment at which the same headers are refused as expired; until then the nonce
    /// must be remembered. It is [`CLOCK_SKEW`] after the manifest's own expiry.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// What for, in the agent's words.
    pub fn intent(&self) -> &str {
        &self.intent
    }

    /// What the agent says it needs.
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }

    /// Which of the caller's keys signed.
    pub fn key(&self) -> PublicKey {
        self.key
    }
}

/// Holds a call's headers against what the call is. The first check that fails gives the reason.
pub fn verify(headers: &Headers<'_>, expected: &Expected<'_>) -> Result<Proof, Reason> {
    let (Some(manifest @ [_, ..]), Some(signature @ [_, ..])) = (
        headers.manifest.map(str::as_bytes),
        headers.signature.map(str::as_bytes),
    ) else {
        return Err(Reason::MissingHeaders);
    };
    let claims = Claims::read(manifest)?.complete()?;
    if claims.caller_id != expected.caller.as_str() {
        return Err(Reason::CallerMismatch);
    }
    if claims.tool != expected.tool {
        return Err(Reason::ToolMismatch);
    }
    let expires_at = live(&claims.exp, expected)?;
    if claims.payload_sha256 != hex::encode(expected.payload_sha256) {
        return Err(Reason::PayloadHashMismatch);
    }
    let key = signer(manifest, signature, expected.keys)?;
    Ok(Proof {
        caller: expected.caller.clone(),
        nonce: claims.nonce,
        expires_at,
        intent: claims.intent,
        scopes: claims.scopes,
        key,
    })
}

/// The end of a manifest that has not ended yet and doesn't live too long. The clock that set it
/// may differ from ours by [`CLOCK_SKEW`], one way or the other.
fn live(exp: &str, expected: &Expected<'_>) -> Result<Timestamp, Reason> {
    let exp = expiry(exp).ok_or(Reason::ExpiryUnparseable)?;
    // At its last moment, skew included, it still counts.
    let expires_at = exp.saturating_add_micros(micros(CLOCK_SKEW) + 1);
    if expected.now >= expires_at {
        return Err(Reason::Expired);
    }
    let longest = micros(expected.max_ttl).saturating_add(micros(CLOCK_SKEW));
    if exp > expected.now.saturating_add_micros(longest) {
        return Err(Reason::ExpiryTooFar);
    }
    Ok(expires_at)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// RFC 3339 in the forms that Go's `time.RFC3339` reads: of the RFC's liberties (lower case, a
/// space for the `T`, leap seconds) none.
fn expiry(text: &str) -> Option<Timestamp> {
    let (date_time, rest) = text.split_at_checked("2026-05-01T00:00:00".len())?;
    let shape = |text: &str, shape: &str| {
        text.len() == shape.len()
            && (text.bytes().zip(shape.bytes())).all(|(byte, shape)| match shape {
                b'0' => byte.is_ascii_digit(),
                other => byte == other,
            })
    };
    let fraction = rest.strip_prefix('.').map_or(0, |digits| {
        1 + digits.bytes().take_while(u8::is_ascii_digit).count()
    });
    let zone = rest.get(fraction..)?;
    let plain = shape(date_time, "0000-00-00T00:00:00")
        && !date_time.ends_with(":60")
        && fraction != 1
        && (zone == "Z" || shape(zone, "+00:00") || shape(zone, "-00:00"));
    plain.then(|| text.parse().ok()).flatten()
}

/// Which of the caller's keys made the signature; it is over the header's text.
fn signer(manifest: &[u8], signature: &[u8], keys: &[PublicKey]) -> Result<PublicKey, Reason> {
    let signature = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| Reason::SignatureBase64)?;
    if keys.is_empty() {
        return Err(Reason::UnknownCallerKey);
    }
    keys.iter()
        .find(|key| key.signed(manifest, &signature))
        .copied()
        .ok_or(Reason::SignatureInvalid)
}

#[cfg(test)]
mod tests;
