//! What waits for the writer: bounded by count and bytes, with a share per tenant, so that a noisy tenant can't take the
//! journal from the others. Never waits, never drops what it has taken.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use super::backlog::Backlog;
use super::ledger::Write;
use crate::store::chain::{Columns, Hash};
use crate::store::{Committed, StoreError};

/// A record on its way into the chain.
pub(super) struct Pending {
    pub columns: Columns,
    pub body: String,
    pub body_hash: Hash,
    pub allow: bool,
    pub reply: oneshot::Sender<Result<Committed, StoreError>>,
}

/// Everything else that is written: it shares the records' transaction, so that nothing waits for a lock.
pub(super) struct Job {
    pub write: Write,
    pub reply: oneshot::Sender<Result<u64, StoreError>>,
}

/// What the writer takes at once.
#[derive(Default)]
pub(super) struct Batch {
    pub records: Vec<Pending>,
    pub jobs: Vec<Job>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.jobs.is_empty()
    }
}

#[derive(Clone, Copy, Default)]
struct Share {
    records: usize,
    bytes: usize,
}

#[derive(Default)]
struct State {
    waiting: Batch,
    total: Share,
    tenants: HashMap<String, Share>,
    closed: bool,
}

/// Limits of what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Records that may wait; a tenant may have half of it.
    pub records: usize,
    /// Bytes that may wait; a tenant may have half of it.
    pub bytes: usize,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { records: 8192, bytes: 128 * 1024 * 1024 }
    }
}

/// Jobs are the operator's own and few; the bound is there for a defect.
const MAX_JOBS: usize = 4096;

pub(super) struct Queue {
    state: Mutex<State>,
    arrived: Notify,
    limits: QueueLimits,
    backlog: Arc<Backlog>,
}

impl Queue {
    pub fn new(limits: QueueLimits, backlog: Arc<Backlog>) -> Self {
        Self { state: Mutex::default(), arrived: Notify::new(), limits, backlog }
    }

    pub fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    /// The state is valid after each statement that changes it, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, record: Pending) -> Result<(), StoreError> {
        let bytes = record.body.len();
        self.backlog.admits(&record.columns.tenant, record.allow)?;
        {
            let mut state = self.lock();
            if state.closed {
                return Err(closed());
            }
            let fits = |share: Share, records: usize, limit: usize| {
                share.records < records && (share.records == 0 || share.bytes + bytes <= limit)
            };
            if !fits(state.total, self.limits.records, self.limits.bytes) {
                return Err(StoreError::Full);
            }
            match state.tenants.get_mut(&record.columns.tenant) {
                Some(share) => {
                    if !fits(*share, (self.limits.records / 2).max(1), self.limits.bytes / 2) {
                        return Err(StoreError::Full);
                    }
                    share.records += 1;
                    share.bytes += bytes;
                }
                None => {
                    state.tenants.insert(record.columns.tenant.clone(), Share { records: 1, bytes });
                }
            }
            state.total.records += 1;
            state.total.bytes += bytes;
            state.waiting.records.push(record);
        }
        self.arrived.notify_one();
        Ok(())
    }

    pub fn push_job(&self, job: Job) -> Result<(), StoreError> {
        {
            let mut state = self.lock();
            if state.closed {
                return Err(closed());
            }
            if state.waiting.jobs.len() >= MAX_JOBS {
                return Err(StoreError::Full);
            }
            state.waiting.jobs.push(job);
        }
        self.arrived.notify_one();
        Ok(())
    }

    /// Takes nothing more; what waits is still written.
    pub fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_one();
    }

    /// Records that wait.
    pub fn depth(&self) -> usize {
        self.lock().total.records
    }

    /// Waits for work; None once closed and empty.
    pub async fn take(&self) -> Option<Batch> {
        loop {
            {
                let mut state = self.lock();
                if !state.waiting.is_empty() {
                    state.total = Share::default();
                    state.tenants.clear();
                    return Some(std::mem::take(&mut state.waiting));
                }
                if state.closed {
                    return None;
                }
            }
            self.arrived.notified().await;
        }
    }
}

pub(super) fn closed() -> StoreError {
    StoreError::Closed("it was stopped".into())
}

#[cfg(test)]
mod tests {
    use super::super::backlog::Weights;
    use super::*;
    use crate::store::testing;

    fn pending(tenant: &str) -> Pending {
        let record = testing::record(tenant, 1);
        Pending {
            columns: Columns::from(record),
            body: "0123456789".into(),
            body_hash: [0; 32],
            allow: true,
            reply: oneshot::channel().0,
        }
    }

    fn refused(queue: &Queue, tenant: &str) -> bool {
        matches!(queue.push(pending(tenant)), Err(StoreError::Full))
    }

    #[tokio::test]
    async fn a_noisy_tenant_leaves_room_for_others() {
        let queue = Queue::new(QueueLimits { records: 8, bytes: 1 << 20 }, Arc::default());
        let taken = (0..10).filter(|_| !refused(&queue, "noisy")).count();
        assert_eq!(taken, 4, "half of the queue");
        assert!(!refused(&queue, "quiet"));
        assert_eq!(queue.take().await.unwrap().records.len(), 5);
        assert!(!refused(&queue, "noisy"), "its share is free again");
    }

    #[tokio::test]
    async fn the_whole_is_bounded_too() {
        let queue = Queue::new(QueueLimits { records: 3, bytes: 1 << 20 }, Arc::default());
        for tenant in ["a", "b", "c"] {
            assert!(!refused(&queue, tenant));
        }
        assert!(refused(&queue, "d"));
    }

    #[tokio::test]
    async fn bytes_are_bounded_and_one_large_record_passes() {
        let queue = Queue::new(QueueLimits { records: 100, bytes: 40 }, Arc::default());
        assert!(!refused(&queue, "a"));
        assert!(!refused(&queue, "a"));
        assert!(refused(&queue, "a"), "20 of 40 bytes are its share");
        let queue = Queue::new(QueueLimits { records: 100, bytes: 1 }, Arc::default());
        assert!(!refused(&queue, "a"), "alone, any size");
        assert!(refused(&queue, "b"));
    }

    #[tokio::test]
    async fn at_the_cap_allows_are_refused_and_denies_a_little_later() {
        let backlog = Arc::new(Backlog::new(Some(800), &Weights::new()));
        let queue = Queue::new(QueueLimits::default(), backlog.clone());
        let push = |allow| queue.push(Pending { allow, ..pending("a") }).is_ok();
        let others = |bytes| Weights::from([("b".to_owned(), bytes)]);
        backlog.enter(&others(799));
        assert!(push(true));
        backlog.enter(&others(1));
        assert!(!push(true) && push(false));
        backlog.enter(&others(100));
        assert!(!push(false), "the disk is not endless");
        backlog.leave(&others(200));
        assert!(push(true), "there is room again");
        backlog.hold(Some("another chain".into()));
        assert!(!push(true) && push(false));
        backlog.hold(None);
        assert!(push(true));
    }

    /// The attack: one namespace's agent makes large calls while PostgreSQL is away, until nobody's allow is answered any more.
    #[tokio::test]
    async fn one_namespace_leaves_room_for_the_others() {
        let backlog = Arc::new(Backlog::new(Some(800), &Weights::new()));
        let queue = Queue::new(QueueLimits::default(), backlog.clone());
        let push = |tenant, allow| queue.push(Pending { allow, ..pending(tenant) }).is_ok();
        let of = |tenant: &str, bytes| Weights::from([(tenant.to_owned(), bytes)]);
        backlog.enter(&of("loud", 600));
        assert!(push("loud", true));
        backlog.enter(&of("loud", 1));
        assert!(!push("loud", true) && push("loud", false) && push("quiet", true));
        backlog.enter(&of("loud", 100));
        assert!(!push("loud", false), "denies end at a share, too");
        assert!(push("quiet", true) && push("new", true));
        backlog.leave(&of("loud", 600));
        assert!(push("loud", true), "there is room again");
    }

    #[tokio::test]
    async fn closing_lets_out_what_waits() {
        let queue = Queue::new(QueueLimits::default(), Arc::default());
        queue.push(pending("a")).unwrap();
        queue.close();
        assert!(matches!(queue.push(pending("a")), Err(StoreError::Closed(_))));
        assert_eq!(queue.take().await.unwrap().records.len(), 1);
        assert!(queue.take().await.is_none());
    }
}
