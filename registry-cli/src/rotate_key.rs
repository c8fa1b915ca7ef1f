//! `rotate-key`: a new key takes over an old one's scopes and signs again what that one signed; the
//! old one ends at a date, until which both count.

use std::fmt::Write as _;
use std::mem;

use permission::time::Position;
use permission::{Destination, Id, Permission, PocaKey, Scope, Signer, Timestamp, Window};
use registry::{Filter, Rotation, Writer};
use serde_json::{Value, json};
use tpm::SigningKey;
use uuid::Uuid;

use crate::arguments::id;
use crate::audit::Judged as _;
use crate::cli::RotateKeyArgs;
use crate::confirm::{ask, must_be_askable};
use crate::database::{self, within};
use crate::failure::{Failure, RootFailure};
use crate::poca_key;
use crate::principal::{Key, Place, must_be_active, public_key};
use crate::root::Endorser;
use crate::signing::{self, Grant, Grounds, Signed};
use crate::terminal::{Report, escape, tell, when};
use crate::trust::{Trust, must_be_trusted};

/// Both keys, and what passes from one to the other.
struct Plan {
    old: Id,
    new: Id,
    place: Place,
    now: Timestamp,
    old_ends: Timestamp,
    window: Window,
    /// The old key as it stands.
    signer: Signer,
    /// Who signs for keys and scopes.
    endorser: Option<Endorser>,
    scopes: Vec<(Destination, Window)>,
    /// As the old key signed them.
    permissions: Vec<Permission>,
    poca_keys: Vec<PocaKey>,
    /// Those that nobody can use now, and which are not signed again.
    left: Vec<String>,
}

/// Runs the command.
pub(crate) async fn run(args: &RotateKeyArgs, trust: &Trust) -> Result<Report, Failure> {
    if !args.yes {
        must_be_askable()?;
    }
    let (old, new) = (id("key id", &args.old)?, id("key id", &args.new)?);
    let place = Place::named(&args.key.place)?;
    let endorser = Endorser::at_hand(&args.root, trust)?;
    let mut registry = database::open(trust).await?;
    let now = within(registry.now()).await?;
    let signer = within(registry.signer(&old)).await?;
    let signer = signer.ok_or_else(|| Failure::KeyUnknown(old.clone()))?;
    must_be_active(&old, &signer, now)?;
    must_be_trusted(&old, &signer, registry.trust_roots())?;
    // A root's signature covers the old key's end, which moves.
    let rooted = trust.roots.is_some() || signer.root_signature.is_some();
    if rooted && endorser.is_none() {
        return Err(RootFailure::NoRootKey.into());
    }
    if within(registry.signer(&new)).await?.is_some() {
        return Err(Failure::IdTaken { key_id: new, place });
    }
    let old_ends = args.old_ends_in.window_from(now)?.not_after();
    let mut plan = Plan {
        old,
        new,
        place,
        now,
        old_ends: old_ends.min(signer.window.not_after()),
        window: args.valid.window_from(now)?,
        signer,
        endorser,
        scopes: Vec::new(),
        permissions: Vec::new(),
        poca_keys: Vec::new(),
        left: Vec::new(),
    };
    plan.fill(&mut registry).await?;
    // Before anything is shown: the key there may be one that is registered already.
    let found = plan.place.open()?;
    if let Some(key) = &found {
        plan.must_be_free(&mut registry, key).await?;
    }
    tell(&plan.shown());
    if !args.yes {
        ask("do this?")?;
    }
    let key = match found {
        Some(key) => key,
        None => plan.place.create(args.key.new_pin())?,
    };
    plan.carry_out(&mut registry, key.unlocked()?).await
}

impl Plan {
    /// Reads what the old key may delegate and has signed.
    async fn fill(&mut self, registry: &mut Writer) -> Result<(), Failure> {
        let olds = Filter {
            key_id: Some(self.old.clone()),
            ..Filter::default()
        };
        for scope in within(registry.all_scopes(&olds)).await? {
            let open =
                scope.revoked_at.is_none() && scope.window.position(self.now) != Position::After;
            let destination = Destination::from_normal_form(&scope.destination);
            if let (true, Some(destination)) = (open, destination) {
                self.scopes.push((destination, self.rest(&scope.window)?));
            }
        }
        self.fill_permissions(registry, &olds).await?;
        self.fill_poca_keys(registry, &olds).await
    }

    async fn fill_permissions(
        &mut self,
        registry: &mut Writer,
        olds: &Filter,
    ) -> Result<(), Failure> {
        for entry in within(registry.permissions(olds)).await? {
            if entry.revoked_at.is_some() || entry.window.position(self.now) == Position::After {
                continue;
            }
            let stored = within(registry.stored(&entry.permission_id)).await?;
            let candidate = stored.as_ref().and_then(|stored| stored.candidate().ok());
            let at = self.now.max(entry.window.not_before());
            match candidate {
                Some(candidate) if candidate.holds(at).is_ok() => {
                    self.permissions.push(candidate.permission().clone());
                }
                _ => self.left.push(entry.permission_id),
            }
        }
        Ok(())
    }

    async fn fill_poca_keys(
        &mut self,
        registry: &mut Writer,
        olds: &Filter,
    ) -> Result<(), Failure> {
        for stored in within(registry.stored_poca_keys(olds, None, None)).await? {
            if stored.is_revoked() {
                continue;
            }
            match poca_key::candidate(&stored) {
                Ok(row) if row.key().window.position(self.now) == Position::After => {}
                Ok(row)
                    if row
                        .holds(self.now.max(row.key().window.not_before()))
                        .is_ok() =>
                {
                    self.poca_keys.push(row.key().clone());
                }
                _ => self.left.push(stored.poca_key_id().to_owned()),
            }
        }
        Ok(())
    }

    /// What is left of a window.
    fn rest(&self, window: &Window) -> Result<Window, Failure> {
        Ok(Window::new(
            self.now.max(window.not_before()),
            window.not_after(),
        )?)
    }

    async fn must_be_free(&self, registry: &mut Writer, key: &Key) -> Result<(), Failure> {
        let same = Filter {
            spki: Some(key.public()?.spki().clone()),
            ..Filter::default()
        };
        match within(registry.keys(&same)).await?.pop() {
            Some(entry) => Err(Failure::KeyTaken {
                registered: entry.key_id,
            }),
            None => Ok(()),
        }
    }

    fn shown(&self) -> String {
        let mut text = format!(
            "new key     {} at {}, until {}\nold key     {} ends at {}\n",
            escape(self.new.as_str()),
            escape(&self.place.to_string()),
            when(self.window.not_after(), self.now),
            escape(self.old.as_str()),
            when(self.old_ends, self.now),
        );
        // Writing to a String can't fail.
        for (destination, window) in &self.scopes {
            let until = when(window.not_after(), self.now);
            let _ = writeln!(text, "scope       {destination} until {until}");
        }
        for permission in &self.permissions {
            let _ = writeln!(
                text,
                "sign again  {}  {}  {}",
                escape(permission.permission_id.as_str()),
                escape(permission.subject_identity.as_str()),
                permission.destination,
            );
        }
        for key in &self.poca_keys {
            let _ = writeln!(
                text,
                "sign again  {}  {}  {}",
                escape(key.poca_key_id.as_str()),
                escape(key.subject_identity.as_str()),
                poca_key::shown(&key.ed25519_public_key),
            );
        }
        for id in &self.left {
            let _ = writeln!(text, "leave       {}, which nobody can use", escape(id));
        }
        text
    }

    async fn carry_out(
        &self,
        registry: &mut Writer,
        key: &dyn SigningKey,
    ) -> Result<Report, Failure> {
        let public = public_key(key)?;
        let mut signer = Signer {
            key: public.clone(),
            window: self.window,
            revoked: false,
            root_signature: None,
        };
        let mut scopes: Vec<Scope> = self
            .scopes
            .iter()
            .map(|(destination, window)| Scope {
                destination: destination.clone(),
                window: *window,
                revoked: false,
                root_signature: None,
            })
            .collect();
        let mut old = self.signer.clone();
        old.window = Window::new(old.window.not_before(), self.old_ends)?;
        if let Some(endorser) = &self.endorser {
            endorser.vouch_for_key(&self.new, &mut signer)?;
            endorser.vouch_for_key(&self.old, &mut old)?;
            for scope in &mut scopes {
                endorser.vouch_for_scope(&self.new, &public, scope)?;
            }
        }
        let grounds = Grounds {
            signer,
            scopes,
            roots: registry.trust_roots().cloned(),
        };
        let mut again = Again::default();
        let (mut permissions, mut poca_keys) = (Vec::new(), Vec::new());
        for old in &self.permissions {
            let new = Permission {
                permission_id: id("permission id", &format!("perm-{}", Uuid::new_v4()))?,
                signing_key_id: self.new.clone(),
                window: self.rest(&old.window)?,
                ..old.clone()
            };
            permissions.push(again.sign(old, new, key, &grounds, self.now)?);
        }
        let of_permissions = mem::take(&mut again.json);
        for old in &self.poca_keys {
            let new = PocaKey {
                poca_key_id: id("PoCA key id", &format!("poca-{}", Uuid::new_v4()))?,
                signing_key_id: self.new.clone(),
                window: self.rest(&old.window)?,
                ..old.clone()
            };
            poca_keys.push(again.sign(old, new, key, &grounds, self.now)?);
        }
        let rotation = Rotation {
            old: &self.old,
            old_ends: self.old_ends,
            old_root_signature: old.root_signature.as_deref(),
            new: &self.new,
            key: &grounds.signer,
            scopes: &grounds.scopes,
            permissions: &permissions,
            poca_keys: &poca_keys,
        };
        within(registry.rotate(&rotation)).await?;
        Ok(Report {
            text: again.text,
            json: json!({
                "old_key_id": self.old.as_str(),
                "old_not_after": self.old_ends.to_string(),
                "new_key_id": self.new.as_str(),
                "spki": public.spki().to_hex(),
                "not_after": self.window.not_after().to_string(),
                "scopes": self.scopes.len(),
                "permissions": of_permissions,
                "poca_keys": again.json,
                "left": self.left,
            }),
        })
    }
}

/// What was signed again.
#[derive(Default)]
struct Again {
    text: String,
    json: Vec<Value>,
}

impl Again {
    fn sign<G: Grant>(
        &mut self,
        old: &G,
        new: G,
        key: &dyn SigningKey,
        grounds: &Grounds,
        now: Timestamp,
    ) -> Result<Signed<G>, Failure> {
        let at = now.max(new.window().not_before());
        let signed = signing::sign(new, key, grounds, at)?;
        let (from, to) = (old.id().as_str(), signed.0.id().as_str());
        // Writing to a String can't fail.
        let _ = writeln!(self.text, "signed again {} as {to}", escape(from));
        self.json.push(json!({"old": from, "new": to}));
        Ok(signed)
    }
}
