//! What Prometheus reads: names with units, labels whose values are Remit's own and few.
//!
//! Must never have a label whose values a tenant, an agent or a token chooses. Names of tenants are labels only of what a rollout is
//! judged by, and only as long as the tenant is there.

use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::gate::Arm;
use crate::lifecycle::drift::Severity;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    outcome: &'static str,
    code: &'static str,
    would_be: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReviewLabels {
    review: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SearchLabel {
    search: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ArmLabels {
    tenant: String,
    arm: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TenantLabel {
    tenant: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DriftLabels {
    tenant: String,
    severity: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// What a rollout is judged by, per tenant.
#[derive(Default)]
struct ArmMetrics {
    decisions: Family<ArmLabels, Counter>,
    compared: Family<TenantLabel, Counter>,
    drift: Family<DriftLabels, Counter>,
    dropped: Family<ReasonLabel, Counter>,
    /// Tenants of which anything was counted.
    tenants: Mutex<HashSet<String>>,
}

impl ArmMetrics {
    const OUTCOMES: [&'static str; 4] = ["allow", "deny", "approval_required", "refused"];
    const SEVERITIES: [Severity; 4] = [Severity::Low, Severity::Medium, Severity::High, Severity::Critical];

    fn note(&self, tenant: &str) {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if !tenants.contains(tenant) {
            tenants.insert(tenant.to_owned());
        }
    }

    fn keep(&self, there: impl Fn(&str) -> bool) {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.retain(|tenant| {
            let keep = there(tenant);
            if !keep {
                self.compared.remove(&TenantLabel { tenant: tenant.clone() });
                for severity in Self::SEVERITIES {
                    self.drift.remove(&DriftLabels { tenant: tenant.clone(), severity: severity.as_str() });
                }
                for arm in [Arm::Stable, Arm::Canary] {
                    for outcome in Self::OUTCOMES {
                        let labels = ArmLabels { tenant: tenant.clone(), arm: arm.as_str(), outcome };
                        self.decisions.remove(&labels);
                    }
                }
            }
            keep
        });
    }
}

/// The server's metrics, and the registry that others add theirs to before it is shared.
pub struct Metrics {
    registry: Registry,
    check_seconds: Histogram,
    commit_seconds: Histogram,
    decisions: Family<DecisionLabels, Counter>,
    reviews: Family<ReviewLabels, Counter>,
    refused: Family<CodeLabel, Counter>,
    searches: Family<SearchLabel, Counter>,
    unrecorded: Counter,
    /// Connections that are open.
    pub connections: Gauge<i64, AtomicI64>,
    /// Connections that failed before a request: TLS, time limits.
    pub handshakes_failed: Counter,
    /// Live sessions.
    pub sessions: Gauge<i64, AtomicI64>,
    snapshot_age: Gauge<f64, AtomicU64>,
    snapshot_generation: Gauge<i64, AtomicI64>,
    tenants_observing: Gauge<i64, AtomicI64>,
    arms: ArmMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(Registry::default())
    }
}

impl Metrics {
    /// Adds the server's metrics to a registry, under prefix `remit_`.
    pub fn new(mut registry: Registry) -> Self {
        let buckets = [5e-6, 1e-5, 2e-5, 4e-5, 8e-5, 1.6e-4, 3.2e-4, 6.4e-4, 1.28e-3, 5e-3, 2.5e-2, 1e-1, 5e-1, 2.5];
        let check_seconds = Histogram::new(buckets);
        let commit_seconds = Histogram::new(buckets);
        let decisions = Family::default();
        let reviews = Family::default();
        let refused = Family::default();
        let searches = Family::default();
        let unrecorded = Counter::default();
        let connections = Gauge::default();
        let handshakes_failed = Counter::default();
        let sessions = Gauge::default();
        let snapshot_age = Gauge::default();
        let snapshot_generation = Gauge::default();
        let tenants_observing = Gauge::default();
        let r = registry.sub_registry_with_prefix("remit");
        r.register_with_unit("check_duration", "Time of one check in the gates", Unit::Seconds, check_seconds.clone());
        r.register_with_unit(
            "journal_commit_duration",
            "Time that an allow waited for its record's commit",
            Unit::Seconds,
            commit_seconds.clone(),
        );
        r.register(
            "decisions",
            "Decisions by outcome and reason code; would_be is what an observed one would be if it were enforced",
            decisions.clone(),
        );
        r.register("authn_reviews", "Reviews asked of the API server", reviews.clone());
        r.register("requests_refused", "Requests that were refused before a decision", refused.clone());
        r.register("searches", "Searches that were answered", searches.clone());
        r.register("records_lost", "Answers other than allow whose record could not be queued", unrecorded.clone());
        r.register("connections", "Open connections", connections.clone());
        r.register("connections_failed", "Connections that ended before a request", handshakes_failed.clone());
        r.register("sessions", "Live sessions", sessions.clone());
        r.register_with_unit(
            "snapshot_age",
            "Time since the feed last showed life",
            Unit::Seconds,
            snapshot_age.clone(),
        );
        r.register("snapshot_generation", "How often the snapshot was swapped", snapshot_generation.clone());
        r.register("tenants_observing", "Tenants whose policy is observed, not enforced", tenants_observing.clone());
        let arms = ArmMetrics::default();
        r.register(
            "rollout_decisions",
            "Decisions of each arm while a rollout runs, by outcome",
            arms.decisions.clone(),
        );
        r.register(
            "shadow_compared",
            "Calls that were evaluated under both packages of a rollout",
            arms.compared.clone(),
        );
        r.register("shadow_drift", "Calls that the packages of a rollout decide otherwise", arms.drift.clone());
        r.register(
            "shadow_dropped",
            "Calls that were not compared: queue_full, store_behind, store_failed, panicked",
            arms.dropped.clone(),
        );
        Self {
            arms,
            registry,
            check_seconds,
            commit_seconds,
            decisions,
            reviews,
            refused,
            searches,
            unrecorded,
            connections,
            handshakes_failed,
            sessions,
            snapshot_age,
            snapshot_generation,
            tenants_observing,
        }
    }

    /// One decision, and its time in the gates. `would_be` is empty but for what was let through because its tenant observes.
    pub fn decided(&self, outcome: &'static str, code: &'static str, would_be: &'static str, took: Duration) {
        self.check_seconds.observe(took.as_secs_f64());
        self.decisions.get_or_create(&DecisionLabels { outcome, code, would_be }).inc();
    }

    /// A decision of an arm, while a rollout runs.
    pub fn decided_by_arm(&self, tenant: &str, arm: Arm, outcome: &'static str) {
        self.arms.note(tenant);
        let labels = ArmLabels { tenant: tenant.to_owned(), arm: arm.as_str(), outcome };
        self.arms.decisions.get_or_create(&labels).inc();
    }

    /// A call was evaluated under both packages of a rollout, and the comparison is kept.
    pub fn shadow_compared(&self, tenant: &str, severity: Severity) {
        self.arms.note(tenant);
        self.arms.compared.get_or_create(&TenantLabel { tenant: tenant.to_owned() }).inc();
        if severity != Severity::None {
            let labels = DriftLabels { tenant: tenant.to_owned(), severity: severity.as_str() };
            self.arms.drift.get_or_create(&labels).inc();
        }
    }

    /// Calls that should have been compared, and were not.
    pub fn shadow_dropped(&self, reason: &'static str, calls: u64) {
        self.arms.dropped.get_or_create(&ReasonLabel { reason }).inc_by(calls);
    }

    /// Forgets what was counted of tenants that are gone.
    pub fn keep_tenants(&self, there: impl Fn(&str) -> bool) {
        self.arms.keep(there);
    }

    /// A commit that an allow waited for.
    pub fn committed(&self, took: Duration) {
        self.commit_seconds.observe(took.as_secs_f64());
    }

    /// A deny left without a record.
    pub fn record_lost(&self) {
        self.unrecorded.inc();
    }

    /// One review: `token` or `access`; `accepted`, `refused` or `unreachable`.
    pub fn review(&self, review: &'static str, result: &'static str) {
        self.reviews.get_or_create(&ReviewLabels { review, result }).inc();
    }

    /// A request that was refused before a decision.
    pub fn request_refused(&self, code: &'static str) {
        self.refused.get_or_create(&CodeLabel { code }).inc();
    }

    /// A search that was answered: `resource`, `subject` or `action`.
    pub fn searched(&self, search: &'static str) {
        self.searches.get_or_create(&SearchLabel { search }).inc();
    }

    /// How old the snapshot is, and how many of its tenants observe.
    pub fn snapshot(&self, age: Option<Duration>, generation: u64, observing: usize) {
        self.tenants_observing.set(i64::try_from(observing).unwrap_or(i64::MAX));
        self.snapshot_age.set(age.map_or(f64::INFINITY, |age| age.as_secs_f64()));
        self.snapshot_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
    }

    /// OpenMetrics text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::with_capacity(8192);
        encode(&mut out, &self.registry)?;
        Ok(out)
    }
}
