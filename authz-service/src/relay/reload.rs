//! Follows the rules' files: a change is taken whole, or the old state stays.

use std::fmt::Write as _;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::files::Fingerprint;
use super::rules::{Rules, RulesError, Sources};
use crate::metrics::Metrics;

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The rules in force.
#[derive(Debug)]
pub struct CurrentRules {
    sources: Sources,
    metrics: Metrics,
    /// Locked only to copy or to replace it.
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    rules: Arc<Rules>,
    /// Of the files when they were last read, whether or not they were taken.
    read: Fingerprint,
    /// Why what is there now was not taken.
    refused: Option<String>,
}

impl CurrentRules {
    /// Reads them for the first time.
    pub fn load(sources: Sources, metrics: Metrics) -> Result<Self, RulesError> {
        // Before reading, so that a change meanwhile is seen as one.
        let read = sources.fingerprint();
        let state = State {
            rules: Arc::new(sources.load()?),
            read,
            refused: None,
        };
        Ok(Self {
            sources,
            metrics,
            state: RwLock::new(state),
        })
    }

    /// The rules in force now.
    pub fn get(&self) -> Arc<Rules> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&state.rules)
    }

    /// Why the files as they are now are not in force, if they are not.
    pub fn refused(&self) -> Option<String> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.refused.clone()
    }

    /// Takes changes over as they are made, for ever; SIGHUP has the files read in any case.
    pub async fn follow(self: Arc<Self>) -> std::io::Result<()> {
        let mut told = signal(SignalKind::hangup())?;
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let anyway = tokio::select! {
                _ = look.tick() => false,
                _ = told.recv() => true,
            };
            let rules = Arc::clone(&self);
            // It ends by itself; a panic in it leaves the old state.
            let _ = spawn_blocking(move || rules.look(anyway)).await;
        }
    }

    /// Reads the files if they changed, or `anyway`.
    fn look(&self, anyway: bool) {
        let found = self.sources.fingerprint();
        let known = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            state.read == found
        };
        if known && !anyway {
            return;
        }
        let loaded = self.sources.load();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.read = found;
        match loaded {
            Ok(rules) => {
                state.rules = Arc::new(rules);
                state.refused = None;
                self.metrics.rules_read(true);
                tracing::info!("the rules for tool calls were read anew");
            }
            Err(error) => {
                let told = readable(&error);
                self.metrics.rules_read(false);
                tracing::error!(error = told, "the rules for tool calls stay as they were");
                state.refused = Some(told);
            }
        }
    }
}

/// On one line.
fn readable(error: &RulesError) -> String {
    const LONGEST: usize = 500;
    let mut told = String::new();
    for line in error
        .to_string()
        .lines()
        .filter(|line| !line.trim().is_empty())
    {
        let separator = if told.is_empty() { "" } else { "; " };
        // Writing to a String can't fail.
        let _ = write!(told, "{separator}{}", line.trim());
    }
    told.truncate(told.floor_char_boundary(LONGEST));
    told
}
