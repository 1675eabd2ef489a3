//! What a folder's Remit counts beside the server's own numbers.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::reload::Said;
use std::sync::Arc;

/// How the folder's changes were taken.
#[derive(Debug)]
pub struct FolderNumbers(pub Arc<Said>);

impl Collector for FolderNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (taken, refused) = self.0.counts();
        for (name, help, value) in [
            ("remit_folder_reloads", "Changes of the folder that came into force", taken),
            ("remit_folder_reloads_refused", "Changes of the folder that did not", refused),
        ] {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None::<&Unit>, metric.metric_type())?)?;
        }
        let metric = ConstGauge::new(i64::from(self.0.fault().is_some()));
        let help = "1 while something in the folder is not in force because it is wrong";
        metric.encode(encoder.encode_descriptor("remit_folder_faulty", help, None::<&Unit>, metric.metric_type())?)
    }
}
