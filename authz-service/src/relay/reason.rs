//! Why a tool call is denied, in codes that stay stable, and the one place that turns them into
//! statuses.

use std::fmt;

use crate::check::Telling;

/// Every reason for which a call is denied. `Display` is the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// As for a tunnel: who calls, whether a signed permission leads to the tool, and its address.
    Permission(permission::Reason),
    /// Another method than POST, or another path.
    MethodNotAllowed,
    /// The body is larger than what is carried.
    BodyTooLarge,
    /// The body has a content coding: what would be looked at isn't what the tool would read.
    BodyUnreadable,
    /// Declared to be JSON, and not JSON.
    JsonParseError,
    /// An object with `tool` that is no envelope.
    EnvelopeInvalid,
    /// No tool of that name is configured.
    UnknownTool,
    /// The context of the call is not proven.
    Poca(poca::Reason),
    /// Nobody can tell now whether the proof was used before.
    NoncesUnavailable,
    /// The call names a contract that there isn't.
    UnknownContract,
    /// The payload doesn't meet its contract.
    SchemaRequestInvalid,
    /// The policy says no.
    Policy,
    /// The policy failed, took too long, or gave no answer.
    PolicyError,
    /// The OPA server gave no answer in time.
    OpaUnreachable,
    /// The OPA server's answer is none.
    OpaBadResponse,
    /// The tool's URL is not on the egress list.
    EgressDenied,
    /// Too many calls are being looked at.
    Overloaded,
}

impl Reason {
    /// The stable `snake_case` code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Permission(reason) => reason.code(),
            Self::MethodNotAllowed => "method_not_allowed",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyUnreadable => "body_unreadable",
            Self::JsonParseError => "json_parse_error",
            Self::EnvelopeInvalid => "envelope_invalid",
            Self::UnknownTool => "unknown_tool",
            Self::Poca(reason) => reason.code(),
            Self::NoncesUnavailable => "poca_nonces_unavailable",
            Self::UnknownContract => "unknown_contract",
            Self::SchemaRequestInvalid => "schema_request_invalid",
            Self::Policy => "policy",
            Self::PolicyError => "policy_error",
            Self::OpaUnreachable => "opa_unreachable",
            Self::OpaBadResponse => "opa_bad_response",
            Self::EgressDenied => "egress_denied",
            Self::Overloaded => "overloaded",
        }
    }

    /// All codes under which the existing gateway's audit is searched: what kind of refusal, and
    /// the code itself.
    pub fn codes(self) -> Vec<&'static str> {
        match self {
            Self::Poca(reason) => vec!["forbidden_by_poca", reason.code()],
            Self::JsonParseError | Self::UnknownContract => {
                vec![self.code(), Self::SchemaRequestInvalid.code()]
            }
            Self::PolicyError | Self::OpaUnreachable | Self::OpaBadResponse => {
                vec![Self::Policy.code(), self.code()]
            }
            Self::Permission(_)
            | Self::MethodNotAllowed
            | Self::BodyTooLarge
            | Self::BodyUnreadable
            | Self::EnvelopeInvalid
            | Self::UnknownTool
            | Self::NoncesUnavailable
            | Self::SchemaRequestInvalid
            | Self::Policy
            | Self::EgressDenied
            | Self::Overloaded => vec![self.code()],
        }
    }

    /// How it is told.
    pub(crate) fn telling(self) -> Telling {
        let told = |status, error, hint| Telling {
            status,
            error,
            hint,
            proxy_error: match status {
                403 => "http_request_denied",
                503 => "proxy_internal_error",
                _ => "http_request_error",
            },
        };
        let blocked = |hint| told(403, "blocked by policy", hint);
        let malformed = |hint| told(400, "malformed request", hint);
        let not_met = |hint| told(422, "payload not acceptable", hint);
        match self {
            Self::Permission(reason) => Telling::of(reason),
            Self::MethodNotAllowed => {
                told(405, "method not allowed", "tools are called by POST /relay")
            }
            Self::BodyTooLarge => told(
                413,
                "body too large",
                "a call's body may have 2 MiB at most",
            ),
            Self::BodyUnreadable => malformed("send the body without content-encoding"),
            Self::EnvelopeInvalid => malformed(
                "an object with `tool` must be exactly {\"tool\": \"name\", \"payload\": …}",
            ),
            Self::UnknownTool => malformed("there is no such tool here; check its name"),
            Self::Poca(reason) => blocked(poca_hint(reason)),
            Self::NoncesUnavailable => told(
                503,
                "no decision could be made",
                "the gateway can't tell now whether this proof was used before; retry later, with \
                 a new one",
            ),
            Self::JsonParseError => not_met(
                "the body is declared to be JSON and is not, or not JSON that all readers \
                 understand alike (duplicate keys, nesting beyond 127 levels)",
            ),
            Self::UnknownContract => not_met("there is no contract with that X-Contract-ID"),
            Self::SchemaRequestInvalid => {
                not_met("the payload does not meet the contract, at `pointer` and by `keyword`")
            }
            Self::Policy => {
                blocked("the gateway's policy does not let this caller call this tool; don't retry")
            }
            Self::PolicyError => {
                blocked("the gateway's policy can't be evaluated; tell its operator")
            }
            Self::OpaUnreachable => {
                blocked("the gateway's policy server does not answer; retry later")
            }
            Self::OpaBadResponse => {
                blocked("the gateway's policy server gives no usable answer; tell its operator")
            }
            Self::EgressDenied => blocked("calls to this tool's address are not allowed here"),
            Self::Overloaded => told(
                503,
                "no decision could be made",
                "the gateway has too many calls at once; retry later",
            ),
        }
    }
}

/// What an agent can do about a proof that was refused.
fn poca_hint(reason: poca::Reason) -> &'static str {
    use poca::Reason as Poca;
    match reason {
        Poca::MissingHeaders => {
            "calls need the headers x-poca-manifest and x-poca-signature; agent-gateway-sidecar \
             relay makes them"
        }
        Poca::ManifestBase64 | Poca::SignatureBase64 => {
            "x-poca-manifest and x-poca-signature are base64url without padding, unmodified"
        }
        Poca::ManifestJson | Poca::ManifestMissingFields | Poca::ExpiryUnparseable => {
            "the manifest is not one that this gateway reads; make it with agent-gateway-sidecar"
        }
        Poca::CallerMismatch => "the manifest's caller_id must be the certificate's identity",
        Poca::ToolMismatch => "the manifest is for another tool than the call",
        Poca::Expired => "the manifest has ended; make a new one for each call",
        Poca::ExpiryTooFar => "the manifest ends too late; let it live for minutes",
        Poca::PayloadHashMismatch => {
            "the manifest is for another body: hash the whole body, as it is sent"
        }
        Poca::UnknownCallerKey => "no key of this caller is registered; tell the operator",
        Poca::SignatureInvalid => "no registered key of this caller signed the manifest",
        Poca::Replay => "this manifest was used before; make a new one for each call",
    }
}

impl From<permission::Reason> for Reason {
    fn from(reason: permission::Reason) -> Self {
        Self::Permission(reason)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
