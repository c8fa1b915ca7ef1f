//! `grant`: signs permissions, one for each destination, and stores all of them or none.

use std::fmt::Write as _;

use permission::{
    Candidate, Destination, Id, Identity, Permission, Request, Scope, Signer, Spki, Timestamp,
    Window, judge,
};
use registry::Writer;
use serde_json::json;
use tpm::SigningKey;
use uuid::Uuid;

use crate::arguments::{destinations, id};
use crate::cli::GrantArgs;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::principal::{Place, must_be_active, public_key};
use crate::scope::{Delegation, must_cover};
use crate::subject::Subject;
use crate::terminal::{Report, escape, say, to_the_second, when};

/// What the command line asks for, read in full.
struct Asked {
    key_id: Id,
    identity: Identity,
    spki: Spki,
    destinations: Vec<Destination>,
}

/// Runs the command.
pub(crate) async fn run(args: &GrantArgs) -> Result<Report, Failure> {
    let asked = Asked::read(args)?;
    let place = Place::named(&args.key)?;
    let mut registry = database::open().await?;
    let now = within(registry.now()).await?;
    let window = args.valid.window_from(now)?;
    let signer = within(registry.signer(&asked.key_id)).await?;
    let signer = signer.ok_or_else(|| Failure::KeyUnknown(asked.key_id.clone()))?;
    must_be_active(&asked.key_id, &signer, now)?;
    let scopes = covering_scopes(&mut registry, &asked, &window, now).await?;

    let key = place.open()?;
    let key = key.ok_or_else(|| Failure::KeyAbsent(place.clone()))?;
    if public_key(&*key)? != signer.key {
        return Err(Failure::OtherKey {
            key_id: asked.key_id,
            place,
        });
    }
    if signer.window.not_after() < window.not_after() {
        let end = to_the_second(signer.window.not_after());
        let key_id = &asked.key_id;
        say(
            "warning",
            &format!("{key_id} ends at {end}, and the permission with it"),
        );
    }
    let mut permissions = Vec::new();
    for (destination, scopes) in asked.destinations.iter().zip(scopes) {
        let permission = asked.permission(destination, window);
        permissions.push(sign(permission?, &*key, &signer, &scopes, now)?);
    }
    within(registry.grant(&permissions)).await?;
    Ok(report(&asked, &permissions, &window, now))
}

impl Asked {
    fn read(args: &GrantArgs) -> Result<Self, Failure> {
        let key_id = id("key id", &args.key_id)?;
        let identity = Identity::parse(&args.identity)?;
        let destinations = destinations(&args.destinations)?;
        let subject = Subject::read(&args.spki)?;
        subject.must_be_p256()?;
        subject.must_be(&identity)?;
        Ok(Self {
            key_id,
            identity,
            spki: subject.spki,
            destinations,
        })
    }

    fn permission(&self, destination: &Destination, window: Window) -> Result<Permission, Failure> {
        Ok(Permission {
            permission_id: id("permission id", &format!("perm-{}", Uuid::new_v4()))?,
            signing_key_id: self.key_id.clone(),
            subject_identity: self.identity.clone(),
            subject_spki: self.spki.clone(),
            destination: destination.clone(),
            window,
        })
    }
}

/// The scopes for each destination, one of which covers the window.
async fn covering_scopes(
    registry: &mut Writer,
    asked: &Asked,
    window: &Window,
    now: Timestamp,
) -> Result<Vec<Vec<Scope>>, Failure> {
    let mut all = Vec::new();
    for destination in &asked.destinations {
        let scopes = within(registry.scopes(&asked.key_id, destination)).await?;
        must_cover(&scopes, window, now).map_err(|gap| Failure::Scope {
            delegation: Delegation {
                key_id: asked.key_id.clone(),
                destination: destination.clone(),
            },
            gap,
        })?;
        all.push(scopes);
    }
    Ok(all)
}

/// Signs a permission, and puts it to the judge that it will meet at the gateway: the signature
/// is verified there, too.
fn sign(
    permission: Permission,
    key: &dyn SigningKey,
    signer: &Signer,
    scopes: &[Scope],
    now: Timestamp,
) -> Result<(Permission, Vec<u8>), Failure> {
    let signature = key.sign(&permission.canonical_bytes())?.as_bytes().to_vec();
    let request = Request {
        identity: permission.subject_identity.clone(),
        spki: permission.subject_spki.clone(),
        destination: permission.destination.clone(),
    };
    let signer = Some(signer.clone());
    let candidate = Candidate::new(permission.clone(), false, &signature, signer, scopes);
    judge(&candidate, &request, now).map_err(Failure::Unusable)?;
    Ok((permission, signature))
}

fn report(
    asked: &Asked,
    signed: &[(Permission, Vec<u8>)],
    window: &Window,
    now: Timestamp,
) -> Report {
    let spki = asked.spki.to_hex();
    let mut text = format!(
        "identity    {}\nspki        {spki}\nsigned by   {}\nvalid until {}\n",
        escape(asked.identity.as_str()),
        escape(asked.key_id.as_str()),
        when(window.not_after(), now),
    );
    let mut permissions = Vec::new();
    for (permission, _) in signed {
        let (id, destination) = (&permission.permission_id, &permission.destination);
        // Writing to a String can't fail.
        let _ = writeln!(text, "granted     {id}  {destination}");
        permissions.push(json!({
            "permission_id": id.as_str(),
            "destination": destination.to_string(),
        }));
    }
    Report {
        text,
        json: json!({
            "identity": asked.identity.as_str(),
            "spki": spki,
            "key_id": asked.key_id.as_str(),
            "not_before": window.not_before().to_string(),
            "not_after": window.not_after().to_string(),
            "permissions": permissions,
        }),
    }
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::DerSignature;
    use permission::Reason;
    use tpm::{SignError, SoftwareKey};

    use super::*;

    /// A key that does not sign what it is given.
    #[derive(Debug)]
    struct Faulty(SoftwareKey);

    impl SigningKey for Faulty {
        fn public_key(&self) -> &p256::PublicKey {
            self.0.public_key()
        }

        fn sign(&self, message: &[u8]) -> Result<DerSignature, SignError> {
            self.0.sign(&[message, b"x"].concat())
        }
    }

    #[test]
    fn what_the_gateway_would_deny_is_not_handed_on() {
        let folder = tempfile::tempdir().unwrap();
        let key = Faulty(SoftwareKey::create(&folder.path().join("key.pem")).unwrap());
        let now = Timestamp::from_unix_micros(0).unwrap();
        let window = "30d".parse::<crate::validity::Validity>().unwrap();
        let window = window.window_from(now).unwrap();
        let public = public_key(&key).unwrap();
        let asked = Asked {
            key_id: Id::parse("org-alice").unwrap(),
            identity: Identity::parse("agent-alpha").unwrap(),
            spki: public.spki().clone(),
            destinations: Vec::new(),
        };
        let destination: Destination = "docstore".parse().unwrap();
        let signer = Signer {
            key: public,
            window,
            revoked: false,
        };
        let scope = Scope {
            destination: destination.clone(),
            window,
            revoked: false,
        };
        let grant = |key: &dyn SigningKey, scopes: &[Scope]| {
            let permission = asked.permission(&destination, window).unwrap();
            match sign(permission, key, &signer, scopes, now) {
                Ok(_) => None,
                Err(Failure::Unusable(reason)) => Some(reason),
                Err(other) => panic!("{other}"),
            }
        };
        let scopes = [scope];
        assert_eq!(grant(&key.0, &scopes), None);
        assert_eq!(grant(&key, &scopes), Some(Reason::SignatureInvalid));
        assert_eq!(grant(&key.0, &[]), Some(Reason::ScopeMissing));
    }
}
