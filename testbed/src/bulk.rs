//! Permission rows by the hundred thousand: signed by ring, written by COPY.

use std::io::{BufWriter, Read as _, Write as _};
use std::process::{Child, ChildStdin, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};

use crate::postgres::Database;
use crate::rows::{Grant, Principal};

const COPY: &str = "COPY permission_registry
    (permission_id, signing_key_id, subject_identity, subject_public_key_spki_der,
     destination, not_before, not_after, signature) FROM STDIN";

/// One COPY under way; nothing of it is there before [`Bulk::finish`]. Threads may each have one.
#[derive(Debug)]
pub struct Bulk<'a> {
    principal: &'a Principal,
    key: EcdsaKeyPair,
    random: SystemRandom,
    psql: Child,
    input: BufWriter<ChildStdin>,
}

impl<'a> Bulk<'a> {
    /// Begins to write permissions that `principal` signs.
    pub fn begin(database: &Database, principal: &'a Principal) -> Result<Bulk<'a>> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            &principal.key_pkcs8_der()?,
            &random,
        )
        .map_err(|error| anyhow!("the principal's key: {error}"))?;
        let mut command = database.psql()?;
        let mut psql = command
            .args(["-c", COPY])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start psql")?;
        let input = BufWriter::new(psql.stdin.take().context("stdin of psql")?);
        Ok(Bulk {
            principal,
            key,
            random,
            psql,
            input,
        })
    }

    /// Signs and writes one permission; its texts must hold no tab, backslash or line end.
    pub fn grant(&mut self, grant: &Grant) -> Result<()> {
        let text = self.principal.signed_text(grant);
        let signature = self
            .key
            .sign(&self.random, text.as_bytes())
            .map_err(|error| anyhow!("sign: {error}"))?;
        // In COPY's text format a backslash is written as two.
        writeln!(
            self.input,
            "{}\t{}\t{}\t\\\\x{}\t{}\t{}\t{}\t\\\\x{}",
            grant.permission_id,
            self.principal.key_id,
            grant.identity,
            hex::encode(&grant.spki),
            grant.destination,
            grant.times.not_before,
            grant.times.not_after,
            hex::encode(signature.as_ref()),
        )
        .context("psql takes no more rows")
    }

    /// Commits what was written.
    pub fn finish(self) -> Result<()> {
        let Bulk {
            mut psql, input, ..
        } = self;
        let flushed = input.into_inner().map(drop);
        let mut said = String::new();
        if let Some(mut stderr) = psql.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        let status = psql.wait()?;
        if !status.success() {
            bail!("psql failed with {status}: {}", said.trim());
        }
        flushed.map_err(|error| anyhow!("psql: {}", error.error()))
    }
}
