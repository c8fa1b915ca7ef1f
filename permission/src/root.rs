//! The root of trust: who vouches for principals' keys, and for what each may delegate.
//!
//! A root's signature names the registry, so that no row is worth anything in another, and a
//! scope's names the key itself beside its id, so that another key under that id has no scope.
//! Revocation is not signed: whoever writes the registry can undo one (docs/security.md).

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use ring::digest::{SHA256, digest};
use x509_parser::pem::parse_x509_pem;

use crate::canonical::{CanonicalError, Lines};
use crate::destination::Destination;
use crate::key::{ECDSA_P256_SHA256, KeyError, PrincipalKey};
use crate::spki::Spki;
use crate::text::Id;
use crate::time::Window;

/// First lines of the signed texts.
const KEY_V1: &str = "agent-gateway-signing-key-v1";
const SCOPE_V1: &str = "agent-gateway-scope-v1";
/// As an error names it, where either could be.
const EITHER: &str = "agent-gateway-signing-key-v1 or agent-gateway-scope-v1";

/// Most roots of one registry: each is tried for each row.
pub const MAX_ROOTS: usize = 8;
/// Checked signatures that are remembered, at 32 bytes and some each.
const MAX_REMEMBERED: usize = 4096;

/// What a root signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// In which registry it holds.
    pub registry_id: Id,
    /// Names the principal's key.
    pub key_id: Id,
    /// The principal's exact key.
    pub key: PrincipalKey,
    /// What is said of the key.
    pub claim: Claim,
    /// When that holds.
    pub window: Window,
}

/// What a root says of a principal's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// What it signs counts.
    Signs,
    /// It may delegate this: a scope.
    Delegates(Destination),
}

impl Statement {
    /// The signed bytes, version 1: seven lines of UTF-8, each ended by LF.
    ///
    /// As for permissions, different statements have different bytes.
    pub fn canonical_bytes(&self) -> Vec<u8> {
        let Self {
            registry_id,
            key_id,
            key,
            claim,
            window,
        } = self;
        let spki = key.spki().to_hex();
        let (from, to) = (window.not_before(), window.not_after());
        match claim {
            Claim::Signs => format!(
                "{KEY_V1}\n\
                 registry_id={registry_id}\n\
                 key_id={key_id}\n\
                 algorithm={ECDSA_P256_SHA256}\n\
                 public_key_spki_der={spki}\n\
                 not_before={from}\n\
                 not_after={to}\n"
            ),
            Claim::Delegates(destination) => format!(
                "{SCOPE_V1}\n\
                 registry_id={registry_id}\n\
                 signing_key_id={key_id}\n\
                 signing_key_spki_der={spki}\n\
                 destination={destination}\n\
                 not_before={from}\n\
                 not_after={to}\n"
            ),
        }
        .into_bytes()
    }

    /// Reads the signed bytes of one statement back; accepts exactly what
    /// [`Statement::canonical_bytes`] writes.
    pub fn from_canonical(bytes: &[u8]) -> Result<Self, CanonicalError> {
        let mut lines = Lines::new(bytes, EITHER)?;
        let statement = Self::read(&mut lines)?;
        lines.end()?;
        Ok(statement)
    }

    /// As [`Statement::from_canonical`], of any number of them, one after the other.
    pub fn all_from_canonical(bytes: &[u8]) -> Result<Vec<Self>, CanonicalError> {
        let mut lines = Lines::new(bytes, EITHER)?;
        let mut all = Vec::new();
        while !lines.is_at_end() {
            all.push(Self::read(&mut lines)?);
        }
        Ok(all)
    }

    fn read(lines: &mut Lines<'_>) -> Result<Self, CanonicalError> {
        let version = lines.version(&[KEY_V1, SCOPE_V1])?;
        let registry_id = lines.id("registry_id")?;
        let key = |lines: &mut Lines<'_>, name| {
            let spki = lines.spki(name)?;
            PrincipalKey::from_stored(ECDSA_P256_SHA256, spki.as_der()).map_err(|_| lines.error())
        };
        let (key_id, key, claim) = if version == KEY_V1 {
            let key_id = lines.id("key_id")?;
            lines.field("algorithm", |text| {
                (text == ECDSA_P256_SHA256).then_some(())
            })?;
            (key_id, key(lines, "public_key_spki_der")?, Claim::Signs)
        } else {
            let key_id = lines.id("signing_key_id")?;
            let key = key(lines, "signing_key_spki_der")?;
            (key_id, key, Claim::Delegates(lines.destination()?))
        };
        Ok(Self {
            registry_id,
            key_id,
            key,
            claim,
            window: lines.window()?,
        })
    }
}

/// A root's public key: ECDSA P-256, as a principal's, and never taken for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootKey(PrincipalKey);

impl RootKey {
    /// Takes a P-256 public key.
    pub fn from_spki(spki: &Spki) -> Result<Self, KeyError> {
        PrincipalKey::from_stored(ECDSA_P256_SHA256, spki.as_der()).map(Self)
    }

    /// Reads a public key in the forms that people have it in: PEM (`PUBLIC KEY`), hex digits of
    /// the SPKI DER in any number of lines, or that DER itself.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        let spki = match std::str::from_utf8(bytes) {
            Ok(text) if text.contains("-----BEGIN ") => {
                let (rest, block) = parse_x509_pem(bytes).map_err(|_| KeyError::NotP256)?;
                if block.label != "PUBLIC KEY" || !rest.iter().all(u8::is_ascii_whitespace) {
                    return Err(KeyError::NotP256);
                }
                Spki::from_der(&block.contents)
            }
            Ok(text) => Spki::from_hex(&text.split_ascii_whitespace().collect::<String>()),
            // DER of a P-256 key is never UTF-8: its object identifiers are not.
            Err(_) => Spki::from_der(bytes),
        };
        Self::from_spki(&spki.map_err(|_| KeyError::NotP256)?)
    }

    /// The key.
    pub fn spki(&self) -> &Spki {
        self.0.spki()
    }

    /// SHA-256 of the key's SPKI DER, in hex: what people compare.
    pub fn fingerprint(&self) -> String {
        hex::encode(digest(&SHA256, self.spki().as_der()))
    }

    /// Whether this key signed the statement.
    pub fn signed(&self, statement: &Statement, signature_der: &[u8]) -> bool {
        let text = statement.canonical_bytes();
        self.0.check(&text, signature_der).is_ok()
    }
}

/// The keys whose word counts in one registry. Both come from whoever decides, never from the
/// registry itself.
#[derive(Clone)]
pub struct TrustRoots(Arc<Inner>);

struct Inner {
    registry_id: Id,
    keys: Vec<RootKey>,
    /// SHA-256 of texts and their signatures that were found good, as many permissions rest on
    /// the same few keys and scopes. Locked only to look or add.
    good: Mutex<HashSet<[u8; 32]>>,
}

/// Why these are no roots of trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrustRootsError {
    /// Nothing could ever count.
    #[error("no root key")]
    None,
    /// More than [`MAX_ROOTS`].
    #[error("more than {MAX_ROOTS} root keys")]
    TooMany,
    /// A mistake: another one was meant.
    #[error("the same root key twice")]
    Twice,
}

impl TrustRoots {
    /// The roots of the registry of that id: from one to [`MAX_ROOTS`] different keys.
    pub fn new(registry_id: Id, keys: Vec<RootKey>) -> Result<Self, TrustRootsError> {
        if keys.is_empty() {
            return Err(TrustRootsError::None);
        }
        if keys.len() > MAX_ROOTS {
            return Err(TrustRootsError::TooMany);
        }
        let mut others = keys.iter();
        while let Some(key) = others.next() {
            if others.clone().any(|other| other == key) {
                return Err(TrustRootsError::Twice);
            }
        }
        Ok(Self(Arc::new(Inner {
            registry_id,
            keys,
            good: Mutex::default(),
        })))
    }

    /// The registry that they vouch in.
    pub fn registry_id(&self) -> &Id {
        &self.0.registry_id
    }

    /// Their keys.
    pub fn keys(&self) -> &[RootKey] {
        &self.0.keys
    }

    /// Whether one of them signed that, for this registry.
    pub fn vouch_for(&self, statement: &Statement, signature_der: &[u8]) -> bool {
        if statement.registry_id != self.0.registry_id {
            return false;
        }
        let mut text = statement.canonical_bytes();
        let checked = |text: &[u8]| {
            let mut keys = self.0.keys.iter();
            keys.any(|key| key.0.check(text, signature_der).is_ok())
        };
        let end = text.len();
        // The text ends itself, so where the signature begins is never in doubt.
        text.extend_from_slice(signature_der);
        let mut name = [0; 32];
        name.copy_from_slice(digest(&SHA256, &text).as_ref());
        let good = || self.0.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good().contains(&name) {
            return true;
        }
        text.truncate(end);
        let is_good = checked(&text);
        if is_good {
            let mut good = good();
            if good.len() >= MAX_REMEMBERED {
                good.clear();
            }
            good.insert(name);
        }
        is_good
    }
}

impl fmt::Debug for TrustRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustRoots")
            .field("registry_id", &self.0.registry_id)
            .field("keys", &self.0.keys)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
