//! What the TSS says when something goes wrong, read for what to do about it.

use std::fmt;

use tss_esapi::Error;
use tss_esapi::constants::response_code::{Tss2ResponseCode, Tss2ResponseCodeKind};

/// What the TCTI loader says when it finds no library.
const TCTI_NOT_SUPPORTED: u32 = 10 << 16 | 0x15;

/// An answer of the TPM, or of the software on the way to it, that isn't a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TssFailure(Error);

impl TssFailure {
    /// Whether it came from the software in front of the TPM and not from the TPM: the connection
    /// broke, or what came over it wasn't understood, so that this connection is of no more use.
    pub(crate) fn is_lost_connection(self) -> bool {
        // TSS 2.0 Overview and Common Structures, "Response Codes": bits 16 to 23 name the layer.
        // ESYS, SYS, marshalling, TCTI.
        const LAYERS: [u32; 4] = [7 << 16, 8 << 16, 9 << 16, 10 << 16];
        let Error::Tss2Error(code) = self.0 else {
            return false;
        };
        // The wrapper doesn't give the number away, only equality with one.
        LAYERS
            .iter()
            .any(|layer| (1..0x80).any(|base| code == Tss2ResponseCode::from(layer | base)))
    }

    /// Whether the TPM says that something is at the handle already.
    pub(crate) fn is_occupied_handle(self) -> bool {
        self.kind() == Some(Tss2ResponseCodeKind::NvDefined)
    }

    /// Whether a password was wrong or missing.
    pub(crate) fn is_wrong_pin(self) -> bool {
        use Tss2ResponseCodeKind::{AuthFail, BadAuth};
        matches!(self.kind(), Some(AuthFail | BadAuth))
    }

    /// Whether the TPM takes no password for now.
    pub(crate) fn is_lockout(self) -> bool {
        self.kind() == Some(Tss2ResponseCodeKind::Lockout)
    }

    /// Whether no more keys can be kept for good.
    pub(crate) fn is_full(self) -> bool {
        self.kind() == Some(Tss2ResponseCodeKind::NvSpace)
    }

    /// Whether other programs' keys fill the slots that commands work in.
    pub(crate) fn is_crowded(self) -> bool {
        self.kind() == Some(Tss2ResponseCodeKind::ObjectMemory)
    }

    fn kind(self) -> Option<Tss2ResponseCodeKind> {
        match self.0 {
            Error::Tss2Error(code) => code.kind(),
            Error::WrapperError(_) => None,
        }
    }
}

impl From<Error> for TssFailure {
    fn from(error: Error) -> TssFailure {
        TssFailure(error)
    }
}

impl fmt::Display for TssFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == Error::Tss2Error(TCTI_NOT_SUPPORTED.into()) {
            return f.write_str(
                "the TSS has no library for this kind of address (libtss2-tcti-… isn't installed)",
            );
        }
        if self.is_lost_connection() {
            return f.write_str("no connection, or no sound answer");
        }
        match self.kind() {
            Some(Tss2ResponseCodeKind::ObjectMemory) => f.write_str(
                "all its transient slots are in use; `tpm2_flushcontext -t` frees what other \
                 programs left in them",
            ),
            Some(Tss2ResponseCodeKind::Initialize) => {
                f.write_str("it has not been started up; `tpm2_startup -c` does it")
            }
            Some(Tss2ResponseCodeKind::Lockout) => f.write_str(
                "it is locked after wrong passwords or unclean restarts; it unlocks by itself, \
                 or by `tpm2_dictionarylockout -c`",
            ),
            Some(Tss2ResponseCodeKind::BadAuth | Tss2ResponseCodeKind::AuthFail) => {
                f.write_str("a password is set where none was expected")
            }
            _ => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: u32) -> TssFailure {
        Error::Tss2Error(code.into()).into()
    }

    #[test]
    fn only_codes_of_the_layers_before_the_tpm_are_a_lost_connection() {
        // TCTI: IO error, bad value; ESYS: bad sequence; SYS: malformed response.
        for code in [0xa000a, 0xa000b, 0x70007, 0x80010] {
            assert!(failure(code).is_lost_connection(), "{code:#x}");
        }
        // TPM: out of slots, no such handle, lockout, retry; resource manager: unknown command.
        for code in [0x902, 0x18b, 0x921, 0x922, 0xb0143] {
            assert!(!failure(code).is_lost_connection(), "{code:#x}");
        }
    }

    #[test]
    fn an_occupied_handle_is_told_from_an_empty_one() {
        assert!(failure(0x14c).is_occupied_handle());
        assert!(!failure(0x18b).is_occupied_handle());
    }

    #[test]
    fn frequent_failures_say_what_to_do() {
        assert!(failure(0xa0015).to_string().contains("libtss2-tcti"));
        assert!(failure(0x902).to_string().contains("tpm2_flushcontext -t"));
        assert!(
            failure(0x921)
                .to_string()
                .contains("tpm2_dictionarylockout -c")
        );
    }
}
