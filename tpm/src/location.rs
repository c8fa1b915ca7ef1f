//! Where a key lives: which TPM, by its TCTI configuration, and which persistent handle.

use std::fmt;
use std::str::FromStr;

use tss_esapi::tcti_ldr::TctiNameConf;

/// The place of one persistent key in one TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// How the TPM is reached.
    pub tcti: Tcti,
    /// Where in it the key is.
    pub handle: Handle,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.handle, self.tcti)
    }
}

/// How a TPM is reached (TPM Command Transmission Interface):
/// `swtpm:host=127.0.0.1,port=2321`, `mssim:host=…,port=…`, `device:/dev/tpmrm0` or
/// `tabrmd:bus_name=…,bus_type=system|session`.
///
/// What is left out takes the TSS's default; [`fmt::Display`] writes it all, and parses back to
/// the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcti {
    name_conf: TctiNameConf,
    text: String,
}

impl Tcti {
    /// A simulated TPM at its usual place.
    pub const DEFAULT: &'static str = "swtpm:host=127.0.0.1,port=2321";

    pub(crate) fn name_conf(&self) -> TctiNameConf {
        self.name_conf.clone()
    }
}

impl fmt::Display for Tcti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The text isn't a TCTI configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a TPM address; write swtpm:host=127.0.0.1,port=2321, device:/dev/tpmrm0, mssim:… or tabrmd:…"
)]
pub struct ParseTctiError;

impl FromStr for Tcti {
    type Err = ParseTctiError;

    fn from_str(text: &str) -> Result<Tcti, ParseTctiError> {
        let (name, options) = text.split_once(':').unwrap_or((text, ""));
        let known: &[&str] = match name {
            "swtpm" | "mssim" => &["host", "port"],
            "tabrmd" => &["bus_name", "bus_type"],
            // All of the rest is a path.
            "device" => &[],
            _ => return Err(ParseTctiError),
        };
        // The TSS wrapper skips what it doesn't know, so a typo would lead to the default TPM.
        if text.chars().any(char::is_control) || (name != "device" && !only(known, options)) {
            return Err(ParseTctiError);
        }
        let name_conf = TctiNameConf::from_str(text).map_err(|_| ParseTctiError)?;
        let canonical = std::ffi::CString::try_from(name_conf.clone())
            .ok()
            .and_then(|text| text.into_string().ok())
            .ok_or(ParseTctiError)?;
        Ok(Tcti {
            name_conf,
            text: canonical,
        })
    }
}

/// Whether `options` are `key=value` pairs with keys out of `known`, each at most once.
fn only(known: &[&str], options: &str) -> bool {
    if options.is_empty() {
        return true;
    }
    let keys: Option<Vec<&str>> = options
        .split(',')
        .map(|option| option.split_once('=').map(|(key, _)| key))
        .collect();
    keys.is_some_and(|mut keys| {
        let given = keys.len();
        keys.sort_unstable();
        keys.dedup();
        keys.len() == given && keys.iter().all(|key| known.contains(key))
    })
}

/// A persistent handle, `0x81000000` to `0x81ffffff` (TPM 2.0 Library, part 2, `TPM_HC`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(u32);

impl Handle {
    /// Where keys go unless told otherwise.
    pub const DEFAULT: Handle = Handle(0x8101_0004);

    /// The other handle of the pair that this one is in: where a new key goes, and the one after it
    /// comes back from.
    #[must_use]
    pub fn partner(self) -> Handle {
        Handle(self.0 ^ 1)
    }

    pub(crate) fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// The text isn't a persistent handle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a persistent TPM handle; write 0x81000000 to 0x81ffffff, as in 0x81010004")]
pub struct ParseHandleError;

impl FromStr for Handle {
    type Err = ParseHandleError;

    fn from_str(text: &str) -> Result<Handle, ParseHandleError> {
        let digits = text.strip_prefix("0x").ok_or(ParseHandleError)?;
        // from_str_radix would take a sign, too.
        if digits.len() != 8 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ParseHandleError);
        }
        match u32::from_str_radix(digits, 16) {
            Ok(value @ 0x8100_0000..=0x81FF_FFFF) => Ok(Handle(value)),
            _ => Err(ParseHandleError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcti_displays_in_full_and_parses_back() {
        for (text, canonical) in [
            (Tcti::DEFAULT, "swtpm:host=127.0.0.1,port=2321"),
            ("swtpm:port=9,host=localhost", "swtpm:host=localhost,port=9"),
            ("swtpm", "swtpm:host=localhost,port=2321"),
            ("mssim:host=::1", "mssim:host=::1,port=2321"),
            ("device:/dev/tpmrm0", "device:/dev/tpmrm0"),
            ("device", "device:/dev/tpm0"),
            (
                "tabrmd:bus_type=session",
                "tabrmd:bus_name=com.intel.tss2.Tabrmd,bus_type=session",
            ),
        ] {
            let tcti: Tcti = text.parse().unwrap();
            assert_eq!(tcti.to_string(), canonical, "{text}");
            assert_eq!(canonical.parse::<Tcti>().unwrap(), tcti, "{text}");
        }
    }

    #[test]
    fn tcti_with_an_error_in_it_is_refused() {
        for text in [
            "",
            "swtmp:host=127.0.0.1",
            "swtpm:prot=2321",
            "swtpm:host=127.0.0.1,port=2321,port=2322",
            "swtpm:host=127.0.0.1,",
            "swtpm:host=a b",
            "swtpm:port=99999",
            "swtpm:path=/run/swtpm.sock",
            "tabrmd:bus_type=other",
            "device:/dev/tpm\n0",
            "device:/dev/tpm\0",
        ] {
            assert_eq!(text.parse::<Tcti>(), Err(ParseTctiError), "{text:?}");
        }
    }

    #[test]
    fn handle_displays_as_it_parses() {
        for text in ["0x81000000", "0x81010004", "0x81ffffff"] {
            assert_eq!(text.parse::<Handle>().unwrap().to_string(), text);
        }
        assert_eq!(
            "0x81FFFFFF".parse::<Handle>().unwrap().to_string(),
            "0x81ffffff"
        );
        assert_eq!("0x81010004".parse(), Ok(Handle::DEFAULT));
    }

    #[test]
    fn partners_are_each_others() {
        let partner: Handle = "0x81010005".parse().unwrap();
        assert_eq!(Handle::DEFAULT.partner(), partner);
        assert_eq!(partner.partner(), Handle::DEFAULT);
        let last: Handle = "0x81ffffff".parse().unwrap();
        assert_eq!(last.partner().to_string(), "0x81fffffe");
    }

    #[test]
    fn handle_outside_the_persistent_range_or_misspelt_is_refused() {
        for text in [
            "",
            "0x",
            "81010004",
            "0x80ffffff",
            "0x82000000",
            "0x+1010004",
            "0x081010004",
            "0x8101000",
            " 0x81010004",
            "2164326404",
        ] {
            assert_eq!(text.parse::<Handle>(), Err(ParseHandleError), "{text:?}");
        }
    }

    #[test]
    fn location_names_handle_and_tpm() {
        let location = Location {
            tcti: Tcti::DEFAULT.parse().unwrap(),
            handle: Handle::DEFAULT,
        };
        assert_eq!(
            location.to_string(),
            "0x81010004 at swtpm:host=127.0.0.1,port=2321"
        );
    }
}
