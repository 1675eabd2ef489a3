//! The operator's own numbers beside the server's: the journal, the controllers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::{Registry, Unit};

use crate::controllers::Context;
use crate::server::JournalNumbers;
use crate::store::SqliteStore;

struct Numbers(Arc<Context>);

impl std::fmt::Debug for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Numbers")
    }
}

/// A registry with these numbers, read at each scrape.
pub fn registry(store: &Arc<SqliteStore>, ctx: &Arc<Context>) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(JournalNumbers(store.clone())));
    registry.register_collector(Box::new(Numbers(ctx.clone())));
    registry.register_collector(Box::new(ctx.rollout.numbers.collector(ctx.objects.clone())));
    registry
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let metric = ConstCounter::new(self.0.failures.load(Ordering::Relaxed));
        let help = "Reconcile passes that failed";
        metric.encode(encoder.encode_descriptor(
            "remit_reconcile_failures",
            help,
            None::<&Unit>,
            metric.metric_type(),
        )?)
    }
}
