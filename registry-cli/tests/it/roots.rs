//! Roots of trust: what they sign, and how the commands judge by them.

mod judging;
mod moving;
mod signing;

use permission::{Decision, Reason, RootKey, TrustRoots, decide};
use serde_json::Value;

use crate::office::{KEY, Office, now, text};

/// An office whose gateway has a root of trust.
struct Rooted {
    office: Office,
    registry_id: String,
    root_file: String,
    root: String,
}

impl Rooted {
    /// Nothing is registered; the root's key is in a file.
    async fn new() -> Self {
        let office = Office::new().await;
        let root_file = text(&office.path("root.pem"));
        let made = office.done(&["root", "init", "--root-key-file", &root_file]);
        assert_eq!(made["key"], "made");
        let id = "SELECT registry_id FROM registry_identity";
        Self {
            registry_id: office.database.query(id).unwrap(),
            root: made["spki"].as_str().unwrap().to_owned(),
            root_file,
            office,
        }
    }

    /// With a key and a scope that the root has signed.
    async fn signed() -> Self {
        let rooted = Self::new().await;
        let key_file = rooted.office.key_file();
        rooted.done(&rooted.with_root(&["register-key", KEY, "--key-file", &key_file]));
        rooted.done(&rooted.with_root(&["grant-scope", KEY, "docstore"]));
        rooted
    }

    fn with_root<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [arguments, &["--root-key-file", &self.root_file]].concat()
    }

    /// As a gateway with this root judges.
    fn trusting<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let trust = [
            "--trust-root",
            &self.root,
            "--registry-id",
            &self.registry_id,
        ];
        [arguments, &trust].concat()
    }

    fn done(&self, arguments: &[&str]) -> Value {
        self.office.done(&self.trusting(arguments))
    }

    fn refused(&self, arguments: &[&str]) -> (i32, String) {
        self.office.refused(&self.trusting(arguments))
    }

    fn grant(&self) -> Vec<String> {
        self.office.grant_arguments(&[])
    }

    /// The reason for which the agent is denied, or `None`.
    async fn denial(&self) -> Option<Reason> {
        let root = RootKey::parse(self.root.as_bytes()).unwrap();
        let registry_id = permission::Id::parse(&self.registry_id).unwrap();
        let roots = TrustRoots::new(registry_id, vec![root]).unwrap();
        let request = self.office.request("docstore");
        let facts = self.office.facts_under(&request, Some(roots)).await;
        match decide(&facts, &request, now()) {
            Decision::Allow(_) => None,
            Decision::Deny(reason) => Some(reason),
        }
    }
}
