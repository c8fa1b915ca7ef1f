//! `grant-poca-key`: an agent's key for proofs of context.

use std::fmt::Write as _;

use permission::{
    CanonicalError, Destination, Id, Identity, PocaCandidate, PocaKey, PrincipalKey, Reason,
    SignatureInvalid, Timestamp, Verified, Window,
};
use poca::PublicKey;
use registry::{OnExisting, WriteError, Writer};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::arguments::{destinations, id};
use crate::cli::GrantPocaKeyArgs;
use crate::failure::Failure;
use crate::signing::{self, Draft, Grant, Grounds, Signed};
use crate::terminal::{Report, escape, when};
use crate::trust::Trust;
use crate::{poca_key, signed_row};

/// What the command line asks for.
struct Asked {
    poca_key_id: Id,
    identity: Identity,
    public_key: PublicKey,
    destinations: Vec<Destination>,
}

/// Runs the command; `None` if it wrote its result itself.
pub(crate) async fn run(args: &GrantPocaKeyArgs, trust: &Trust) -> Result<Option<Report>, Failure> {
    signing::run(&args.signing, trust, || Asked::read(args)).await
}

impl Asked {
    fn read(args: &GrantPocaKeyArgs) -> Result<Self, Failure> {
        // Required, unless --text is given.
        let identity = Identity::parse(args.identity.as_deref().unwrap_or_default())?;
        let poca_key_id = match &args.id {
            Some(text) => id("PoCA key id", text)?,
            None => id("PoCA key id", &format!("poca-{}", Uuid::new_v4()))?,
        };
        let destinations = destinations(&args.destinations)?;
        let public_key = poca_key::read(args.public_key.as_deref().unwrap_or_default())?;
        Ok(Self {
            poca_key_id,
            identity,
            public_key,
            destinations,
        })
    }
}

impl Draft for Asked {
    type Grant = PocaKey;

    fn destinations(&self) -> &[Destination] {
        &self.destinations
    }

    fn grants(&self, key_id: &Id, window: Window) -> Result<Vec<PocaKey>, Failure> {
        Ok(vec![PocaKey {
            poca_key_id: self.poca_key_id.clone(),
            signing_key_id: key_id.clone(),
            subject_identity: self.identity.clone(),
            ed25519_public_key: self.public_key.to_bytes(),
            window,
        }])
    }
}

impl Grant for PocaKey {
    const KIND: &'static str = "PoCA key";

    fn id(&self) -> &Id {
        &self.poca_key_id
    }

    fn signing_key_id(&self) -> &Id {
        &self.signing_key_id
    }

    fn window(&self) -> Window {
        self.window
    }

    fn canonical_bytes(&self) -> Vec<u8> {
        self.canonical_bytes()
    }

    fn from_canonical(bytes: &[u8]) -> Result<Self, CanonicalError> {
        Self::from_canonical(bytes)
    }

    fn names(&self) -> Value {
        json!({ "poca_key_id": self.poca_key_id.as_str() })
    }

    fn verify(&self, signature_der: &[u8], key: &PrincipalKey) -> Result<(), SignatureInvalid> {
        Verified::of_poca_key(self.clone(), signature_der, key).map(drop)
    }

    fn judge(&self, signature_der: &[u8], grounds: &Grounds, at: Timestamp) -> Result<(), Reason> {
        let candidate = candidate(self, signature_der, grounds);
        candidate.reach(&self.subject_identity, at).map(drop)
    }

    fn line(&self, signature_der: &[u8]) -> String {
        signed_row::signed_poca_key(self, signature_der)
    }

    async fn store(
        registry: &mut Writer,
        granted: &[Signed<Self>],
        on_existing: OnExisting,
    ) -> Result<(), WriteError> {
        registry.grant_poca_keys(granted, on_existing).await
    }

    fn report(granted: &[Signed<Self>], grounds: &Grounds, now: Timestamp) -> Report {
        let mut text = String::new();
        let mut json = Vec::new();
        for (key, signature_der) in granted {
            let public_key = poca_key::shown(&key.ed25519_public_key);
            let candidate = candidate(key, signature_der, grounds);
            let at = now.max(key.window.not_before());
            let reach = candidate
                .reach(&key.subject_identity, at)
                .unwrap_or_default();
            // Writing to a String can't fail.
            let _ = writeln!(
                text,
                "identity    {}\npublic key  {public_key}\nsigned by   {}\nvalid until {}\n\
                 granted     {}",
                escape(key.subject_identity.as_str()),
                escape(key.signing_key_id.as_str()),
                when(key.window.not_after(), now),
                escape(key.poca_key_id.as_str()),
            );
            for destination in &reach {
                let _ = writeln!(text, "for tools at {destination}");
            }
            let destinations: Vec<_> = reach.iter().map(ToString::to_string).collect();
            json.push(json!({
                "poca_key_id": key.poca_key_id.as_str(),
                "identity": key.subject_identity.as_str(),
                "public_key": public_key,
                "key_id": key.signing_key_id.as_str(),
                "destinations": destinations,
                "not_before": key.window.not_before().to_string(),
                "not_after": key.window.not_after().to_string(),
            }));
        }
        Report {
            text,
            json: json!({ "poca_keys": json }),
        }
    }
}

/// As the gateway reads it, but for every destination.
fn candidate(key: &PocaKey, signature_der: &[u8], grounds: &Grounds) -> PocaCandidate {
    PocaCandidate::new(
        key.clone(),
        false,
        signature_der,
        Some(&grounds.signer),
        &grounds.scopes,
        grounds.roots.as_ref(),
    )
}
