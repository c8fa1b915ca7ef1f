//! Counters for operators, in Prometheus' text format.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use permission::Reason;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// One label per decision: bounded, for reasons are an enum.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    decision: &'static str,
    reason: &'static str,
}

/// Why a tunnel was cut: one of the tunnels' codes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cut {
    reason: &'static str,
}

/// A tunnel that counts as open, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct CountedTunnel(Gauge);

impl Drop for CountedTunnel {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Everything that is counted; clones share the counts.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    checks: Family<Outcome, Counter>,
    duration: Histogram,
    confirmed_age: Gauge<f64, AtomicU64>,
    open_tunnels: Gauge,
    cut_tunnels: Family<Cut, Counter>,
    audit: AuditCounts,
}

/// Of audit records.
#[derive(Debug, Clone, Default)]
struct AuditCounts {
    written: Counter,
    unwritten: Counter,
    not_copied: Counter,
    unwritable: Gauge,
}

impl AuditCounts {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "audit_records",
            "Audit records on disk",
            self.written.clone(),
        );
        registry.register(
            "audit_unwritten",
            "Audit records that could not be written; their requests were denied",
            self.unwritten.clone(),
        );
        registry.register(
            "audit_not_copied",
            "Writes of audit records that stdout did not take; they are in the file",
            self.not_copied.clone(),
        );
        registry.register(
            "audit_unwritable",
            "1 while audit records can't be written, and every request is denied",
            self.unwritable.clone(),
        );
    }
}

impl Default for Metrics {
    fn default() -> Self {
        // 0.25 ms to 2 s: from a warm answer to Envoy's own time-out.
        let buckets = [
            0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0,
        ];
        let checks = Family::<Outcome, Counter>::default();
        let duration = Histogram::new(buckets);
        let confirmed_age = Gauge::<f64, AtomicU64>::default();
        let mut registry = Registry::with_prefix("agent_gateway");
        registry.register(
            "checks",
            "Checks answered, by decision and reason",
            checks.clone(),
        );
        registry.register_with_unit(
            "check_duration",
            "Time from a Check's arrival to its answer",
            Unit::Seconds,
            duration.clone(),
        );
        registry.register_with_unit(
            "registry_confirmed_age",
            "Time since the registry confirmed that all its changes are known; infinite before",
            Unit::Seconds,
            confirmed_age.clone(),
        );
        let open_tunnels = Gauge::default();
        registry.register("open_tunnels", "Tunnels open now", open_tunnels.clone());
        let cut_tunnels = Family::<Cut, Counter>::default();
        registry.register("tunnels_cut", "Tunnels cut, by reason", cut_tunnels.clone());
        let audit = AuditCounts::default();
        audit.register(&mut registry);
        Self {
            audit,
            open_tunnels,
            cut_tunnels,
            confirmed_age,
            registry: Arc::new(registry),
            checks,
            duration,
        }
    }
}

impl Metrics {
    /// Counts a Check: `denied` is the reason, or `None` for an allow.
    pub fn checked(&self, denied: Option<Reason>, took: Duration) {
        let outcome = match denied {
            None => Outcome {
                decision: "allow",
                reason: "allowed",
            },
            Some(reason) => Outcome {
                decision: "deny",
                reason: reason.code(),
            },
        };
        self.checks.get_or_create(&outcome).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// Counts a tunnel as open, until what this returns is dropped.
    pub fn tunnel_opened(&self) -> CountedTunnel {
        self.open_tunnels.inc();
        CountedTunnel(self.open_tunnels.clone())
    }

    /// Counts a tunnel that was cut for this reason.
    pub fn tunnel_cut(&self, reason: &'static str) {
        self.cut_tunnels.get_or_create(&Cut { reason }).inc();
    }

    /// Counts audit records on disk.
    pub fn audit_written(&self, records: u64) {
        self.audit.written.inc_by(records);
    }

    /// Counts audit records that could not be written.
    pub fn audit_unwritten(&self, records: u64) {
        self.audit.unwritten.inc_by(records);
    }

    /// Counts a copy of audit records that stdout did not take.
    pub fn audit_not_copied(&self) {
        self.audit.not_copied.inc();
    }

    /// Notes whether audit records can't be written now.
    pub fn audit_broken(&self, is_broken: bool) {
        self.audit.unwritable.set(is_broken.into());
    }

    /// All of it, as `/metrics` answers; `confirmed_age` is how old the registry's last
    /// confirmation is.
    pub fn text(&self, confirmed_age: Option<Duration>) -> String {
        let age = confirmed_age.map_or(f64::INFINITY, |age| age.as_secs_f64());
        self.confirmed_age.set(age);
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing to a String can't fail.
            Err(std::fmt::Error) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_counts_as_open_until_it_is_dropped_even_by_a_panic() {
        let metrics = Metrics::default();
        let open = |count: i64| {
            let text = metrics.text(None);
            let line = format!("agent_gateway_open_tunnels {count}");
            assert!(text.lines().any(|found| found == line), "{text}");
        };
        let _first = metrics.tunnel_opened();
        let counting = metrics.clone();
        let panicked = std::thread::spawn(move || {
            let _second = counting.tunnel_opened();
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        open(1);
    }
}
