//! P-256 signing keys: [`TpmKey`], whose private part never leaves a TPM 2.0, and
//! [`SoftwareKey`], a file, for tests and for those who ask for it explicitly.
//!
//! Both are a [`SigningKey`]. All talk with the TPM is in here; what is signed is the callers'
//! business.
//!
//! The TSS C library writes its own error lines to stderr unless the environment holds
//! `TSS2_LOG=all+none` when the process starts: [`tss_log`] is for that. Its Rust wrapper logs to
//! the target `tss_esapi`; all that matters there is also in the errors of this crate.

#![forbid(unsafe_code)]

mod location;
mod pin;
mod signing_key;
mod software_key;
mod tpm_key;
pub mod tss_log;

pub use location::{Handle, Location, ParseHandleError, ParseTctiError, Tcti};
pub use pin::{Pin, PinError, Pins};
pub use signing_key::{Found, SignError, SigningKey};
pub use software_key::{SoftwareKey, SoftwareKeyError};
pub use tpm_key::{TpmError, TpmKey, TssFailure, Unfit};
