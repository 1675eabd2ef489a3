//! The numbers of a journal that is shipped, read at each scrape.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::store::ReplicatedStore;

/// Numbers of this replica's shipping.
pub struct ShippingNumbers(pub Arc<ReplicatedStore>);

impl std::fmt::Debug for ShippingNumbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ShippingNumbers")
    }
}

impl Collector for ShippingNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (shipping, backlog) = (self.0.shipping(), self.0.backlog());
        for (name, help, value) in [
            ("remit_journal_shipped_records", "Records shipped to PostgreSQL since the start", &shipping.total),
            ("remit_journal_shipping_failures", "Attempts to ship that failed since the start", &shipping.failures),
        ] {
            let metric = ConstCounter::new(value.load(Ordering::Relaxed));
            metric.encode(encoder.encode_descriptor(name, help, None::<&Unit>, metric.metric_type())?)?;
        }
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        for (name, help, value) in [
            ("remit_journal_lag_rows", "Records that PostgreSQL has not got yet", number(backlog.records)),
            ("remit_journal_lag_bytes", "Bytes that PostgreSQL has not got yet", number(backlog.bytes)),
            (
                "remit_journal_cap_bytes",
                "Bytes that may wait before allows are refused",
                number(backlog.cap.unwrap_or_default()),
            ),
            (
                "remit_postgres_reachable",
                "1 while PostgreSQL takes the journal",
                i64::from(shipping.reachable.load(Ordering::Relaxed)),
            ),
            (
                "remit_journal_diverged",
                "1 while PostgreSQL has other records than the journal, and allows are refused",
                i64::from(shipping.diverged.load(Ordering::Relaxed)),
            ),
        ] {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None::<&Unit>, metric.metric_type())?)?;
        }
        let lag = ConstGauge::new(backlog.since.as_secs_f64());
        let help = "Seconds for which records have been waiting to be shipped";
        lag.encode(encoder.encode_descriptor("remit_journal_lag_seconds", help, None::<&Unit>, lag.metric_type())?)
    }
}
