//! A root of trust, and its signatures on rows.
//!
//! Deliberately a second implementation of the signed texts, in SQL, so that a mistake in ours
//! shows.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{DerSignature, SigningKey};
use p256::pkcs8::EncodePublicKey as _;

use crate::postgres::Database;

/// The texts of all keys and scopes as they stand: table, row and the text in hex.
const TEXTS: &str = r#"
WITH texts AS (
    SELECT 'principal_signing_keys' AS name, ctid, not_before, not_after, format(
        E'agent-gateway-signing-key-v1\nregistry_id=%s\nkey_id=%s\nalgorithm=%s\n'
        'public_key_spki_der=%s\n',
        {registry}, key_id, algorithm, encode(public_key_spki_der, 'hex')) AS signed
    FROM principal_signing_keys
    UNION ALL
    SELECT 'principal_key_permissions', s.ctid, s.not_before, s.not_after, format(
        E'agent-gateway-scope-v1\nregistry_id=%s\nsigning_key_id=%s\nsigning_key_spki_der=%s\n'
        'destination=%s\n',
        {registry}, signing_key_id, encode(public_key_spki_der, 'hex'), destination)
    FROM principal_key_permissions s JOIN principal_signing_keys k ON k.key_id = s.signing_key_id
), windows AS (
    SELECT name, ctid, signed || format(E'not_before=%s\nnot_after=%s\n',
        to_char(not_before AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        to_char(not_after AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')) AS signed
    FROM texts
)
SELECT name, ctid, encode(convert_to(signed, 'UTF8'), 'hex') FROM windows"#;

/// A root of trust with a software key.
#[derive(Debug, Clone)]
pub struct Root {
    key: SigningKey,
}

impl Root {
    /// A root whose key is made from `seed`, 1 to 127.
    pub fn new(seed: u8) -> Result<Root> {
        let key = SigningKey::from_slice(&[seed; 32]).context("seed")?;
        Ok(Root { key })
    }

    /// The public key in hex, as the service's configuration takes it.
    pub fn public_hex(&self) -> Result<String> {
        let public = p256::PublicKey::from(self.key.verifying_key());
        Ok(hex::encode(public.to_public_key_der()?.as_bytes()))
    }

    /// Signs every key and scope as it stands, for this registry.
    pub fn sign_all(&self, database: &Database) -> Result<()> {
        self.sign_all_for(database, "(SELECT registry_id FROM registry_identity)")
    }

    /// As [`Root::sign_all`], for the registry whose id is that SQL expression.
    pub fn sign_all_for(&self, database: &Database, registry: &str) -> Result<()> {
        let texts = database.query(&TEXTS.replace("{registry}", registry))?;
        let mut updates = String::new();
        for line in texts.lines() {
            let mut columns = line.split('|');
            let mut next = || columns.next().context("a column of the texts");
            let (table, row, text) = (next()?, next()?, hex::decode(next()?)?);
            let signature: DerSignature = self.key.sign(&text);
            write!(
                updates,
                "UPDATE {table} SET root_signature = '\\x{}' WHERE ctid = '{row}';",
                hex::encode(signature.as_bytes())
            )?;
        }
        database.execute(&updates)
    }
}
