//! `grant`: signs permissions, one for each destination, and stores all of them or none.

pub(crate) mod elsewhere;

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};

use permission::{
    Candidate, Destination, Id, Identity, Permission, Reason, Request, Scope, Signer, Spki,
    Timestamp, TrustRoots, Verified, Window, judge,
};
use registry::{OnExisting, Writer};
use serde_json::json;
use tpm::SigningKey;
use uuid::Uuid;

use crate::arguments::{destinations, id};
use crate::cli::GrantArgs;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::principal::{Place, must_be_active, public_key};
use crate::scope::{Delegation, ScopeGap, must_cover};
use crate::subject::Subject;
use crate::terminal::{Report, escape, say, to_the_second, when, write};
use crate::trust::{Trust, must_be_trusted};
use crate::{clock, signed_row};

/// What the command line asks for, read in full.
struct Asked {
    key_id: Id,
    identity: Identity,
    spki: Spki,
    destinations: Vec<Destination>,
    permission_id: Option<Id>,
}

/// Runs the command; `None` if it wrote its result itself.
pub(crate) async fn run(args: &GrantArgs, trust: &Trust) -> Result<Option<Report>, Failure> {
    let on_existing = if args.replace {
        OnExisting::Replace
    } else {
        OnExisting::Refuse
    };
    if let (Some(text), Some(signature)) = (&args.text, &args.signature) {
        return elsewhere::run(text, signature, on_existing, trust)
            .await
            .map(Some);
    }
    let asked = Asked::read(args)?;
    let place = Place::named(&args.key)?;
    if args.offline {
        return offline(&asked, &place, args);
    }
    let mut registry = database::open(trust).await?;
    let now = within(registry.now()).await?;
    let window = args.valid.window_from(now)?;
    let signer = within(registry.signer(&asked.key_id)).await?;
    let signer = signer.ok_or_else(|| Failure::KeyUnknown(asked.key_id.clone()))?;
    must_be_active(&asked.key_id, &signer, now)?;
    must_be_trusted(&asked.key_id, &signer, registry.trust_roots())?;
    let scopes = covering_scopes(&mut registry, &asked, &signer, &window, now).await?;
    if signer.window.not_after() < window.not_after() {
        let end = to_the_second(signer.window.not_after());
        let key_id = &asked.key_id;
        say(
            "warning",
            &format!("{key_id} ends at {end}, and the permission with it"),
        );
    }
    let permissions = asked.permissions(window)?;
    if args.dry_run {
        return Ok(Some(texts(&permissions)));
    }

    let key = place.open()?;
    let key = key.ok_or_else(|| Failure::KeyAbsent(place.clone()))?;
    if key.public()? != signer.key {
        return Err(Failure::OtherKey {
            key_id: asked.key_id,
            place,
        });
    }
    let key = key.unlocked()?;
    let mut granted = Vec::new();
    for (permission, scopes) in permissions.into_iter().zip(scopes) {
        let roots = registry.trust_roots();
        granted.push(sign(permission, key, &signer, &scopes, roots, now)?);
    }
    within(registry.grant(&granted, on_existing)).await?;
    Ok(Some(report(&granted, now)))
}

/// Signs without the registry: what it would refuse, `import` refuses.
fn offline(asked: &Asked, place: &Place, args: &GrantArgs) -> Result<Option<Report>, Failure> {
    let permissions = asked.permissions(args.valid.window_from(clock::now()?)?)?;
    if args.dry_run {
        return Ok(Some(texts(&permissions)));
    }
    let key = place.open()?;
    let key = key.ok_or_else(|| Failure::KeyAbsent(place.clone()))?;
    let key = key.unlocked()?;
    let public = public_key(key)?;
    let mut lines = String::new();
    for permission in permissions {
        let signature = key.sign(&permission.canonical_bytes())?;
        let verified = Verified::new(permission, signature.as_bytes(), &public)
            .map_err(|_| Failure::Unusable(Reason::SignatureInvalid))?;
        lines += &signed_row::signed(verified.get(), signature.as_bytes());
    }
    write(&lines)?;
    Ok(None)
}

/// The exact texts that would be signed; on a terminal they can't move the cursor.
fn texts(permissions: &[Permission]) -> Report {
    let mut text = String::new();
    let mut json = Vec::new();
    for permission in permissions {
        // Made of text alone.
        let canonical = String::from_utf8_lossy(&permission.canonical_bytes()).into_owned();
        json.push(json!({
            "permission_id": permission.permission_id.as_str(),
            "destination": permission.destination.to_string(),
            "text": canonical,
        }));
        text += &canonical;
    }
    if io::stdout().is_terminal() {
        text = text.lines().map(|line| escape(line) + "\n").collect();
    }
    Report {
        text,
        json: json.into(),
    }
}

impl Asked {
    fn read(args: &GrantArgs) -> Result<Self, Failure> {
        // Required, unless --text is given.
        let text = |option: &Option<String>| option.clone().unwrap_or_default();
        let key_id = id("key id", &text(&args.key_id))?;
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
            key_id,
            identity,
            spki: subject.spki,
            destinations,
            permission_id,
        })
    }

    /// One for each destination.
    fn permissions(&self, window: Window) -> Result<Vec<Permission>, Failure> {
        let permission = |destination: &Destination| {
            let permission_id = match &self.permission_id {
                Some(id) => id.clone(),
                None => id("permission id", &format!("perm-{}", Uuid::new_v4()))?,
            };
            Ok(Permission {
                permission_id,
                signing_key_id: self.key_id.clone(),
                subject_identity: self.identity.clone(),
                subject_spki: self.spki.clone(),
                destination: destination.clone(),
                window,
            })
        };
        self.destinations.iter().map(permission).collect()
    }
}

/// The scopes for each destination, one of which covers the window.
async fn covering_scopes(
    registry: &mut Writer,
    asked: &Asked,
    signer: &Signer,
    window: &Window,
    now: Timestamp,
) -> Result<Vec<Vec<Scope>>, Failure> {
    let mut all = Vec::new();
    for destination in &asked.destinations {
        let scopes = within(registry.scopes(&asked.key_id, destination)).await?;
        let roots = registry.trust_roots();
        let counts = |scope: &&Scope| signer.may_delegate(&asked.key_id, scope, roots);
        let counting: Vec<_> = scopes.iter().filter(counts).cloned().collect();
        let covered = match must_cover(&counting, window, now) {
            Err(_) if must_cover(&scopes, window, now).is_ok() => Err(ScopeGap::Untrusted),
            covered => covered,
        };
        covered.map_err(|gap| Failure::Scope {
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
    roots: Option<&TrustRoots>,
    now: Timestamp,
) -> Result<(Permission, Vec<u8>), Failure> {
    let signature = key.sign(&permission.canonical_bytes())?.as_bytes().to_vec();
    let request = Request {
        identity: permission.subject_identity.clone(),
        spki: permission.subject_spki.clone(),
        destination: permission.destination.clone(),
    };
    let candidate = Candidate::new(
        permission.clone(),
        false,
        &signature,
        Some(signer),
        scopes,
        roots,
    );
    judge(&candidate, &request, now).map_err(Failure::Unusable)?;
    Ok((permission, signature))
}

fn report(signed: &[(Permission, Vec<u8>)], now: Timestamp) -> Report {
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

#[cfg(test)]
mod tests {
    use p256::ecdsa::DerSignature;
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
            destinations: vec!["docstore".parse().unwrap()],
            permission_id: None,
        };
        let destination = asked.destinations[0].clone();
        let signer = Signer {
            key: public,
            window,
            revoked: false,
            root_signature: None,
        };
        let scope = Scope {
            destination: destination.clone(),
            window,
            revoked: false,
            root_signature: None,
        };
        let grant = |key: &dyn SigningKey, scopes: &[Scope]| {
            let permission = asked.permissions(window).unwrap().remove(0);
            match sign(permission, key, &signer, scopes, None, now) {
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
