//! Registry rows as the existing scripts write them: plain SQL, signed text built by hand.
//!
//! Deliberately a second implementation of the signed text, so that a mistake in ours shows.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{DerSignature, SigningKey};
use p256::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _};
use permission::Timestamp;

use crate::postgres::Database;

/// A principal with a software key.
#[derive(Debug)]
pub struct Principal {
    /// `key_id` of its key.
    pub key_id: String,
    key: SigningKey,
}

/// A window in signed form, relative to now.
#[derive(Debug, Clone)]
pub struct Times {
    /// First moment.
    pub not_before: String,
    /// First moment after.
    pub not_after: String,
}

impl Times {
    /// From so many seconds from now to so many seconds from now; negative is the past.
    pub fn from_now(start: i64, end: i64) -> Times {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, micros);
        let at = |seconds: i64| {
            let time = Timestamp::from_unix_micros(now).unwrap_or(Timestamp::MIN);
            time.saturating_add_micros(seconds * 1_000_000).to_string()
        };
        Times {
            not_before: at(start),
            not_after: at(end),
        }
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// An hour ago to a month from now.
impl Default for Times {
    fn default() -> Self {
        Self::from_now(-3600, 30 * 86_400)
    }
}

/// The signed fields of a permission row, as text.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Primary key.
    pub permission_id: String,
    /// The agent.
    pub identity: String,
    /// The agent's key, SPKI DER.
    pub spki: Vec<u8>,
    /// `host:port`.
    pub destination: String,
    /// The window.
    pub times: Times,
}

impl Grant {
    /// A permission that is valid now; its id is made from the agent and the destination.
    pub fn new(identity: &str, spki: &[u8], destination: &str) -> Grant {
        Grant {
            permission_id: format!("{identity}-{destination}"),
            identity: identity.to_owned(),
            spki: spki.to_vec(),
            destination: destination.to_owned(),
            times: Times::default(),
        }
    }

    /// As [`Grant::new`], for another window.
    #[must_use]
    pub fn during(mut self, times: Times) -> Grant {
        self.times = times;
        self
    }
}

/// The signed fields of an agent's `PoCA` key, as text.
#[derive(Debug, Clone)]
pub struct PocaKeyRow {
    /// Primary key.
    pub poca_key_id: String,
    /// The agent.
    pub identity: String,
    /// Its Ed25519 key.
    pub key: [u8; 32],
    /// The window.
    pub times: Times,
}

impl PocaKeyRow {
    /// A key of that id that is valid now.
    pub fn new(poca_key_id: &str, identity: &str, key: [u8; 32]) -> PocaKeyRow {
        PocaKeyRow {
            poca_key_id: poca_key_id.to_owned(),
            identity: identity.to_owned(),
            key,
            times: Times::default(),
        }
    }
}

impl Principal {
    /// Signs an agent's `PoCA` key and inserts it.
    pub fn grant_poca_key(&self, database: &Database, row: &PocaKeyRow) -> Result<()> {
        let text = [
            "agent-gateway-poca-key-v1".to_owned(),
            format!("poca_key_id={}", row.poca_key_id),
            format!("signing_key_id={}", self.key_id),
            format!("subject_identity={}", row.identity),
            format!("ed25519_public_key={}", hex::encode(row.key)),
            format!("not_before={}", row.times.not_before),
            format!("not_after={}", row.times.not_after),
            String::new(),
        ]
        .join("\n");
        let signature: DerSignature = self.key.sign(text.as_bytes());
        database.execute(&format!(
            "INSERT INTO poca_keys
                 (poca_key_id, signing_key_id, subject_identity, ed25519_public_key, not_before,
                  not_after, signature)
             VALUES ({}, {}, {}, {}, '{}', '{}', {})",
            quoted(&row.poca_key_id),
            quoted(&self.key_id),
            quoted(&row.identity),
            bytea(&row.key),
            row.times.not_before,
            row.times.not_after,
            bytea(signature.as_bytes()),
        ))
    }

    /// A principal whose key is made from `seed`, 1 to 127.
    pub fn new(key_id: &str, seed: u8) -> Result<Principal> {
        let key = SigningKey::from_slice(&[seed; 32]).context("seed")?;
        Ok(Principal {
            key_id: key_id.to_owned(),
            key,
        })
    }

    /// A registered principal that may delegate `destinations`, for longer than [`Times::default`].
    pub fn registered(database: &Database, destinations: &[&str]) -> Result<Principal> {
        let principal = Principal::new("org-alice", 7)?;
        principal.register(database)?;
        for destination in destinations {
            principal.scope(database, destination, &Times::from_now(-7200, 60 * 86_400))?;
        }
        Ok(principal)
    }

    /// The key's SPKI DER.
    pub fn spki(&self) -> Vec<u8> {
        let der = p256::PublicKey::from(self.key.verifying_key()).to_public_key_der();
        der.map(|der| der.as_bytes().to_vec()).unwrap_or_default()
    }

    /// Inserts the key.
    pub fn register(&self, database: &Database) -> Result<()> {
        let Times {
            not_before,
            not_after,
        } = Times::from_now(-7200, 365 * 86_400);
        database.execute(&format!(
            "INSERT INTO principal_signing_keys
                 (key_id, algorithm, public_key_spki_der, not_before, not_after)
             VALUES ({}, 'ecdsa_p256_sha256', {}, '{not_before}', '{not_after}')",
            quoted(&self.key_id),
            bytea(&self.spki()),
        ))
    }

    /// Lets the key delegate a destination.
    pub fn scope(&self, database: &Database, destination: &str, times: &Times) -> Result<()> {
        database.execute(&format!(
            "INSERT INTO principal_key_permissions
                 (signing_key_id, destination, not_before, not_after)
             VALUES ({}, {}, '{}', '{}')",
            quoted(&self.key_id),
            quoted(destination),
            times.not_before,
            times.not_after,
        ))
    }

    /// Signs a permission and inserts it.
    pub fn grant(&self, database: &Database, grant: &Grant) -> Result<()> {
        self.insert(database, grant, &self.sign(grant))
    }

    /// The signature over a permission's text.
    pub fn sign(&self, grant: &Grant) -> Vec<u8> {
        let signature: DerSignature = self.key.sign(self.signed_text(grant).as_bytes());
        signature.as_bytes().to_vec()
    }

    /// What is signed.
    pub(crate) fn signed_text(&self, grant: &Grant) -> String {
        [
            "agent-gateway-permission-v1".to_owned(),
            format!("permission_id={}", grant.permission_id),
            format!("signing_key_id={}", self.key_id),
            format!("subject_identity={}", grant.identity),
            format!("subject_public_key_spki_der={}", hex::encode(&grant.spki)),
            format!("destination={}", grant.destination),
            format!("not_before={}", grant.times.not_before),
            format!("not_after={}", grant.times.not_after),
            String::new(),
        ]
        .join("\n")
    }

    /// The private key, PKCS#8 DER.
    pub(crate) fn key_pkcs8_der(&self) -> Result<Vec<u8>> {
        Ok(self.key.to_pkcs8_der()?.as_bytes().to_vec())
    }

    /// Inserts a permission with a signature made elsewhere, or over something else.
    pub fn insert(&self, database: &Database, grant: &Grant, signature: &[u8]) -> Result<()> {
        database.execute(&self.insertion(grant, signature))
    }

    /// The statement that inserts a permission.
    pub fn insertion(&self, grant: &Grant, signature: &[u8]) -> String {
        format!(
            "INSERT INTO permission_registry
                 (permission_id, signing_key_id, subject_identity, subject_public_key_spki_der,
                  destination, not_before, not_after, signature)
             VALUES ({}, {}, {}, {}, {}, '{}', '{}', {})",
            quoted(&grant.permission_id),
            quoted(&self.key_id),
            quoted(&grant.identity),
            bytea(&grant.spki),
            quoted(&grant.destination),
            grant.times.not_before,
            grant.times.not_after,
            bytea(signature),
        )
    }
}

/// Has changes recorded and nobody notified of them, as if every notification were lost.
pub fn silence_notifications(database: &Database) -> Result<()> {
    database.execute(
        "DO $$
         DECLARE trigger_function regprocedure;
         BEGIN
             FOR trigger_function IN
                 SELECT DISTINCT tgfoid::regprocedure FROM pg_trigger WHERE tgname LIKE 'registry%'
             LOOP
                 EXECUTE replace(pg_get_functiondef(trigger_function), 'pg_notify', 'concat');
             END LOOP;
         END $$",
    )
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn bytea(bytes: &[u8]) -> String {
    format!("'\\x{}'", hex::encode(bytes))
}
