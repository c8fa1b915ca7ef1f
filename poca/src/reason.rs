//! Why a proof is refused, in codes that stay stable.

use std::fmt;

/// Every reason for which a call's proof is refused, in the order of the checks.
///
/// `Display` is the code, which appears in answers, audit and metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// One of the two headers is absent or empty.
    MissingHeaders,
    /// The manifest is not base64url without padding, or is over its bound.
    ManifestBase64,
    /// Not one JSON object of a manifest's fields: another type, an unknown or a repeated key,
    /// another version, a text that is too long or holds control characters.
    ManifestJson,
    /// A field without which nothing can be checked is absent, null or empty.
    ManifestMissingFields,
    /// Made by somebody other than the certificate's identity.
    CallerMismatch,
    /// Made for another tool.
    ToolMismatch,
    /// The expiry is not RFC 3339.
    ExpiryUnparseable,
    /// The expiry has passed.
    Expired,
    /// The expiry is further away than a manifest may live.
    ExpiryTooFar,
    /// Made for another body.
    PayloadHashMismatch,
    /// The signature is not base64url without padding.
    SignatureBase64,
    /// No active key of the caller is registered.
    UnknownCallerKey,
    /// None of the caller's keys made the signature.
    SignatureInvalid,
    /// The nonce was used before. Never given by [`verify`](crate::verify()): whoever remembers
    /// nonces gives it, after all other checks, so that nobody can use up another's nonce.
    Replay,
}

impl Reason {
    /// All of them, in the order of the checks.
    pub const ALL: [Self; 14] = [
        Self::MissingHeaders,
        Self::ManifestBase64,
        Self::ManifestJson,
        Self::ManifestMissingFields,
        Self::CallerMismatch,
        Self::ToolMismatch,
        Self::ExpiryUnparseable,
        Self::Expired,
        Self::ExpiryTooFar,
        Self::PayloadHashMismatch,
        Self::SignatureBase64,
        Self::UnknownCallerKey,
        Self::SignatureInvalid,
        Self::Replay,
    ];

    /// The stable `snake_case` code.
    pub fn code(self) -> &'static str {
        match self {
            Self::MissingHeaders => "poca_missing_headers",
            Self::ManifestBase64 => "poca_manifest_b64_decode",
            Self::ManifestJson => "poca_manifest_json",
            Self::ManifestMissingFields => "poca_manifest_missing_fields",
            Self::CallerMismatch => "poca_caller_mismatch",
            Self::ToolMismatch => "poca_tool_mismatch",
            Self::ExpiryUnparseable => "poca_exp_parse",
            Self::Expired => "poca_expired",
            Self::ExpiryTooFar => "poca_exp_too_far",
            Self::PayloadHashMismatch => "poca_payload_hash_mismatch",
            Self::SignatureBase64 => "poca_sig_b64_decode",
            Self::UnknownCallerKey => "poca_unknown_caller_pubkey",
            Self::SignatureInvalid => "poca_sig_invalid",
            Self::Replay => "poca_replay",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
