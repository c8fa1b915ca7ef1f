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

impl Outcome {
    fn of(denied: Option<&'static str>) -> Self {
        Self {
            decision: denied.map_or("allow", |_| "deny"),
            reason: denied.unwrap_or("allowed"),
        }
    }
}

/// Why a tunnel was cut: one of the tunnels' codes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cut {
    reason: &'static str,
}

/// How reading the rules for tool calls came out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Read {
    outcome: &'static str,
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
    calls: Family<Outcome, Counter>,
    call_duration: Histogram,
    rules_reads: Family<Read, Counter>,
    rules_refused: Gauge,
}

/// Of audit records.
#[derive(Debug, Clone, Default)]
struct AuditCounts {
    written: Counter,
    syncs: Counter,
    unwritten: Counter,
    not_copied: Counter,
    unwritable: Gauge,
}

impl AuditCounts {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "audit_records",
            "Audit records written",
            self.written.clone(),
        );
        registry.register(
            "audit_syncs",
            "Times that all audit records written so far were brought to disk",
            self.syncs.clone(),
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
        let calls = Family::<Outcome, Counter>::default();
        let help = "Tool calls decided on, by decision and reason";
        registry.register("relay_calls", help, calls.clone());
        let call_duration = Histogram::new(buckets);
        registry.register_with_unit(
            "relay_call_duration",
            "Time from a tool call's arrival to the decision about it",
            Unit::Seconds,
            call_duration.clone(),
        );
        let rules_reads = Family::<Read, Counter>::default();
        let help = "How often the rules for tool calls were read after a change, by outcome";
        registry.register("relay_rules_reads", help, rules_reads.clone());
        let rules_refused = Gauge::default();
        let help = "1 while the files of the rules for tool calls are not what is in force";
        registry.register("relay_rules_refused", help, rules_refused.clone());
        Self {
            audit,
            calls,
            call_duration,
            rules_reads,
            rules_refused,
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
        let outcome = Outcome::of(denied.map(Reason::code));
        self.checks.get_or_create(&outcome).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// Counts a tool call that was decided on: `denied` is the reason's code.
    pub fn called(&self, denied: Option<&'static str>, took: Duration) {
        self.calls.get_or_create(&Outcome::of(denied)).inc();
        self.call_duration.observe(took.as_secs_f64());
    }

    /// Counts that the rules for tool calls were read after a change, and whether they were taken.
    pub fn rules_read(&self, taken: bool) {
        let outcome = if taken { "taken" } else { "refused" };
        self.rules_reads.get_or_create(&Read { outcome }).inc();
        self.rules_refused.set(i64::from(!taken));
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

    /// Counts audit records that were written.
    pub fn audit_written(&self, records: u64) {
        self.audit.written.inc_by(records);
    }

    /// Counts that all written audit records are on disk.
    pub fn audit_synced(&self) {
        self.audit.syncs.inc();
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
