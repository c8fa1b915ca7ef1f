//! Tool calls: permission, proof, contract, policy and audit, beside an empty service that is sent
//! the same body; and policy in the service beside policy by a server.
//!
//! A proof counts once, so each Check has one of its own, made beforehand.

mod rules;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use permission::{Identity, Timestamp};
use poca::Manifest;
use sha2::{Digest as _, Sha256};
use testbed::Authz;
use testbed::rows::Times;

use crate::Effort;
use crate::checks::{CONCURRENCY, FIGURES, compare, empty_beside};
use crate::empty::Empty;
use crate::load::{Asked, Measured, micros, run};
use crate::opa::Opa;
use crate::population::{Agents, Registry, setting};
use crate::question::{Question, tail};
use crate::report::{Report, Rounds, Target};
use crate::statistics::median;
use crate::usage;
use rules::Rules;

/// So few that all of them stay warm.
const PERMISSIONS: usize = 1000;
/// Name and bytes of a body.
const BODIES: [(&str, usize); 2] = [("1 KiB", 1024), ("256 KiB", 256 * 1024)];
/// For how long a proof is good.
const PROOF: Duration = Duration::from_mins(30);
/// What a call may cost, in microseconds, beyond what the empty service costs, checking the proof's
/// signature and hashing the body.
const OWN_MICROS: f64 = 30.0;

/// Who calls, and with what.
struct Calls {
    registry: Registry,
    agents: Agents,
    body: Vec<u8>,
    tail: Bytes,
}

/// A service that records what it decides.
struct Audited {
    authz: Authz,
    _folder: tempfile::TempDir,
}

/// Measures with each body.
pub(crate) async fn measure(effort: Effort, report: &mut Report) -> Result<()> {
    report.note(
        "relay: warm permissions, a new proof for each call, a contract, the policy as shipped, \
         nonces in memory, audit on; the policy server is ours and answers at once, for want of an \
         OPA: what OPA takes comes on top"
            .to_owned(),
    );
    let registry = Registry::new().await?;
    let agents = registry.fill("agent", PERMISSIONS, &Times::default())?;
    let rules = Rules::write(registry.first_destination()?, agents.identities())?;
    let opa = Opa::start()?;
    let mut embedded = Audited::start(&registry, &rules, None)?;
    let mut remote = Audited::start(&registry, &rules, Some(&opa))?;
    let mut calls = Calls {
        registry,
        agents,
        body: Vec::new(),
        tail: Bytes::new(),
    };
    for (name, bytes) in BODIES {
        calls.body = rules::body(bytes);
        calls.tail = tail(calls.body.clone());
        calls
            .beside_empty(name, embedded.asked(), effort, report)
            .await?;
        if bytes == 1024 {
            calls
                .beside_remote(embedded.asked(), remote.asked(), effort, report)
                .await?;
        }
    }
    Ok(())
}

impl Audited {
    fn start(registry: &Registry, rules: &Rules, opa: Option<&Opa>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("audit.jsonl");
        let mut options = registry.options();
        let environment = &mut options.environment;
        environment.push(setting("AUDIT__PATH", &path.display().to_string()));
        environment.extend(rules.environment(opa.is_none()));
        environment.extend(opa.map(|opa| ("OPA_URL".to_owned(), opa.url())));
        Ok(Self {
            authz: Authz::start(&options)?,
            _folder: folder,
        })
    }

    fn asked(&mut self) -> Asked {
        Asked {
            address: self.authz.grpc_addr(),
            process: self.authz.process().id(),
            empty: None,
        }
    }
}

impl Calls {
    /// So many Checks that no service has seen.
    fn questions(&self, count: usize) -> Result<Arc<[Question]>> {
        let hash: [u8; 32] = Sha256::digest(&self.body).into();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let ends = i64::try_from((now + PROOF).as_micros())?;
        let expires = Timestamp::from_unix_micros(ends).context("the clock")?;
        let serial = std::cell::Cell::new(now.as_nanos());
        let headers = |number: usize, identity: &str| {
            serial.set(serial.get() + 1);
            let manifest = Manifest {
                caller: Identity::parse(identity)?,
                tool: "echo".to_owned(),
                intent: "a benchmark".to_owned(),
                scopes: Vec::new(),
                payload_sha256: hash,
                nonce: format!("{:032x}", serial.get()),
                expires,
            };
            let signed = poca::sign(&rules::key(number), &manifest)?;
            Ok([
                ("content-type", "application/json".to_owned()),
                ("x-poca-manifest", signed.manifest),
                ("x-poca-signature", signed.signature),
            ])
        };
        let questions = self
            .registry
            .calls(&self.agents, count, &self.tail, headers);
        Ok(questions?.into())
    }

    /// How many make a round: the larger they are, the fewer.
    fn count(&self, effort: Effort, concurrency: usize) -> usize {
        let all = if effort.short { 2_000 } else { 10_000 };
        let all = if concurrency == 1 { all / 5 } else { all };
        if self.body.len() > 64 * 1024 {
            all / 10
        } else {
            all
        }
    }

    async fn ask(&self, asked: Asked, count: usize, concurrency: usize) -> Result<Measured> {
        run(asked, &self.questions(count)?, count, concurrency).await
    }

    async fn beside_empty(
        &self,
        body: &str,
        ours: Asked,
        effort: Effort,
        report: &mut Report,
    ) -> Result<()> {
        self.ask(ours, PERMISSIONS, 16).await?;
        let questions = self.questions(16)?;
        let (_empty, empty): (Empty, Asked) = empty_beside(ours, &questions).await?;
        for concurrency in CONCURRENCY {
            let count = self.count(effort, concurrency);
            for asked in [empty, ours] {
                self.ask(asked, count / 2, concurrency).await?;
            }
            let (mut rounds, mut own) = (Vec::new(), Vec::new());
            for _ in 0..effort.rounds() {
                let before = self.ask(empty, count, concurrency).await?;
                let decided = self.ask(ours, count, concurrency).await?;
                let after = self.ask(empty, count, concurrency).await?;
                let given = f64::midpoint(before.cpu, after.cpu) + self.proof_micros()?;
                own.push(decided.cpu - given);
                rounds.push([before, decided, after]);
            }
            compare(
                report,
                "relay",
                &format!("{body}, c{concurrency}"),
                &rounds,
                |_| None,
            );
            let name = format!("{body}, c{concurrency}: beyond empty, signature, hash");
            let target = (body == "1 KiB" && concurrency > 1).then_some(Target::AtMost(OWN_MICROS));
            let result = median(&own);
            report.measure("relay", &name, "us", own, result, target);
        }
        Ok(())
    }

    async fn beside_remote(
        &self,
        embedded: Asked,
        remote: Asked,
        effort: Effort,
        report: &mut Report,
    ) -> Result<()> {
        for concurrency in CONCURRENCY {
            let count = self.count(effort, concurrency);
            let mut rounds: Vec<[Measured; 3]> = Vec::new();
            for asked in [remote, embedded] {
                self.ask(asked, count / 2, concurrency).await?;
            }
            for _ in 0..effort.rounds() {
                let before = self.ask(remote, count, concurrency).await?;
                let ours = self.ask(embedded, count, concurrency).await?;
                rounds.push([before, ours, self.ask(remote, count, concurrency).await?]);
            }
            for (figure, unit, value) in FIGURES {
                let column =
                    |place: usize| rounds.iter().filter_map(move |it| it.get(place)).map(value);
                let columns = Rounds {
                    before: column(0).collect(),
                    ours: column(1).collect(),
                    after: column(2).collect(),
                };
                let name = format!("embedded Rego to remote, c{concurrency}: {figure}");
                report.compare("relay", &name, unit, columns, None);
            }
        }
        Ok(())
    }

    /// What checking one signature over a manifest takes, and hashing the body: here, now, by the
    /// same code as in the service.
    fn proof_micros(&self) -> Result<f64> {
        const TIMES: u32 = 50;
        let key = SigningKey::from_bytes(&[7; 32]);
        let text = [b'x'; 400];
        let signature = key.sign(&text);
        let verifying = key.verifying_key();
        let began = usage::own_thread()?;
        for _ in 0..TIMES {
            black_box(&verifying).verify_strict(&text, &signature)?;
            black_box(Sha256::digest(black_box(&self.body)));
        }
        Ok(micros(usage::own_thread()?.saturating_sub(began)) / f64::from(TIMES))
    }
}
