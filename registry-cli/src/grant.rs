//! `grant`: permissions, one for each destination.

use std::fmt::Write as _;

use permission::{
    Candidate, CanonicalError, Destination, Id, Identity, Permission, PrincipalKey, Reason,
    SignatureInvalid, Spki, Timestamp, Verified, Window, judge,
};
use registry::{OnExisting, WriteError, Writer};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::arguments::{destinations, id};
use crate::audit::own_request;
use crate::cli::GrantArgs;
use crate::failure::Failure;
use crate::signed_row;
use crate::signing::{self, Draft, Grant, Grounds, Signed};
use crate::subject::Subject;
use crate::terminal::{Report, escape, when};
use crate::trust::Trust;

/// What the command line asks for.
struct Asked {
    identity: Identity,
    spki: Spki,
    destinations: Vec<Destination>,
    permission_id: Option<Id>,
}

/// Runs the command; `None` if it wrote its result itself.
pub(crate) async fn run(args: &GrantArgs, trust: &Trust) -> Result<Option<Report>, Failure> {
    signing::run(&args.signing, trust, || Asked::read(args)).await
}

impl Asked {
    fn read(args: &GrantArgs) -> Result<Self, Failure> {
        // Required, unless --text is given.
        let text = |option: &Option<String>| option.clone().unwrap_or_default();
        let identity = Identity::parse(&text(&args.identity))?;
        let destinations = destinations(&args.destinations)?;
        let permission_id = args.id.as_deref().map(|text| id("permission id", text));
        let permission_id = permission_id.transpose()?;
        if permission_id.is_some() && destinations.len() != 1 {
            return Err(Failure::OneId(destinations.len()));
        }
        let subject = Subject::read(&text(&args.spki))?;
        subject.must_be_p256()?;
        subject.must_be(&identity)?;
        Ok(Self {
            identity,
            spki: subject.spki,
            destinations,
            permission_id,
        })
    }
}

impl Draft for Asked {
    type Grant = Permission;

    fn destinations(&self) -> &[Destination] {
        &self.destinations
    }

    fn grants(&self, key_id: &Id, window: Window) -> Result<Vec<Permission>, Failure> {
        let permission = |destination: &Destination| {
            let permission_id = match &self.permission_id {
                Some(id) => id.clone(),
                None => id("permission id", &format!("perm-{}", Uuid::new_v4()))?,
            };
            Ok(Permission {
                permission_id,
                signing_key_id: key_id.clone(),
                subject_identity: self.identity.clone(),
                subject_spki: self.spki.clone(),
                destination: destination.clone(),
                window,
            })
        };
        self.destinations.iter().map(permission).collect()
    }
}

impl Grant for Permission {
    const KIND: &'static str = "permission";

    fn id(&self) -> &Id {
        &self.permission_id
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
        json!({
            "permission_id": self.permission_id.as_str(),
            "destination": self.destination.to_string(),
        })
    }

    fn verify(&self, signature_der: &[u8], key: &PrincipalKey) -> Result<(), SignatureInvalid> {
        Verified::new(self.clone(), signature_der, key).map(drop)
    }

    fn judge(&self, signature_der: &[u8], grounds: &Grounds, at: Timestamp) -> Result<(), Reason> {
        let candidate = Candidate::new(
            self.clone(),
            false,
            signature_der,
            Some(&grounds.signer),
            &grounds.scopes,
            grounds.roots.as_ref(),
        );
        judge(&candidate, &own_request(&candidate), at).map(drop)
    }

    fn line(&self, signature_der: &[u8]) -> String {
        signed_row::signed(self, signature_der)
    }

    async fn store(
        registry: &mut Writer,
        granted: &[Signed<Self>],
        on_existing: OnExisting,
    ) -> Result<(), WriteError> {
        registry.grant(granted, on_existing).await
    }

    fn report(granted: &[Signed<Self>], _: &Grounds, now: Timestamp) -> Report {
        report(granted, now)
    }
}

fn report(signed: &[Signed<Permission>], now: Timestamp) -> Report {
    let mut text = String::new();
    let mut json = json!({});
    let mut permissions = Vec::new();
    for (permission, _) in signed {
        let Permission {
            permission_id: id,
            signing_key_id: key_id,
            subject_identity: identity,
            subject_spki,
            destination,
            window,
        } = permission;
        // All but id and destination are the same in all of them.
        if permissions.is_empty() {
            let spki = subject_spki.to_hex();
            text = format!(
                "identity    {}\nspki        {spki}\nsigned by   {}\nvalid until {}\n",
                escape(identity.as_str()),
                escape(key_id.as_str()),
                when(window.not_after(), now),
            );
            json = json!({
                "identity": identity.as_str(),
                "spki": spki,
                "key_id": key_id.as_str(),
                "not_before": window.not_before().to_string(),
                "not_after": window.not_after().to_string(),
            });
        }
        // Writing to a String can't fail.
        let _ = writeln!(text, "granted     {}  {destination}", escape(id.as_str()));
        permissions.push(json!({
            "permission_id": id.as_str(),
            "destination": destination.to_string(),
        }));
    }
    if let Some(json) = json.as_object_mut() {
        json.insert("permissions".to_owned(), permissions.into());
    }
    Report { text, json }
}
