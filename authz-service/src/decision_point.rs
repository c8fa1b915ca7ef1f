//! Decides one request: the registry's facts, the rules of `permission`, then the address.

use std::sync::Arc;

use permission::{Decision, Destination, Id, Reason, Request, Timestamp, decide};
use registry::Reader;
use tokio::time::{Instant, timeout_at};

use crate::addresses::AddressPolicy;
use crate::cache::{Cache, Entry};
use crate::resolver::{ResolveError, Resolver, Target};

/// How often a request is decided whose grounds change meanwhile.
const TRIES: usize = 2;

/// What a decision needs at hand.
#[derive(Debug)]
pub struct DecisionPoint {
    /// Signed permissions, in memory while they are known to be current.
    pub cache: Cache,
    /// The same from the registry itself, for probes and explanations.
    pub registry: Reader,
    /// Names to addresses.
    pub resolver: Resolver,
    /// Which addresses may be dialled.
    pub addresses: AddressPolicy,
}

/// Leave to open one tunnel to one address, or to send one request on.
#[derive(Debug, Clone)]
pub struct Leave {
    /// The permission's id.
    pub permission_id: Id,
    /// The id of the key that signed it.
    pub signing_key_id: Id,
    /// When the tunnel must end.
    pub ends_at: Timestamp,
    /// What Envoy must dial; none where it isn't resolved here.
    pub target: Option<Target>,
}

/// No leave.
#[derive(Debug)]
pub struct Denial {
    /// What the agent is told.
    pub reason: Reason,
    /// What stood in the way, where that isn't the registry's contents: for the operator alone,
    /// as it may name addresses.
    pub cause: Option<String>,
}

impl From<Reason> for Denial {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            cause: None,
        }
    }
}

/// What a permission allows, as long as nothing changes.
#[derive(Debug, Clone)]
pub struct Grounds {
    /// The permission's id.
    pub permission_id: Id,
    /// The id of the key that signed it.
    pub signing_key_id: Id,
    /// When they end.
    pub ends_at: Timestamp,
    entry: Arc<Entry>,
}

impl DecisionPoint {
    /// Decides, by `deadline`, and resolves the destination if `resolve` says so; what can't be
    /// decided by then is denied.
    pub async fn decide(
        &self,
        request: &Request,
        now: Timestamp,
        deadline: Instant,
        resolve: bool,
    ) -> Result<Leave, Denial> {
        // Resolving takes time, in which what was decided on may have changed: then once more.
        for _ in 0..TRIES {
            let grounds = self.grounds(request, now, deadline).await?;
            // Only a destination that is allowed is looked up: nobody else may make us send DNS
            // queries.
            let target = if resolve {
                let resolving = self.target(&request.destination, &self.addresses, deadline);
                Some(resolving.await?)
            } else {
                None
            };
            if self.still_hold(&grounds) {
                return Ok(grounds.leave(target));
            }
        }
        Err(Denial {
            reason: Reason::RegistryUnavailable,
            cause: Some("permissions change faster than they can be decided on".to_owned()),
        })
    }

    /// The permission that allows the request.
    pub async fn grounds(
        &self,
        request: &Request,
        now: Timestamp,
        deadline: Instant,
    ) -> Result<Grounds, Denial> {
        let entry = self.cache.facts(request, deadline).await;
        let entry = entry.map_err(|error| Denial {
            reason: Reason::RegistryUnavailable,
            cause: Some(error.to_string()),
        })?;
        match decide(&entry.facts, request, now) {
            Decision::Allow(permit) => Ok(Grounds {
                permission_id: permit.permission().permission_id.clone(),
                signing_key_id: permit.permission().signing_key_id.clone(),
                ends_at: permit.ends_at(),
                entry: Arc::clone(&entry),
            }),
            Decision::Deny(reason) => Err(reason.into()),
        }
    }

    /// Whether the same would be decided now, but for the time.
    pub fn still_hold(&self, grounds: &Grounds) -> bool {
        self.cache.still_holds(&grounds.entry)
    }

    /// The one address that is judged and dialled.
    pub async fn target(
        &self,
        destination: &Destination,
        addresses: &AddressPolicy,
        deadline: Instant,
    ) -> Result<Target, Denial> {
        let resolving = self.resolver.resolve(destination, addresses);
        let resolved = timeout_at(deadline, resolving)
            .await
            .unwrap_or(Err(ResolveError::TimedOut));
        resolved.map_err(|error| Denial {
            reason: match error {
                ResolveError::Unresolvable(_)
                | ResolveError::TimedOut
                | ResolveError::ServerFailure => Reason::DestinationUnresolvable,
                ResolveError::AllForbidden { .. } => Reason::DestinationAddressForbidden,
            },
            cause: Some(error.to_string()),
        })
    }
}

impl Grounds {
    /// Leave to go to `target` on these grounds.
    fn leave(self, target: Option<Target>) -> Leave {
        Leave {
            permission_id: self.permission_id,
            signing_key_id: self.signing_key_id,
            ends_at: self.ends_at,
            target,
        }
    }
}
