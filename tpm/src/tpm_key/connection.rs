//! The TPM commands: find a key, make one, sign with it.

use std::thread;
use std::time::{Duration, Instant};

use p256::PublicKey;
use p256::ecdsa::Signature;
use ring::rand::{SecureRandom as _, SystemRandom};
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::constants::{CapabilityType, PropertyTag};
use tss_esapi::handles::{KeyHandle, ObjectHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::dynamic_handles::Persistent;
use tss_esapi::interface_types::resource_handles::{Hierarchy, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Auth, CapabilityData, Digest, HashScheme, HashcheckTicket, Signature as TpmSignature,
    SignatureScheme,
};
use tss_esapi::tss2_esys::{TPM2B_DIGEST, TPMT_TK_HASHCHECK};
use tss_esapi::{Context, Error, WrapperErrorKind};

use super::template::{self, Fit, Guessing, Unfit};
use super::{TpmError, TssFailure};
use crate::{Location, Pin, Pins};

/// How long is waited for a slot while other programs fill the TPM's, and the shortest pause in
/// between. Whoever makes a key, as we do, is through with it sooner.
const CROWDED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(30));

/// An open connection to a TPM that holds a key that may serve.
///
/// Dropping it frees what it has in the TPM, so that an error leaves no transient slot in use.
pub(super) struct Connection {
    context: Context,
    key: KeyHandle,
    fit: Fit,
}

impl Connection {
    /// Connects and looks for the key; `None` if the handle is empty.
    pub(super) fn open(location: &Location) -> Result<Option<Connection>, TpmError> {
        patiently(|| Connection::open_now(location))
    }

    /// As [`Connection::open`], but makes a key first if the handle is empty.
    pub(super) fn open_or_create(
        location: &Location,
        pins: &Pins,
    ) -> Result<Option<Connection>, TpmError> {
        patiently(|| {
            if let Some(connection) = Connection::open_now(location)? {
                return Ok(Some(connection));
            }
            match create(&mut connect(location)?, location, pins) {
                Ok(()) => tracing::info!(tpm.location = %location, "made a signing key in the TPM"),
                // Another process was faster; its key is as good.
                Err(failure) if failure.is_occupied_handle() => {}
                Err(failure) => return Err(creation_failed(failure, location, pins)),
            }
            Connection::open_now(location)
        })
    }

    fn open_now(location: &Location) -> Result<Option<Connection>, TpmError> {
        let mut context = connect(location)?;
        let found = find(&mut context, location).map_err(|failure| failure.at(location))?;
        Ok(found.map(|(key, fit)| Connection { context, key, fit }))
    }

    /// Takes the key out of its handle, if it is this one; whatever else is there stays.
    pub(super) fn remove(
        location: &Location,
        public_key: &PublicKey,
        owner: Option<&Pin>,
    ) -> Result<(), TpmError> {
        let Some(connection) = Connection::open(location)? else {
            return Ok(());
        };
        if connection.public_key() != *public_key {
            return Ok(());
        }
        connection.evict(location, owner).map_err(|failure| {
            if failure.is_wrong_pin() {
                let given = owner.is_some();
                let location = location.clone();
                TpmError::OwnerPin { location, given }
            } else {
                Failure::Tss("remove its key", failure).at(location)
            }
        })
    }

    fn evict(mut self, location: &Location, owner: Option<&Pin>) -> Result<(), TssFailure> {
        let place = Persistent::Persistent(tpm_handle(location)?);
        let key = ObjectHandle::from(self.key);
        if let Some(owner) = owner {
            let auth = Auth::try_from(owner.bytes())?;
            self.context.tr_set_auth(ObjectHandle::Owner, auth)?;
        }
        self.context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.evict_control(Provision::Owner, key, place)
            })?;
        Ok(())
    }

    pub(super) fn public_key(&self) -> PublicKey {
        self.fit.public_key
    }

    pub(super) fn wants_pin(&self) -> bool {
        self.fit.guessing == Guessing::LocksTheKey
    }

    /// The PIN that goes with each signature from now on; the TPM sees it only then.
    pub(super) fn set_pin(&mut self, pin: &Pin) -> Result<(), TssFailure> {
        let auth = Auth::try_from(pin.bytes())?;
        Ok(self.context.tr_set_auth(self.key.into(), auth)?)
    }

    /// How many more wrong PINs the TPM takes before it locks.
    pub(super) fn attempts_left(&mut self) -> Option<u32> {
        let most = self.property(PropertyTag::MaxAuthFail)?;
        let made = self.property(PropertyTag::LockoutCounter)?;
        Some(most.saturating_sub(made))
    }

    /// How long it takes until the TPM forgets one wrong PIN.
    pub(super) fn recovers(&mut self) -> Option<Duration> {
        let seconds = self.property(PropertyTag::LockoutInterval)?;
        Some(Duration::from_secs(seconds.into()))
    }

    /// The wrapper remembers what it was told, so a connection is asked only once.
    fn property(&mut self, property: PropertyTag) -> Option<u32> {
        self.context.get_tpm_property(property).ok().flatten()
    }

    /// Signs a SHA-256 digest.
    pub(super) fn sign(&mut self, digest: [u8; 32]) -> Result<Signature, TssFailure> {
        let digest = Digest::try_from(digest.as_slice())?;
        let scheme = SignatureScheme::EcDsa {
            hash_scheme: HashScheme::new(HashingAlgorithm::Sha256),
        };
        let ticket = no_ticket()?;
        let key = self.key;
        let signature = self
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.sign(key, digest, scheme, ticket)
            })?;
        let strange = Error::WrapperError(WrapperErrorKind::WrongValueFromTpm);
        let TpmSignature::EcDsa(signature) = signature else {
            return Err(strange.into());
        };
        let r = template::left_pad(signature.signature_r().value()).ok_or(strange)?;
        let s = template::left_pad(signature.signature_s().value()).ok_or(strange)?;
        Signature::from_scalars(r, s).map_err(|_| strange.into())
    }
}

/// What goes wrong while looking at a handle, before it is told where.
enum Failure {
    Tss(&'static str, TssFailure),
    Taken(Unfit),
}

impl Failure {
    fn at(self, location: &Location) -> TpmError {
        let location = location.clone();
        match self {
            Failure::Tss(_, failure) if failure.is_lost_connection() => TpmError::Unreachable {
                tcti: location.tcti,
                failure,
            },
            Failure::Tss(step, failure) => TpmError::Refused {
                location,
                step,
                failure,
            },
            Failure::Taken(unfit) => TpmError::HandleTaken { location, unfit },
        }
    }
}

fn connect(location: &Location) -> Result<Context, TpmError> {
    Context::new(location.tcti.name_conf()).map_err(|error| TpmError::Unreachable {
        tcti: location.tcti.clone(),
        failure: error.into(),
    })
}

fn tpm_handle(location: &Location) -> Result<PersistentTpmHandle, Error> {
    PersistentTpmHandle::new(location.handle.value())
}

fn find(context: &mut Context, location: &Location) -> Result<Option<(KeyHandle, Fit)>, Failure> {
    if !is_occupied(context, location)
        .map_err(|error| Failure::Tss("list its handles", error.into()))?
    {
        return Ok(None);
    }
    let key = tpm_handle(location)
        .and_then(|handle| context.tr_from_tpm_public(TpmHandle::Persistent(handle)))
        .map(KeyHandle::from)
        .map_err(|error| Failure::Tss("read its key", error.into()))?;
    let public = match context.read_public(key) {
        Ok((public, _name, _qualified_name)) => public,
        // A kind of object that the wrapper can't express.
        Err(Error::WrapperError(_)) => return Err(Failure::Taken(Unfit::NotEcc)),
        Err(error) => return Err(Failure::Tss("read its key", error.into())),
    };
    let fit = template::inspect(&public).map_err(Failure::Taken)?;
    Ok(Some((key, fit)))
}

/// Asks for the list of handles: reading an empty one would make the C library complain.
fn is_occupied(context: &mut Context, location: &Location) -> Result<bool, Error> {
    let wanted = TpmHandle::Persistent(tpm_handle(location)?);
    let (capability, _more) =
        context.get_capability(CapabilityType::Handles, location.handle.value(), 1)?;
    match capability {
        CapabilityData::Handles(handles) => Ok(handles.into_inner().first() == Some(&wanted)),
        _ => Err(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm)),
    }
}

/// Two commands at once on a TPM without a resource manager are in each other's way: making a key
/// takes two slots of at least three, and looking at one takes one.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, TpmError>) -> Result<T, TpmError> {
    let (patience, pause) = CROWDED;
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Err(TpmError::Refused { failure, .. })
                if failure.is_crowded() && Instant::now() < deadline =>
            {
                // Those who come again at the same moment would be in each other's way for ever.
                thread::sleep(pause * u32::from(1 + random_byte() % 8));
            }
            outcome => return outcome,
        }
    }
}

/// Zero if the operating system gives none: then the pauses are merely alike.
fn random_byte() -> u8 {
    let mut byte = [0];
    let _ = SystemRandom::new().fill(&mut byte);
    byte[0]
}

fn creation_failed(failure: TssFailure, location: &Location, pins: &Pins) -> TpmError {
    let location = location.clone();
    if failure.is_wrong_pin() {
        let given = pins.owner.is_some();
        TpmError::OwnerPin { location, given }
    } else if failure.is_full() {
        TpmError::Full { location }
    } else {
        Failure::Tss("make a key", failure).at(&location)
    }
}

/// Makes a key and puts it at the handle.
///
/// The primary key and the loaded key take a transient slot each; both are freed, whatever fails.
fn create(context: &mut Context, location: &Location, pins: &Pins) -> Result<(), TssFailure> {
    let place = Persistent::Persistent(tpm_handle(location)?);
    let template = template::primary()?;
    let pin = pins.user.as_ref().filter(|pin| !pin.is_empty());
    let key_template = template::signing_key(match pin {
        Some(_) => Guessing::LocksTheKey,
        None => Guessing::Pointless,
    })?;
    let pin = pin.map(|pin| Auth::try_from(pin.bytes())).transpose()?;
    if let Some(owner) = &pins.owner {
        context.tr_set_auth(ObjectHandle::Owner, Auth::try_from(owner.bytes())?)?;
    }
    context.execute_with_session(Some(AuthSession::Password), |context| {
        let primary = context
            .create_primary(Hierarchy::Owner, template, None, None, None, None)?
            .key_handle;
        context.execute_with_temporary_object(primary.into(), |context, _| {
            let made = context.create(primary, key_template, pin, None, None, None)?;
            let key = context.load(primary, made.out_private, made.out_public)?;
            context.execute_with_temporary_object(key.into(), |context, key: ObjectHandle| {
                context.evict_control(Provision::Owner, key, place)
            })
        })
    })?;
    Ok(())
}

/// An unrestricted key signs digests from outside, which come with no proof from the TPM (part 3,
/// `TPM2_Sign`).
fn no_ticket() -> Result<HashcheckTicket, Error> {
    HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
        tag: TPM2_ST_HASHCHECK,
        hierarchy: TPM2_RH_NULL,
        digest: TPM2B_DIGEST::default(),
    })
}
