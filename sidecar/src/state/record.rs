//! What is written down of a key: where it is, and the certificate that carries it.

use permission::{Leaf, Spki};
use serde::{Deserialize, Serialize};
use tpm::Location;

use crate::certificate;

/// An agent's key and certificate, which are in use.
#[derive(Debug, Clone)]
pub struct State {
    /// Identity and public key, as in the certificate.
    pub leaf: Leaf,
    /// The certificate.
    pub certificate_pem: String,
    /// Where the private key is.
    pub location: Location,
    /// The key that was in use before, and is still in the TPM.
    pub retired: Option<Retired>,
}

/// A key that is in nobody's use any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    /// Where it is.
    pub location: Location,
    /// Which it is: another may have taken its place.
    pub spki: Spki,
}

/// A key that is to be used once it is granted.
#[derive(Debug, Clone)]
pub struct Next {
    /// Where it is, or will be: written down while the handle is still empty, so that a key that is
    /// found there later is known to be ours.
    pub location: Location,
    /// What it shows, once it is there.
    pub certificate: Option<(Leaf, String)>,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    tcti: String,
    handle: String,
    /// PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retired: Option<RetiredRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetiredRecord {
    tcti: String,
    handle: String,
    /// Hex.
    spki: String,
}

impl State {
    pub(super) fn from_text(text: &str) -> Result<Self, String> {
        let record = Record::from_text(text)?;
        let certificate = record.certificate.ok_or("no certificate")?;
        let retired = record.retired.map(RetiredRecord::read).transpose()?;
        Ok(Self {
            leaf: leaf(&certificate)?,
            certificate_pem: certificate,
            location: location(&record.tcti, &record.handle)?,
            retired,
        })
    }

    pub(super) fn to_text(&self) -> String {
        let retired = self.retired.as_ref().map(|retired| RetiredRecord {
            tcti: retired.location.tcti.to_string(),
            handle: retired.location.handle.to_string(),
            spki: retired.spki.to_hex(),
        });
        let certificate = Some(self.certificate_pem.clone());
        Record::of(&self.location, certificate, retired).to_text()
    }
}

impl Next {
    pub(super) fn from_text(text: &str) -> Result<Self, String> {
        let record = Record::from_text(text)?;
        let certificate = match record.certificate {
            Some(pem) => Some((leaf(&pem)?, pem)),
            None => None,
        };
        Ok(Self {
            location: location(&record.tcti, &record.handle)?,
            certificate,
        })
    }

    pub(super) fn to_text(&self) -> String {
        let certificate = self.certificate.as_ref().map(|(_, pem)| pem.clone());
        Record::of(&self.location, certificate, None).to_text()
    }
}

impl Record {
    fn of(
        location: &Location,
        certificate: Option<String>,
        retired: Option<RetiredRecord>,
    ) -> Self {
        Self {
            tcti: location.tcti.to_string(),
            handle: location.handle.to_string(),
            certificate,
            retired,
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    fn to_text(&self) -> String {
        // Texts, under keys that are texts: nothing in it can't be JSON.
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        format!("{text}\n")
    }
}

impl RetiredRecord {
    fn read(self) -> Result<Retired, String> {
        Ok(Retired {
            location: location(&self.tcti, &self.handle)?,
            spki: Spki::from_hex(&self.spki).map_err(|error| format!("retired key: {error}"))?,
        })
    }
}

fn leaf(certificate_pem: &str) -> Result<Leaf, String> {
    certificate::read(certificate_pem.as_bytes()).map_err(|error| error.to_string())
}

fn location(tcti: &str, handle: &str) -> Result<Location, String> {
    Ok(Location {
        tcti: tcti.parse().map_err(|_| "tcti")?,
        handle: handle.parse().map_err(|_| "handle")?,
    })
}
