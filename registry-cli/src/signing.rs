//! How a principal signs, whatever that is: with its key here, without the registry, or elsewhere.
//! All that is asked for is stored, or nothing.

pub(crate) mod elsewhere;

use std::io::{self, IsTerminal as _};

use permission::{
    CanonicalError, Destination, Id, PrincipalKey, Reason, Scope, SignatureInvalid, Signer,
    Timestamp, TrustRoots, Window,
};
use registry::{OnExisting, WriteError, Writer};
use serde_json::Value;
use tpm::SigningKey;

use crate::arguments::id;
use crate::cli::SigningArgs;
use crate::clock;
use crate::database::{self, within};
use crate::failure::Failure;
use crate::principal::{Place, must_be_active, public_key};
use crate::scope;
use crate::terminal::{Report, escape, say, to_the_second, write};
use crate::trust::{Trust, must_be_trusted};

/// What a principal signs, and the registry then holds.
pub(crate) trait Grant: Sized {
    /// As messages name it.
    const KIND: &'static str;

    fn id(&self) -> &Id;

    fn signing_key_id(&self) -> &Id;

    fn window(&self) -> Window;

    /// The exact text that is signed.
    fn canonical_bytes(&self) -> Vec<u8>;

    fn from_canonical(bytes: &[u8]) -> Result<Self, CanonicalError>;

    /// What tells it from the others that are signed with it, as a JSON object.
    fn names(&self) -> Value;

    /// Makes sure that this key signed it.
    fn verify(&self, signature_der: &[u8], key: &PrincipalKey) -> Result<(), SignatureInvalid>;

    /// Whether it counts at that time: by the judge that it will meet at the gateway, which verifies
    /// the signature, too.
    fn judge(&self, signature_der: &[u8], grounds: &Grounds, at: Timestamp) -> Result<(), Reason>;

    /// The line that `import` reads.
    fn line(&self, signature_der: &[u8]) -> String;

    /// Stores all of them or none.
    async fn store(
        registry: &mut Writer,
        granted: &[Signed<Self>],
        on_existing: OnExisting,
    ) -> Result<(), WriteError>;

    /// What was granted.
    fn report(granted: &[Signed<Self>], grounds: &Grounds, now: Timestamp) -> Report;
}

/// With its signature in DER.
pub(crate) type Signed<G> = (G, Vec<u8>);

/// What grants rest on.
pub(crate) struct Grounds {
    /// The registered key that they name.
    pub(crate) signer: Signer,
    /// Its scopes.
    pub(crate) scopes: Vec<Scope>,
    pub(crate) roots: Option<TrustRoots>,
}

/// What the command line asks for, read in full.
pub(crate) trait Draft {
    type Grant: Grant;

    /// What the key must be able to delegate for as long as the grants are valid; if nothing is
    /// named, anything at all.
    fn destinations(&self) -> &[Destination];

    fn grants(&self, key_id: &Id, window: Window) -> Result<Vec<Self::Grant>, Failure>;
}

/// Signs and stores what `read` reads; `None` if the result is written already.
pub(crate) async fn run<D: Draft>(
    args: &SigningArgs,
    trust: &Trust,
    read: impl FnOnce() -> Result<D, Failure>,
) -> Result<Option<Report>, Failure> {
    let on_existing = if args.replace {
        OnExisting::Replace
    } else {
        OnExisting::Refuse
    };
    if let (Some(text), Some(signature)) = (&args.text, &args.signature) {
        let stored = elsewhere::run::<D::Grant>(text, signature, on_existing, trust);
        return stored.await.map(Some);
    }
    // Required, unless --text is given.
    let key_id = id("key id", args.key_id.as_deref().unwrap_or_default())?;
    let draft = read()?;
    let place = Place::named(&args.key)?;
    if args.offline {
        return offline(&draft, &key_id, &place, args);
    }
    let mut registry = database::open(trust).await?;
    let now = within(registry.now()).await?;
    let window = args.valid.window_from(now)?;
    let grounds = grounds(&mut registry, &key_id, draft.destinations(), &window, now).await?;
    if grounds.signer.window.not_after() < window.not_after() {
        let end = to_the_second(grounds.signer.window.not_after());
        let kind = D::Grant::KIND;
        say(
            "warning",
            &format!("{key_id} ends at {end}, and the {kind} with it"),
        );
    }
    let grants = draft.grants(&key_id, window)?;
    if args.dry_run {
        return Ok(Some(texts(&grants)));
    }

    let key = place.open()?;
    let key = key.ok_or_else(|| Failure::KeyAbsent(place.clone()))?;
    if key.public()? != grounds.signer.key {
        return Err(Failure::OtherKey { key_id, place });
    }
    let key = key.unlocked()?;
    let sign = |grant| sign(grant, key, &grounds, now);
    let granted: Vec<_> = grants.into_iter().map(sign).collect::<Result<_, _>>()?;
    within(D::Grant::store(&mut registry, &granted, on_existing)).await?;
    Ok(Some(D::Grant::report(&granted, &grounds, now)))
}

/// Signs without the registry: what it would refuse, `import` refuses.
fn offline<D: Draft>(
    draft: &D,
    key_id: &Id,
    place: &Place,
    args: &SigningArgs,
) -> Result<Option<Report>, Failure> {
    let grants = draft.grants(key_id, args.valid.window_from(clock::now()?)?)?;
    if args.dry_run {
        return Ok(Some(texts(&grants)));
    }
    let key = place.open()?;
    let key = key.ok_or_else(|| Failure::KeyAbsent(place.clone()))?;
    let key = key.unlocked()?;
    let public = public_key(key)?;
    let mut lines = String::new();
    for grant in grants {
        let signature = key.sign(&grant.canonical_bytes())?;
        grant
            .verify(signature.as_bytes(), &public)
            .map_err(|_| unusable::<D::Grant>(Reason::SignatureInvalid))?;
        lines += &grant.line(signature.as_bytes());
    }
    write(&lines)?;
    Ok(None)
}

/// The exact texts that would be signed; on a terminal they can't move the cursor.
fn texts<G: Grant>(grants: &[G]) -> Report {
    let mut text = String::new();
    let mut json = Vec::new();
    for grant in grants {
        // Made of text alone.
        let canonical = String::from_utf8_lossy(&grant.canonical_bytes()).into_owned();
        text += &canonical;
        let mut names = grant.names();
        if let Some(names) = names.as_object_mut() {
            names.insert("text".to_owned(), canonical.into());
        }
        json.push(names);
    }
    if io::stdout().is_terminal() {
        text = text.lines().map(|line| escape(line) + "\n").collect();
    }
    Report {
        text,
        json: json.into(),
    }
}

/// What stands behind a key's signatures, if they count and it may delegate what is asked for.
async fn grounds(
    registry: &mut Writer,
    key_id: &Id,
    destinations: &[Destination],
    window: &Window,
    now: Timestamp,
) -> Result<Grounds, Failure> {
    let signer = within(registry.signer(key_id)).await?;
    let signer = signer.ok_or_else(|| Failure::KeyUnknown(key_id.clone()))?;
    must_be_active(key_id, &signer, now)?;
    must_be_trusted(key_id, &signer, registry.trust_roots())?;
    let grounds = Grounds {
        signer,
        scopes: within(registry.scopes(key_id)).await?,
        roots: registry.trust_roots().cloned(),
    };
    scope::must_be_delegated(key_id, destinations, &grounds, window, now)?;
    Ok(grounds)
}

/// Signs, and makes sure that the gateway would take it then.
pub(crate) fn sign<G: Grant>(
    grant: G,
    key: &dyn SigningKey,
    grounds: &Grounds,
    at: Timestamp,
) -> Result<Signed<G>, Failure> {
    let signature = key.sign(&grant.canonical_bytes())?.as_bytes().to_vec();
    let judged = grant.judge(&signature, grounds, at);
    judged.map_err(unusable::<G>)?;
    Ok((grant, signature))
}

fn unusable<G: Grant>(reason: Reason) -> Failure {
    Failure::Unusable {
        kind: G::KIND,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::DerSignature;
    use permission::{Identity, Permission, PocaKey};
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

    /// Why a grant would not be handed on.
    fn refused<G: Grant>(grant: G, key: &dyn SigningKey, grounds: &Grounds) -> Option<Reason> {
        match sign(grant, key, grounds, Timestamp::MIN) {
            Ok(_) => None,
            Err(Failure::Unusable { reason, .. }) => Some(reason),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn what_the_gateway_would_deny_is_not_handed_on() {
        let folder = tempfile::tempdir().unwrap();
        let key = Faulty(SoftwareKey::create(&folder.path().join("key.pem")).unwrap());
        let window = "30d".parse::<crate::validity::Validity>().unwrap();
        let window = window.window_from(Timestamp::MIN).unwrap();
        let public = public_key(&key).unwrap();
        let destination: Destination = "docstore".parse().unwrap();
        let permission = Permission {
            permission_id: Id::parse("perm-1").unwrap(),
            signing_key_id: Id::parse("org-alice").unwrap(),
            subject_identity: Identity::parse("agent-alpha").unwrap(),
            subject_spki: public.spki().clone(),
            destination: destination.clone(),
            window,
        };
        let poca_key = PocaKey {
            poca_key_id: Id::parse("poca-1").unwrap(),
            signing_key_id: permission.signing_key_id.clone(),
            subject_identity: permission.subject_identity.clone(),
            ed25519_public_key: [9; 32],
            window,
        };
        let scope = Scope {
            destination,
            window,
            revoked: false,
            root_signature: None,
        };
        let mut grounds = Grounds {
            signer: Signer {
                key: public,
                window,
                revoked: false,
                root_signature: None,
            },
            scopes: vec![scope],
            roots: None,
        };
        assert_eq!(refused(permission.clone(), &key.0, &grounds), None);
        assert_eq!(refused(poca_key.clone(), &key.0, &grounds), None);
        let invalid = Some(Reason::SignatureInvalid);
        assert_eq!(refused(permission.clone(), &key, &grounds), invalid);
        assert_eq!(refused(poca_key.clone(), &key, &grounds), invalid);
        grounds.scopes.clear();
        let missing = Some(Reason::ScopeMissing);
        assert_eq!(refused(permission, &key.0, &grounds), missing);
        assert_eq!(refused(poca_key, &key.0, &grounds), missing);
    }
}
