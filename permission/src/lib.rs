//! The pure core: who may reach what, and how that is proved.
//!
//! Everything foreign is parsed here, once, into types that cannot be wrong
//! ([`Identity`], [`Spki`], [`Destination`], [`Permission`]), and [`decide`] turns them into a
//! [`Decision`]. There is no I/O, no clock and no randomness in this crate: `now` is an argument.

#![forbid(unsafe_code)]

pub mod canonical;
pub mod certificate;
pub mod decide;
pub mod destination;
pub mod identity;
pub mod key;
pub mod permission;
pub mod poca_key;
pub mod reason;
pub mod root;
pub mod spki;
pub mod text;
pub mod time;

pub use canonical::CanonicalError;
pub use certificate::{AlternativeNames, CertificateError, ExtensionOid, IdentitySource, Leaf};
pub use decide::{Candidate, Decision, Facts, Permit, Request, Scope, Signer, decide, judge};
pub use destination::{Destination, DestinationError, Host};
pub use identity::{Identity, IdentityError};
pub use key::{ECDSA_P256_SHA256, KeyError, PrincipalKey, SignatureInvalid, Verified};
pub use permission::Permission;
pub use poca_key::{PocaCandidate, PocaKey};
pub use reason::Reason;
pub use root::{Claim, RootKey, Statement, TrustRoots, TrustRootsError};
pub use spki::{Spki, SpkiError};
pub use text::{Id, TextError};
pub use time::{Timestamp, TimestampError, Window, WindowError};
