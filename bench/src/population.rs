//! Agents, destinations and the permissions between them.

use std::fmt::Write as _;

use anyhow::Result;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use testbed::rows::{Grant, Principal};
use testbed::{ClientCertificate, Database};

/// Destinations that every agent may reach.
const DESTINATIONS: usize = 100;

/// What the registry was filled with.
#[derive(Debug)]
pub(crate) struct Population {
    agents: Vec<ClientCertificate>,
    destinations: Vec<String>,
}

impl Population {
    /// Makes agents and destinations until there are `permissions` pairs, and grants them all.
    pub(crate) fn fill(database: &Database, permissions: usize) -> Result<Self> {
        let destinations: Vec<_> = (0..DESTINATIONS)
            .map(|number| format!("host-{number}.test:443"))
            .collect();
        let names: Vec<_> = destinations.iter().map(String::as_str).collect();
        let principal = Principal::registered(database, &names)?;
        let mut agents = Vec::new();
        for number in 0..permissions.div_ceil(DESTINATIONS) {
            let identity = format!("agent-{number}");
            let agent = ClientCertificate::for_identity(&identity)?;
            let grants: Vec<_> = destinations
                .iter()
                .map(|destination| Grant::new(&identity, agent.spki_der(), destination))
                .collect();
            principal.grant_all(database, &grants)?;
            agents.push(agent);
        }
        database.execute("ANALYZE")?;
        Ok(Self {
            agents,
            destinations,
        })
    }

    /// The hosts file that the service resolves the destinations by.
    pub(crate) fn hosts(&self) -> String {
        self.destinations
            .iter()
            .fold(String::new(), |mut hosts, destination| {
                let name = destination.trim_end_matches(":443");
                // Writing to a String can't fail.
                let _ = writeln!(hosts, "127.0.0.1 {name}");
                hosts
            })
    }

    /// The rules that let them resolve to loopback.
    pub(crate) fn private(&self) -> Vec<(String, Vec<String>)> {
        let loopback = vec!["127.0.0.1/32".to_owned()];
        self.destinations
            .iter()
            .map(|to| (to.clone(), loopback.clone()))
            .collect()
    }

    /// One Check for each permission, as Envoy would send it, in an order that mixes agents.
    pub(crate) fn requests(&self) -> Vec<CheckRequest> {
        let certificates: Vec<_> = self
            .agents
            .iter()
            .map(|agent| utf8_percent_encode(agent.pem(), NON_ALPHANUMERIC).to_string())
            .collect();
        let pairs = self.destinations.iter().flat_map(|destination| {
            certificates
                .iter()
                .map(move |certificate| (destination, certificate))
        });
        pairs
            .map(|(destination, certificate)| check(destination, certificate))
            .collect()
    }
}

fn check(destination: &str, certificate: &str) -> CheckRequest {
    let http = HttpRequest {
        method: "CONNECT".to_owned(),
        host: destination.to_owned(),
        headers: [(
            "x-request-id".to_owned(),
            "00000000-0000-4000-8000-000000000000".to_owned(),
        )]
        .into(),
        ..Default::default()
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(Peer {
                certificate: certificate.to_owned(),
                ..Default::default()
            }),
            request: Some(Request {
                http: Some(http),
                ..Default::default()
            }),
            ..Default::default()
        }),
    }
}
