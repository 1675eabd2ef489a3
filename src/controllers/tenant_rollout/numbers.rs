//! Rollouts in numbers, for `/metrics`.

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::api::RolloutPhase;
use crate::source::kubernetes::Objects;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: &'static str,
}

/// Namespaces: whoever may make those may see metrics too.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Tenant {
    tenant: String,
}

/// What happened since the start.
#[derive(Clone, Debug)]
pub struct Numbers {
    seconds: Histogram,
    taken_back: Counter,
}

impl Default for Numbers {
    fn default() -> Self {
        let buckets = [0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];
        Self { seconds: Histogram::new(buckets), taken_back: Counter::default() }
    }
}

impl Numbers {
    /// A candidate was taken back for what it did; `newest`: the newest decision that was counted.
    pub fn taken_back(&self, newest: Option<Timestamp>) {
        self.taken_back.inc();
        if let Some(newest) = newest {
            self.seconds.observe(Timestamp::now().duration_since(newest).as_secs_f64().max(0.0));
        }
    }

    /// These, and where the rollouts stand now.
    pub fn collector(&self, objects: Objects) -> impl Collector + use<> {
        Collected { numbers: self.clone(), objects }
    }
}

struct Collected {
    numbers: Numbers,
    objects: Objects,
}

impl std::fmt::Debug for Collected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("rollouts")
    }
}

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let phases: Family<Phase, Gauge> = Family::default();
        let (stages, percents): (Family<Tenant, Gauge>, Family<Tenant, Gauge>) = Default::default();
        let name = |phase| match phase {
            RolloutPhase::Healthy => "Healthy",
            RolloutPhase::Progressing => "Progressing",
            RolloutPhase::Paused => "Paused",
            RolloutPhase::Degraded => "Degraded",
        };
        for phase in [RolloutPhase::Healthy, RolloutPhase::Progressing, RolloutPhase::Paused, RolloutPhase::Degraded] {
            drop(phases.get_or_create(&Phase { phase: name(phase) }));
        }
        for rollout in self.objects.rollouts.state().iter().filter_map(|r| r.0.as_ref().ok()) {
            let Some(status) = &rollout.status else { continue };
            phases.get_or_create(&Phase { phase: name(status.phase) }).inc();
            let tenant = || Tenant { tenant: rollout.metadata.namespace.clone().unwrap_or_default() };
            if let (Some(stage), Some(percent)) = (status.stage, status.percent) {
                stages.get_or_create(&tenant()).set(stage.saturating_add(1));
                percents.get_or_create(&tenant()).set(percent);
            }
        }
        let mut encode = |name, help, metric: &dyn Encodes| metric.encode(&mut encoder, name, help);
        encode("remit_rollout_phase", "TenantRollouts by phase", &phases)?;
        encode("remit_rollout_stage", "Stage of the candidate, from 1", &stages)?;
        encode("remit_rollout_stage_percent", "Sessions that the candidate decides for, of 100", &percents)?;
        encode(
            "remit_rollout_taken_back",
            "Candidates that were taken back for what they did",
            &self.numbers.taken_back,
        )?;
        let help = "From the newest decision that was counted to the status by which the candidate decides for nobody";
        encode("remit_rollout_rollback_seconds", help, &self.numbers.seconds)
    }
}

/// `EncodeMetric` takes itself by type only.
trait Encodes {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> Result<(), std::fmt::Error>;
}

impl<M: EncodeMetric> Encodes for M {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> Result<(), std::fmt::Error> {
        EncodeMetric::encode(self, encoder.encode_descriptor(name, help, None, self.metric_type())?)
    }
}
