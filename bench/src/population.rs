//! Agents, destinations and the permissions between them.

use std::fmt::Write as _;
use std::ops::Range;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use permission::{Identity, Request, Spki};
use testbed::rows::{Grant, Principal, Times};
use testbed::{AuthzOptions, Bulk, ClientCertificate, Database, authz};

use crate::question::{Question, Verdict};

/// Each agent may reach all of them, so there are ten times as many permissions as agents.
const DESTINATIONS: usize = 10;

/// A registry filled with permissions.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) database: Database,
    pub(crate) principal: Principal,
    destinations: Vec<String>,
}

/// Agents of one registry who all have the same permissions.
#[derive(Debug)]
pub(crate) struct Agents(Vec<Agent>);

#[derive(Debug)]
struct Agent {
    identity: String,
    spki: Vec<u8>,
    /// As Envoy sends it.
    certificate: String,
}

impl Registry {
    /// A migrated database with one principal, who may delegate the destinations.
    pub(crate) async fn new() -> Result<Self> {
        let database = testbed::database().await?;
        authz::migrate(&database.url())?;
        let destinations: Vec<_> = (0..DESTINATIONS)
            .map(|number| format!("host-{number}.test:443"))
            .collect();
        let names: Vec<_> = destinations.iter().map(String::as_str).collect();
        let principal = Principal::registered(&database, &names)?;
        Ok(Self {
            database,
            principal,
            destinations,
        })
    }

    /// Makes as many agents as it takes for `permissions`, and grants them.
    pub(crate) fn fill(&self, name: &str, permissions: usize, times: &Times) -> Result<Agents> {
        let agents = permissions / DESTINATIONS;
        let threads = thread::available_parallelism()?.get();
        let share = agents.div_ceil(threads).max(1);
        let parts = thread::scope(|scope| {
            let begin = |first: usize| {
                let numbers = first..(first + share).min(agents);
                scope.spawn(move || self.fill_part(name, numbers, times))
            };
            let running: Vec<_> = (0..agents).step_by(share).map(begin).collect();
            let done = running.into_iter().map(|thread| {
                let part = thread.join();
                part.map_err(|_| anyhow!("a thread panicked"))?
            });
            done.collect::<Result<Vec<_>>>()
        })?;
        self.database.execute("ANALYZE permission_registry")?;
        Ok(Agents(parts.into_iter().flatten().collect()))
    }

    fn fill_part(&self, name: &str, numbers: Range<usize>, times: &Times) -> Result<Vec<Agent>> {
        let mut rows = Bulk::begin(&self.database, &self.principal)?;
        let mut agents = Vec::with_capacity(numbers.len());
        for number in numbers {
            let identity = format!("{name}-{number}");
            let certificate = ClientCertificate::for_identity(&identity)?;
            for destination in &self.destinations {
                let grant = Grant::new(&identity, certificate.spki_der(), destination);
                rows.grant(&grant.during(times.clone()))?;
            }
            agents.push(Agent {
                identity,
                spki: certificate.spki_der().to_vec(),
                certificate: as_envoy_sends(certificate.pem()),
            });
        }
        rows.finish()?;
        Ok(agents)
    }

    /// What the service needs so that it finds the registry and the destinations; all else is its
    /// default.
    pub(crate) fn options(&self) -> AuthzOptions {
        let mut hosts = String::new();
        for destination in &self.destinations {
            // Writing to a String can't fail.
            let _ = writeln!(hosts, "127.0.0.1 {}", destination.trim_end_matches(":443"));
        }
        let loopback = vec!["127.0.0.1/32".to_owned()];
        let private = self.destinations.iter();
        AuthzOptions {
            database_url: self.database.url(),
            hosts,
            private: private.map(|to| (to.clone(), loopback.clone())).collect(),
            // The product's default, in place of the tests' shorter one.
            environment: vec![setting("POLICY__POLL_INTERVAL_MS", "200")],
            ..AuthzOptions::default()
        }
    }

    /// Makes all that is cached stale, so that it is as new as can be when it is next asked for.
    pub(crate) fn touch(&self) -> Result<()> {
        self.database
            .execute("UPDATE principal_signing_keys SET updated_at = now()")
    }

    /// Checks about permissions of `agents`, agents in turn: with as many as there are agents, each
    /// shows its certificate once. All must be allowed, or `denied` for this reason.
    pub(crate) fn questions(
        &self,
        agents: &Agents,
        numbers: Range<usize>,
        denied: Option<&str>,
    ) -> Vec<Question> {
        let question = |number| {
            let (agent, destination) = self.pair(agents, number)?;
            let id = format!("{}-{destination}", agent.identity);
            let verdict = denied.map_or(Verdict::Allow(&id), Verdict::Deny);
            Some(Question::new(&agent.certificate, destination, verdict))
        };
        numbers.filter_map(question).collect()
    }

    /// Where the tool is that is called.
    pub(crate) fn first_destination(&self) -> Result<&str> {
        let first = self.destinations.first().context("no destinations")?;
        Ok(first)
    }

    /// Calls of a tool at the first destination by the agents in turn, all to be allowed: the
    /// headers of each are what `headers` says about its caller.
    pub(crate) fn calls(
        &self,
        agents: &Agents,
        count: usize,
        tail: &Bytes,
        headers: impl Fn(usize, &str) -> Result<[(&'static str, String); 3]>,
    ) -> Result<Vec<Question>> {
        let callers = agents.0.iter().enumerate().cycle().take(count);
        let destination = self.first_destination()?;
        let question = |(number, agent): (usize, &Agent)| {
            let id = format!("{}-{destination}", agent.identity);
            let headers = headers(number, &agent.identity)?;
            let verdict = Verdict::Allow(&id);
            Ok(Question::of_call(
                &agent.certificate,
                headers,
                tail,
                verdict,
            ))
        };
        callers.map(question).collect()
    }

    /// As [`Registry::questions`], as the service asks the registry.
    pub(crate) fn requests(&self, agents: &Agents, numbers: Range<usize>) -> Result<Vec<Request>> {
        let pairs = numbers.filter_map(|number| self.pair(agents, number));
        let request = |(agent, destination): (&Agent, &str)| {
            Ok(Request {
                identity: Identity::parse(&agent.identity)?,
                spki: Spki::from_der(&agent.spki)?,
                destination: destination.parse()?,
            })
        };
        pairs.map(request).collect()
    }

    fn pair<'a>(&'a self, agents: &'a Agents, number: usize) -> Option<(&'a Agent, &'a str)> {
        let agent = agents.0.get(number % agents.0.len())?;
        let destination = self.destinations.get(number / agents.0.len())?;
        Some((agent, destination))
    }
}

impl Agents {
    /// Who they are.
    pub(crate) fn identities(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|agent| agent.identity.as_str())
    }

    /// How many permissions they have.
    pub(crate) fn permissions(&self) -> usize {
        self.0.len() * DESTINATIONS
    }

    /// Takes away those who have the last `permissions`.
    pub(crate) fn split_off(&mut self, permissions: usize) -> Self {
        let left = self.0.len().saturating_sub(permissions / DESTINATIONS);
        Self(self.0.split_off(left))
    }

    /// Checks for a destination that none of them was granted.
    pub(crate) fn ungranted(&self, destination: &str) -> Vec<Question> {
        let verdict = Verdict::Deny("no_permission");
        let question = |agent: &Agent| Question::new(&agent.certificate, destination, verdict);
        self.0.iter().map(question).collect()
    }
}

/// A setting in the service's environment.
pub(crate) fn setting(key: &str, value: &str) -> (String, String) {
    (format!("AGENT_GATEWAY__{key}"), value.to_owned())
}

/// PEM as Envoy encodes it in a Check.
fn as_envoy_sends(pem: &str) -> String {
    pem.replace(' ', "%20")
        .replace('\n', "%0A")
        .replace('+', "%2B")
        .replace('/', "%2F")
        .replace('=', "%3D")
}
