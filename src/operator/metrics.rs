//! The operator's own numbers beside the server's: the journal, the controllers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::election::Tally;
use super::storage::Storage;
use crate::controllers::Context;
use crate::server::{JournalNumbers, ShippingNumbers};
use crate::source::kubernetes::Pulse;

struct Numbers {
    ctx: Arc<Context>,
    election: Arc<Tally>,
    pulse: Arc<Pulse>,
}

impl std::fmt::Debug for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Numbers")
    }
}

/// A registry with these numbers, read at each scrape.
pub fn registry(storage: &Storage, ctx: &Arc<Context>, election: &Arc<Tally>, pulse: &Arc<Pulse>) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(JournalNumbers(storage.sqlite.clone())));
    if let Some(replicated) = &storage.replicated {
        registry.register_collector(Box::new(ShippingNumbers(replicated.clone())));
    }
    registry.register_collector(Box::new(Numbers {
        ctx: ctx.clone(),
        election: election.clone(),
        pulse: pulse.clone(),
    }));
    registry.register_collector(Box::new(ctx.rollout.numbers.collector(ctx.objects.clone())));
    registry
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let leads = ConstGauge::new(self.election.leads.load(Ordering::Relaxed));
        let help = "1 while this replica holds the lease and reconciles";
        leads.encode(encoder.encode_descriptor("remit_leader", help, None::<&Unit>, leads.metric_type())?)?;
        for (name, help, value) in [
            ("remit_reconcile_failures", "Reconcile passes that failed", &self.ctx.failures),
            ("remit_lease_gained", "Times that this replica began to lead", &self.election.gained),
            ("remit_lease_failures", "Tries to get or renew the lease that failed", &self.election.failures),
            ("remit_watch_lists", "Kinds that were listed, at start and again", &self.pulse.tally.lists),
            ("remit_watch_failures", "Watches that failed and were tried again", &self.pulse.tally.failures),
            (
                "remit_watch_restarts",
                "Times that all watches were silent and started again",
                &self.pulse.tally.restarts,
            ),
        ] {
            let metric = ConstCounter::new(value.load(Ordering::Relaxed));
            metric.encode(encoder.encode_descriptor(name, help, None::<&Unit>, metric.metric_type())?)?;
        }
        Ok(())
    }
}
