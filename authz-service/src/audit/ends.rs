//! How tunnels ended, as Envoy's access log says, for those who wait to record it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::audit::Traffic;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// What Envoy says of a tunnel's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// What it carried.
    pub(super) traffic: Traffic,
    /// Why it ended, in a code of ours.
    pub(super) reason: &'static str,
}

/// The tunnels that this replica holds, by the id of the decision. What others hold is not here,
/// so nothing that is said of them is taken.
#[derive(Debug, Clone, Default)]
pub(super) struct Ends(Arc<Mutex<HashMap<String, oneshot::Sender<End>>>>);

/// One tunnel's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct AwaitedEnd {
    ends: Ends,
    id: String,
    told: oneshot::Receiver<End>,
}

impl Ends {
    pub(super) fn expect(&self, id: &str) -> AwaitedEnd {
        let (tell, told) = oneshot::channel();
        self.waiting().insert(id.to_owned(), tell);
        AwaitedEnd {
            ends: self.clone(),
            id: id.to_owned(),
            told,
        }
    }

    /// Passes on what Envoy says; nothing else than the first counts.
    pub(super) fn tell(&self, id: &str, end: End) {
        if let Some(tell) = self.waiting().remove(id) {
            // Whoever waited may have gone.
            let _ = tell.send(end);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting().is_empty()
    }

    /// Locked only to add, take or look.
    fn waiting(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<End>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AwaitedEnd {
    /// What Envoy said, or says in time.
    pub(super) async fn told(mut self, patience: Duration) -> Option<End> {
        timeout(patience, &mut self.told).await.ok()?.ok()
    }
}

impl Drop for AwaitedEnd {
    fn drop(&mut self) {
        self.ends.waiting().remove(&self.id);
    }
}
