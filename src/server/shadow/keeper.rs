//! Keeps what was compared, and how many calls were not.
//!
//! What the store does not take is handed in again for a while, the same batch under the same id: nothing counts twice, and nothing is
//! forgotten. What can't be kept in the end counts as not compared; those counts are handed in until they are kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::Job;
use crate::lifecycle::drift::Severity;
use crate::server::metrics::Metrics;
use crate::store::{Arms, ShadowBatch, ShadowDropped, ShadowRow, StoreError};

/// Results that are kept at once.
const BATCH: usize = 512;
/// For how long results are gathered where nothing in them is urgent, and where something is.
const GATHER: Duration = Duration::from_millis(500);
const GATHER_URGENT: Duration = Duration::from_millis(20);
/// For how long a batch is handed in again. Meanwhile results wait in the channel, and what does not fit there is counted.
const AGAIN: Duration = Duration::from_secs(600);
/// How often after a stop was asked for.
const AGAIN_AT_STOP: u32 = 3;
/// Between two tries, at first and at most.
const PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// By tenant, its UID and revision: how many, and the newest.
type Calls = BTreeMap<(String, String, i64), (u64, Timestamp)>;

/// Calls that were not compared and are not in the store yet.
#[derive(Default)]
pub(super) struct Lost {
    calls: Mutex<Calls>,
    told: Notify,
}

impl Lost {
    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This one is not compared.
    pub fn job(&self, job: &Job) {
        if let Some(tenant) = job.snapshot.tenants.get(&job.call.tenant) {
            self.add(&tenant.name, &tenant.uid, job.revision, 1, job.now);
        }
    }

    fn add(&self, tenant: &str, uid: &str, revision: i64, calls: u64, time: Timestamp) {
        let mut lost = self.lock();
        let (sum, newest) = lost.entry((tenant.to_owned(), uid.to_owned(), revision)).or_insert((0, time));
        *sum = sum.saturating_add(calls);
        *newest = time.max(*newest);
        drop(lost);
        self.told.notify_one();
    }

    fn take(&self) -> Vec<ShadowDropped> {
        let lost = std::mem::take(&mut *self.lock());
        let of = |((tenant, tenant_uid, revision), (calls, time))| ShadowDropped {
            tenant,
            tenant_uid,
            revision,
            calls,
            time,
        };
        lost.into_iter().map(of).collect()
    }
}

/// Takes results to the store.
pub(super) struct Keeper {
    pub store: Arc<dyn Arms>,
    pub lost: Arc<Lost>,
    pub closing: watch::Receiver<bool>,
    pub metrics: Arc<Metrics>,
}

impl Keeper {
    /// Keeps results in batches until there are no more.
    pub async fn run(mut self, mut results: mpsc::Receiver<ShadowRow>) {
        let mut open = true;
        while open {
            let mut rows = Vec::new();
            let mut wait = tokio::select! {
                row = results.recv() => match row {
                    Some(row) => {
                        let wait = gather(&row);
                        rows.push(row);
                        wait
                    }
                    None => {
                        open = false;
                        Duration::ZERO
                    }
                },
                () = self.lost.told.notified() => GATHER,
            };
            let begun = Instant::now();
            while open && rows.len() < BATCH {
                match timeout_at(begun + wait, results.recv()).await {
                    Ok(Some(row)) => {
                        wait = wait.min(gather(&row));
                        rows.push(row);
                    }
                    Ok(None) => open = false,
                    Err(_) => break,
                }
            }
            self.keep(rows).await;
        }
        // What the last ones could not be kept as.
        self.keep(Vec::new()).await;
        for left in self.lost.take() {
            tracing::warn!(
                tenant = left.tenant,
                revision = left.revision,
                calls = left.calls,
                "calls were not compared, and nobody knows"
            );
        }
    }

    /// Keeps these, and what was lost until now.
    async fn keep(&mut self, rows: Vec<ShadowRow>) {
        let batch = ShadowBatch { id: Uuid::now_v7().to_string(), rows, dropped: self.lost.take() };
        if batch.rows.is_empty() && batch.dropped.is_empty() {
            return;
        }
        let (begun, mut pause, mut at_stop) = (Instant::now(), PAUSE, 0);
        loop {
            let error = match self.store.save_shadows(&batch).await {
                Ok(()) => {
                    batch.rows.iter().for_each(|row| self.metrics.shadow_compared(&row.tenant, row.severity));
                    return;
                }
                Err(error) => error,
            };
            tracing::warn!(%error, rows = batch.rows.len(), "shadow evaluations could not be kept yet");
            let stopping = *self.closing.borrow();
            at_stop += u32::from(stopping);
            // No store takes what it calls wrong.
            let never = matches!(error, StoreError::Corrupt { .. } | StoreError::Invalid { .. });
            let over = never || begun.elapsed() > AGAIN || at_stop >= AGAIN_AT_STOP;
            if over {
                self.give_up(&batch);
            }
            if !stopping {
                tokio::select! {
                    () = sleep(pause) => {}
                    _ = self.closing.wait_for(|closing| *closing) => {}
                }
            } else if !over {
                sleep(pause).await;
            }
            if over {
                return;
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// These count as not compared.
    fn give_up(&self, batch: &ShadowBatch) {
        if !batch.rows.is_empty() {
            self.metrics.shadow_dropped("store_failed", batch.rows.len() as u64);
        }
        for row in &batch.rows {
            self.lost.add(&row.tenant, &row.tenant_uid, row.revision, 1, row.time);
        }
        for d in &batch.dropped {
            self.lost.add(&d.tenant, &d.tenant_uid, d.revision, d.calls, d.time);
        }
    }
}

/// What may stop a rollout is told soon.
fn gather(row: &ShadowRow) -> Duration {
    if row.severity >= Severity::High { GATHER_URGENT } else { GATHER }
}
