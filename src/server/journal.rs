//! The journal's own numbers, read at each scrape.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::store::SqliteStore;

/// Numbers of this store.
pub struct JournalNumbers(pub Arc<SqliteStore>);

impl std::fmt::Debug for JournalNumbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JournalNumbers")
    }
}

impl Collector for JournalNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let journal = self.0.counters();
        let mut counter = |name: &str, help: &str, value: u64| {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None::<&Unit>, metric.metric_type())?)
        };
        counter("remit_journal_records", "Records committed", journal.committed.load(Ordering::Relaxed))?;
        counter("remit_journal_commits", "Transactions committed", journal.commits.load(Ordering::Relaxed))?;
        counter("remit_journal_failures", "Transactions that failed", journal.failures.load(Ordering::Relaxed))?;
        let mut gauge = |name: &str, help: &str, value: i64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None::<&Unit>, metric.metric_type())?)
        };
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        gauge("remit_journal_healthy", "1 while the last commit succeeded", journal.healthy.load(Ordering::Relaxed))?;
        gauge(
            "remit_journal_queue_depth",
            "Records that wait",
            i64::try_from(self.0.queue_depth()).unwrap_or(i64::MAX),
        )?;
        gauge(
            "remit_journal_head_sequence",
            "Sequence number of the last record",
            number(journal.head_seq.load(Ordering::Relaxed)),
        )?;
        gauge(
            "remit_journal_anchored_sequence",
            "Sequence number that the last anchor covers",
            number(journal.anchored_seq.load(Ordering::Relaxed)),
        )
    }
}
