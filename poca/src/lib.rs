//! Proof of context access (`PoCA`): what an agent says, and signs, about one call of a tool.
//!
//! Two headers travel with the call. `X-PoCA-Manifest` is base64url (RFC 4648, section 5, without
//! padding) of a JSON [`Manifest`]; `X-PoCA-Signature` is base64url of the Ed25519 signature over
//! that base64url text. [`sign`] makes both, [`verify`] is the only maker of a [`Proof`].
//!
//! There is no I/O, no clock and no randomness in this crate: `now` and nonces are arguments.
//! Whether a nonce was used before is not looked at here, since that takes memory: a [`Proof`]
//! says which nonce, and until when it must be remembered.

#![forbid(unsafe_code)]

pub mod key;
pub mod manifest;
pub mod reason;
pub mod verify;

pub use key::{PublicKey, PublicKeyError, SecretKey, SecretKeyError};
pub use manifest::{Manifest, ManifestError, SignedHeaders, sign};
pub use reason::Reason;
pub use verify::{CLOCK_SKEW, Expected, Headers, Proof, verify};
