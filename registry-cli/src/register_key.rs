//! `register-key`: a principal's public key goes into the registry; its private half stays put.

use permission::{Claim, ECDSA_P256_SHA256, Id, PrincipalKey, Signer, Statement, Window};
use registry::{Filter, WriteError, Writer};
use serde_json::json;

use crate::arguments::id;
use crate::cli::RegisterKeyArgs;
use crate::database::{self, within};
use crate::failure::{Failure, RootFailure};
use crate::principal::{Place, must_be_active};
use crate::root::Endorser;
use crate::subject::Subject;
use crate::terminal::{Report, escape, say, when};
use crate::trust::Trust;

/// Runs the command. A key is made only for an id that is still free.
pub(crate) async fn run(args: &RegisterKeyArgs, trust: &Trust) -> Result<Report, Failure> {
    let key_id = id("key id", &args.key_id)?;
    let endorser = Endorser::at_hand(&args.root, trust)?;
    if let Some(public_key) = &args.public_key {
        return anothers(&key_id, public_key, args, trust, endorser.as_ref()).await;
    }
    let place = Place::named(&args.key.place)?;
    let mut registry = database::open(trust).await?;
    let now = within(registry.now()).await?;
    let registered = within(registry.signer(&key_id)).await?;
    let (key, origin) = match place.open()? {
        Some(key) => (key, "found"),
        None if registered.is_some() => return Err(Failure::IdTaken { key_id, place }),
        None => (place.create(args.key.new_pin())?, "made"),
    };
    if let Place::File(path) = &place {
        say(
            "warning",
            &format!(
                "{} is a software key: whoever can read the file can copy it, which a TPM \
                 would not allow",
                path.display()
            ),
        );
    }
    let key = key.public()?;
    let (window, outcome) = if let Some(signer) = registered {
        if signer.key != key {
            return Err(Failure::IdTaken { key_id, place });
        }
        must_be_active(&key_id, &signer, now)?;
        sign_again(&mut registry, &key_id, &signer, endorser.as_ref()).await?;
        (signer.window, "already registered")
    } else {
        let window = args.valid.window_from(now)?;
        store(&mut registry, &key_id, &key, &window, endorser.as_ref()).await?;
        (window, "registered")
    };
    tell_if_untrusted(&mut registry, &key_id).await?;
    let spki = key.spki().to_hex();
    Ok(Report {
        text: format!(
            "{outcome}  {}\nkey         {} ({origin})\nspki        {spki}\nvalid until {}\n",
            escape(key_id.as_str()),
            escape(&place.to_string()),
            when(window.not_after(), now),
        ),
        json: json!({
            "key_id": key_id.as_str(),
            "outcome": outcome,
            "key": origin,
            "place": place.to_string(),
            "spki": spki,
            "not_before": window.not_before().to_string(),
            "not_after": window.not_after().to_string(),
        }),
    })
}

/// Registers a key whose private half is elsewhere.
async fn anothers(
    key_id: &Id,
    text: &str,
    args: &RegisterKeyArgs,
    trust: &Trust,
    endorser: Option<&Endorser>,
) -> Result<Report, Failure> {
    let subject = Subject::read(text)?;
    subject.must_be_p256()?;
    let key = PrincipalKey::from_stored(ECDSA_P256_SHA256, subject.spki.as_der())?;
    let mut registry = database::open(trust).await?;
    let now = within(registry.now()).await?;
    let window = args.valid.window_from(now)?;
    store(&mut registry, key_id, &key, &window, endorser).await?;
    tell_if_untrusted(&mut registry, key_id).await?;
    let spki = key.spki().to_hex();
    Ok(Report {
        text: format!(
            "registered  {}\nspki        {spki}\nvalid until {}\n",
            escape(key_id.as_str()),
            when(window.not_after(), now),
        ),
        json: json!({
            "key_id": key_id.as_str(),
            "outcome": "registered",
            "key": "elsewhere",
            "place": null,
            "spki": spki,
            "not_before": window.not_before().to_string(),
            "not_after": window.not_after().to_string(),
        }),
    })
}

async fn store(
    registry: &mut Writer,
    key_id: &Id,
    key: &PrincipalKey,
    window: &Window,
    endorser: Option<&Endorser>,
) -> Result<(), Failure> {
    let mut signer = Signer {
        key: key.clone(),
        window: *window,
        revoked: false,
        root_signature: None,
    };
    if let Some(endorser) = endorser {
        endorser.vouch_for_key(key_id, &mut signer)?;
    }
    let signature = signer.root_signature.as_deref();
    let stored = within(registry.register_key(key_id, key, window, signature)).await;
    // Whose it is can't be told by the refusal alone.
    if let Err(Failure::Write(WriteError::Exists(_))) = stored {
        let filter = Filter {
            spki: Some(key.spki().clone()),
            ..Filter::default()
        };
        let entries = within(registry.keys(&filter)).await?;
        let same = entries
            .into_iter()
            .find(|entry| entry.key_id != key_id.as_str());
        if let Some(entry) = same {
            return Err(Failure::KeyTaken {
                registered: entry.key_id,
            });
        }
    }
    stored
}

/// A root at hand signs a key that is registered already, as it stands.
async fn sign_again(
    registry: &mut Writer,
    key_id: &Id,
    signer: &Signer,
    endorser: Option<&Endorser>,
) -> Result<(), Failure> {
    let Some(endorser) = endorser else {
        return Ok(());
    };
    let statement = Statement {
        registry_id: endorser.registry_id.clone(),
        key_id: key_id.clone(),
        key: signer.key.clone(),
        claim: Claim::Signs,
        window: signer.window,
    };
    let signature = endorser.sign(&statement)?;
    match within(registry.endorse(&[(statement, signature)])).await? {
        None => Ok(()),
        Some(gone) => Err(RootFailure::StatementGone(gone.key_id).into()),
    }
}

/// Where roots are asked for, a key that none has signed is of no use yet.
async fn tell_if_untrusted(registry: &mut Writer, key_id: &Id) -> Result<(), Failure> {
    let signer = within(registry.signer(key_id)).await?;
    let roots = registry.trust_roots();
    if signer.is_some_and(|signer| !signer.is_trusted(key_id, roots)) {
        say(
            "note",
            &format!("no trust root has signed {key_id} yet: `root sign {key_id}` does"),
        );
    }
    Ok(())
}
