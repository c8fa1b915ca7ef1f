//! Why a request is denied, in codes that stay stable.

use std::fmt;

/// Every reason for a deny. `Display` is the code, which appears in answers, logs and metadata.
///
/// From [`Reason::NoPermission`] to [`Reason::ScopeUntrusted`] they are ordered by how far a row got:
/// of several rows that fall, the greatest is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The caller showed no client certificate.
    NoClientCertificate,
    /// The certificate can't be read.
    CertificateUnparseable,
    /// The certificate has no identity extension.
    IdentityExtensionMissing,
    /// The identity extension is not exactly one `UTF8String` that is an identity.
    IdentityExtensionInvalid,
    /// The authority is no destination.
    DestinationInvalid,
    /// A method other than CONNECT, or CONNECT where ordinary requests are expected.
    MethodNotAllowed,
    /// A request to go on in another protocol.
    UpgradeNotAllowed,
    /// Envoy's route asks by a profile that isn't configured.
    ProfileUnknown,
    /// No row for this identity, key and destination.
    NoPermission,
    /// A row, but its window has not begun.
    PermissionNotYetValid,
    /// A row, but its window has ended.
    PermissionExpired,
    /// A row, but it was taken back.
    PermissionRevoked,
    /// The row's signing key is not registered, or not a P-256 key.
    SigningKeyUnknown,
    /// The row's signing key is registered, but no trust root signed that.
    SigningKeyUntrusted,
    /// The row's signing key is revoked, or outside its window.
    SigningKeyInactive,
    /// The row is not what its signing key signed.
    SignatureInvalid,
    /// The signing key may not delegate this destination, or not for the row's whole window.
    ScopeMissing,
    /// The signing key has a scope that would do, but no trust root signed it.
    ScopeUntrusted,
    /// The destination's name doesn't resolve, or not in time.
    DestinationUnresolvable,
    /// The destination resolves to addresses that must not be reached.
    DestinationAddressForbidden,
    /// The registry couldn't be asked, so nothing could be decided.
    RegistryUnavailable,
    /// The decision couldn't be recorded in the audit, so it doesn't count.
    AuditUnavailable,
}

impl Reason {
    /// The stable `snake_case` code.
    pub fn code(self) -> &'static str {
        match self {
            Self::NoClientCertificate => "no_client_certificate",
            Self::CertificateUnparseable => "certificate_unparseable",
            Self::IdentityExtensionMissing => "identity_extension_missing",
            Self::IdentityExtensionInvalid => "identity_extension_invalid",
            Self::DestinationInvalid => "destination_invalid",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::UpgradeNotAllowed => "upgrade_not_allowed",
            Self::ProfileUnknown => "profile_unknown",
            Self::NoPermission => "no_permission",
            Self::PermissionNotYetValid => "permission_not_yet_valid",
            Self::PermissionExpired => "permission_expired",
            Self::PermissionRevoked => "permission_revoked",
            Self::SigningKeyUnknown => "signing_key_unknown",
            Self::SigningKeyUntrusted => "signing_key_untrusted",
            Self::SigningKeyInactive => "signing_key_inactive",
            Self::SignatureInvalid => "signature_invalid",
            Self::ScopeMissing => "scope_missing",
            Self::ScopeUntrusted => "scope_untrusted",
            Self::DestinationUnresolvable => "destination_unresolvable",
            Self::DestinationAddressForbidden => "destination_address_forbidden",
            Self::RegistryUnavailable => "registry_unavailable",
            Self::AuditUnavailable => "audit_unavailable",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
