//! `root`: roots of trust sign principals' keys, and what each may delegate.

mod init;
mod show;
mod sign;
pub(crate) mod unsigned;

use permission::{Claim, Id, PrincipalKey, RootKey, Scope, Signer, Statement, Window};
use tpm::Location;

use crate::Outcome;
use crate::cli::{RootCommand, RootKeyArgs};
use crate::environment;
use crate::failure::{Failure, RootFailure};
use crate::principal::{Key, Place};
use crate::terminal::Report;
use crate::trust::Trust;

/// A root's key at hand, and the registry that it signs for.
pub(crate) struct Endorser {
    key: Key,
    /// The public half.
    pub(crate) root: RootKey,
    /// In which registry.
    pub(crate) registry_id: Id,
}

/// Runs a command; `None` if it wrote its result itself.
pub(crate) async fn run(
    command: &RootCommand,
    trust: &Trust,
) -> Result<(Option<Report>, Outcome), Failure> {
    let report = match command {
        RootCommand::Init(args) => Some(init::run(args)?),
        RootCommand::Sign(args) => sign::run(args, trust).await?,
        RootCommand::Show => Some(show::run(trust).await?),
    };
    Ok((report, Outcome::Yes))
}

impl Endorser {
    /// The root's key that the options name; `None` if they name none.
    pub(crate) fn at_hand(args: &RootKeyArgs, trust: &Trust) -> Result<Option<Self>, Failure> {
        if args.is_given() {
            Self::open(args, trust).map(Some)
        } else {
            Ok(None)
        }
    }

    /// As [`Endorser::at_hand`], where there must be one.
    pub(crate) fn open(args: &RootKeyArgs, trust: &Trust) -> Result<Self, Failure> {
        let registry_id = trust.signs_for()?.clone();
        let place = place(args)?;
        let key = place.open()?.ok_or(RootFailure::RootAbsent(place))?;
        let root = root_key(&key)?;
        let known = |roots: &permission::TrustRoots| roots.keys().contains(&root);
        if trust.roots.as_ref().is_some_and(|roots| !known(roots)) {
            return Err(RootFailure::OtherRoot(root.fingerprint()).into());
        }
        key.unlocked()?;
        Ok(Self {
            key,
            root,
            registry_id,
        })
    }

    /// Signs a statement about a key.
    pub(crate) fn sign(&self, statement: &Statement) -> Result<Vec<u8>, Failure> {
        let signature = self.key.locked().sign(&statement.canonical_bytes())?;
        let signature_der = signature.as_bytes().to_vec();
        if !self.root.signed(statement, &signature_der) {
            return Err(RootFailure::RootSignature.into());
        }
        Ok(signature_der)
    }

    fn signed(
        &self,
        key_id: &Id,
        key: &PrincipalKey,
        claim: Claim,
        window: Window,
    ) -> Result<Vec<u8>, Failure> {
        self.sign(&Statement {
            registry_id: self.registry_id.clone(),
            key_id: key_id.clone(),
            key: key.clone(),
            claim,
            window,
        })
    }

    /// Signs that the key of that id counts.
    pub(crate) fn vouch_for_key(&self, key_id: &Id, signer: &mut Signer) -> Result<(), Failure> {
        let signature = self.signed(key_id, &signer.key, Claim::Signs, signer.window)?;
        signer.root_signature = Some(signature);
        Ok(())
    }

    /// Signs that the key of that id may delegate this.
    pub(crate) fn vouch_for_scope(
        &self,
        key_id: &Id,
        key: &PrincipalKey,
        scope: &mut Scope,
    ) -> Result<(), Failure> {
        let claim = Claim::Delegates(scope.destination.clone());
        scope.root_signature = Some(self.signed(key_id, key, claim, scope.window)?);
        Ok(())
    }
}

/// The place that the options name.
fn place(args: &RootKeyArgs) -> Result<Place, Failure> {
    if let Some(path) = &args.root_key_file {
        return Ok(Place::File(path.clone()));
    }
    let handle = args.root_handle.ok_or(RootFailure::NoRootKey)?;
    let tcti = match &args.root_tcti {
        Some(tcti) => tcti.clone(),
        None => environment::tcti()?,
    };
    Ok(Place::Tpm(Location { tcti, handle }))
}

fn root_key(key: &Key) -> Result<RootKey, Failure> {
    Ok(RootKey::from_spki(key.public()?.spki())?)
}
