//! The table of open tunnels: bounded, to be looked at, and to be cut from.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use permission::{Destination, Id, Identity, Request, Spki, Timestamp};
use tokio::sync::oneshot;

/// Bounds on tunnels.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most tunnels at a time.
    pub total: usize,
    /// Most tunnels of one agent key.
    pub per_key: usize,
    /// How long opening one may take: Envoy gives up after its `message_timeout`.
    pub open_timeout: Duration,
    /// How long tunnels live on while the registry confirms nothing.
    pub max_unconfirmed: Duration,
}

/// An open tunnel, or one that is about to be opened or has just been cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// The id of the decision that allowed it.
    pub id: Id,
    /// Who and where.
    pub request: Request,
    /// The permission that it rests on: at first the Check's, then that of the last decision.
    pub permission_id: Id,
    /// The agent's end of its connection to Envoy, where Envoy tells.
    pub connection: Option<SocketAddr>,
    /// When it was opened.
    pub opened_at: Timestamp,
}

/// Tunnels that meet all that is given.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this identity.
    pub identity: Option<Identity>,
    /// Of this key.
    pub spki: Option<Spki>,
    /// Resting on this permission.
    pub permission_id: Option<Id>,
    /// Leading there.
    pub destination: Option<Destination>,
}

/// Which tunnels an operator cuts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// Those of this identity.
    Identity(Identity),
    /// Those of this key.
    Spki(Spki),
    /// Those that rest on this permission.
    Permission(Id),
    /// The one with this id.
    Tunnel(Id),
}

/// A part of the table, in the order in which tunnels were opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The tunnels.
    pub tunnels: Vec<Tunnel>,
    /// Where the next page begins, if there is one.
    pub next: Option<u64>,
}

impl Filter {
    fn matches(&self, tunnel: &Tunnel) -> bool {
        fn is<T: PartialEq>(wanted: Option<&T>, found: &T) -> bool {
            wanted.is_none_or(|wanted| wanted == found)
        }
        is(self.identity.as_ref(), &tunnel.request.identity)
            && is(self.spki.as_ref(), &tunnel.request.spki)
            && is(self.permission_id.as_ref(), &tunnel.permission_id)
            && is(self.destination.as_ref(), &tunnel.request.destination)
    }
}

impl Selector {
    fn matches(&self, tunnel: &Tunnel) -> bool {
        match self {
            Self::Identity(identity) => *identity == tunnel.request.identity,
            Self::Spki(spki) => *spki == tunnel.request.spki,
            Self::Permission(id) => *id == tunnel.permission_id,
            Self::Tunnel(id) => *id == tunnel.id,
        }
    }
}

/// Holds all open tunnels. Locked only to look, add, change or remove.
#[derive(Debug)]
pub(super) struct Table {
    total: usize,
    per_key: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    by_number: BTreeMap<u64, Held>,
    by_key: HashMap<Spki, usize>,
}

#[derive(Debug)]
struct Held {
    tunnel: Tunnel,
    /// `None` when it was used.
    cut: Option<oneshot::Sender<()>>,
}

/// A tunnel's place in the table, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    table: Arc<Table>,
    number: u64,
}

impl Table {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            total: limits.total,
            per_key: limits.per_key,
            open: Mutex::default(),
        }
    }

    /// A place for the tunnel, if there is one, and where the order to cut it arrives.
    pub(super) fn take(self: &Arc<Self>, tunnel: Tunnel) -> Option<(Place, oneshot::Receiver<()>)> {
        let mut open = self.open();
        let key = &tunnel.request.spki;
        let own = open.by_key.get(key).copied().unwrap_or(0);
        if open.by_number.len() >= self.total || own >= self.per_key {
            return None;
        }
        open.by_key.insert(key.clone(), own + 1);
        let number = open.next;
        open.next += 1;
        let (cut, ordered) = oneshot::channel();
        let cut = Some(cut);
        open.by_number.insert(number, Held { tunnel, cut });
        let table = Arc::clone(self);
        Some((Place { table, number }, ordered))
    }

    /// At most `most` tunnels that meet `filter`, from the number `from` on.
    pub(super) fn list(&self, filter: &Filter, from: u64, most: usize) -> Page {
        let open = self.open();
        let mut found = open
            .by_number
            .range((Bound::Included(from), Bound::Unbounded))
            .filter(|(_, held)| filter.matches(&held.tunnel));
        let tunnels = found.by_ref().take(most);
        Page {
            tunnels: tunnels.map(|(_, held)| held.tunnel.clone()).collect(),
            next: found.next().map(|(number, _)| *number),
        }
    }

    /// Orders the selected tunnels to be cut; returns the ids of those that were not being cut
    /// already.
    pub(super) fn cut(&self, selector: &Selector) -> Vec<Id> {
        let mut ids = Vec::new();
        for held in self.open().by_number.values_mut() {
            let order = |cut: oneshot::Sender<()>| cut.send(()).is_ok();
            if selector.matches(&held.tunnel) && held.cut.take().is_some_and(order) {
                ids.push(held.tunnel.id.clone());
            }
        }
        ids
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Notes which permission the tunnel rests on now.
    pub(super) fn rests_on(&self, permission_id: &Id) {
        if let Some(held) = self.table.open().by_number.get_mut(&self.number)
            && held.tunnel.permission_id != *permission_id
        {
            held.tunnel.permission_id = permission_id.clone();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.table.open();
        let Some(held) = open.by_number.remove(&self.number) else {
            return;
        };
        if let Entry::Occupied(mut own) = open.by_key.entry(held.tunnel.request.spki) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use testbed::rows::Principal;

    use super::*;

    fn key(seed: u8) -> Spki {
        Spki::from_der(&Principal::new("agent", seed).unwrap().spki()).unwrap()
    }

    fn tunnel(id: &str, seed: u8) -> Tunnel {
        Tunnel {
            id: Id::parse(id).unwrap(),
            request: Request {
                identity: Identity::parse(&format!("agent-{seed}")).unwrap(),
                spki: key(seed),
                destination: "docstore".parse().unwrap(),
            },
            permission_id: Id::parse("first").unwrap(),
            connection: None,
            opened_at: Timestamp::MIN,
        }
    }

    fn table(total: usize, per_key: usize) -> Arc<Table> {
        Arc::new(Table::new(&Limits {
            total,
            per_key,
            open_timeout: Duration::ZERO,
            max_unconfirmed: Duration::ZERO,
        }))
    }

    fn ids(page: &Page) -> Vec<&str> {
        let tunnels = page.tunnels.iter();
        tunnels.map(|tunnel| tunnel.id.as_str()).collect()
    }

    #[test]
    fn neither_one_key_nor_all_together_take_more_than_their_share() {
        let table = table(3, 2);
        let (a, b) = (table.take(tunnel("a", 1)), table.take(tunnel("b", 1)));
        assert!(a.is_some() && b.is_some());
        assert!(table.take(tunnel("c", 1)).is_none(), "per key");
        let c = table.take(tunnel("c", 2));
        assert!(c.is_some());
        assert!(table.take(tunnel("d", 3)).is_none(), "total");
        drop(a);
        assert!(table.take(tunnel("d", 3)).is_some());
        drop((b, c));
        assert!(table.open().by_key.is_empty());
        assert!(table.open().by_number.is_empty());
    }

    #[test]
    fn a_place_is_given_back_by_a_panic_too() {
        let table = table(1, 1);
        let taken = Arc::clone(&table);
        let panicked = std::thread::spawn(move || {
            let _place = taken.take(tunnel("a", 1)).unwrap();
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        assert!(table.take(tunnel("b", 1)).is_some());
    }

    #[test]
    fn pages_hold_each_tunnel_once_while_others_come_and_go() {
        let table = table(10, 10);
        let mut places: Vec<_> = ["a", "b", "c", "d", "e"]
            .map(|id| table.take(tunnel(id, 1)).unwrap())
            .into();
        let _other = table.take(tunnel("other", 2)).unwrap();
        let of_key = Filter {
            spki: Some(key(1)),
            ..Filter::default()
        };
        let first = table.list(&of_key, 0, 2);
        assert_eq!(ids(&first), ["a", "b"]);
        places.remove(0);
        let _late = table.take(tunnel("f", 1)).unwrap();
        let second = table.list(&of_key, first.next.unwrap(), 2);
        assert_eq!(ids(&second), ["c", "d"]);
        let third = table.list(&of_key, second.next.unwrap(), 2);
        assert_eq!((ids(&third), third.next), (vec!["e", "f"], None));
    }

    #[test]
    fn a_tunnel_is_cut_once_and_by_the_permission_that_it_rests_on_now() {
        let table = table(10, 10);
        let (first, second) = (Id::parse("first").unwrap(), Id::parse("second").unwrap());
        let (_a, mut a_ordered) = table.take(tunnel("a", 1)).unwrap();
        let (b, mut b_ordered) = table.take(tunnel("b", 1)).unwrap();
        b.rests_on(&second);
        let cut = table.cut(&Selector::Permission(first.clone()));
        assert_eq!(cut, [Id::parse("a").unwrap()]);
        assert!(a_ordered.try_recv().is_ok());
        assert!(b_ordered.try_recv().is_err());
        assert!(table.cut(&Selector::Permission(first)).is_empty());
        // What is ended for another reason already is not cut by the operator.
        drop(b_ordered);
        assert!(table.cut(&Selector::Permission(second)).is_empty());
    }
}
