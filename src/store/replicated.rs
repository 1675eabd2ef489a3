//! One replica's view of a store that several share: its own SQLite journal, which is the commit point, and PostgreSQL for everything
//! else. The journal is shipped there in the background.
//!
//! A reader sees what this replica has answered: a listing waits for the shipping of what was committed before it, as long as that
//! does not take long.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use super::shipping::{Shipper, Shipping, ShippingOptions};
use super::{
    Arms, Arrival, AuditRow, CallReport, Committed, Cut, DecisionFilter, History, InForceRow, Journal, Page, Place,
    PolicyVersion, PostgresStore, ReplayRow, ReplayRun, Replays, RunStep, Selected, SessionRow, ShadowBatch,
    SqliteStore, Store, StoreError, StoreFuture, StoredDecision,
};
use crate::api::{Envelope, ReplaySelection, ReplayState};
use crate::gate::DecisionRecord;
use crate::lifecycle::evidence::Window;

/// How long a reader waits for what this replica has not shipped yet.
const READ_OWN: Duration = Duration::from_secs(2);
/// Whoever weighs a rollout does not wait again so soon after it has waited in vain: a bad candidate ends no later for it.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a stop waits for the same.
const LAST: Duration = Duration::from_secs(10);

/// Journal and store of one of several replicas.
pub struct ReplicatedStore {
    journal: Arc<SqliteStore>,
    postgres: Arc<PostgresStore>,
    shipping: Arc<Shipping>,
    window_waits: Duration,
    /// When a window last waited in vain.
    behind: std::sync::Mutex<Option<Instant>>,
    task: Mutex<Option<Task>>,
}

/// What waits to be shipped.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Records.
    pub records: u64,
    /// Bytes.
    pub bytes: u64,
    /// Bytes from which on allows are refused.
    pub cap: Option<u64>,
    /// For how long something has been waiting.
    pub since: Duration,
}

struct Task {
    stop: watch::Sender<bool>,
    shipper: JoinHandle<()>,
}

impl ReplicatedStore {
    /// Begins to ship.
    pub fn start(journal: Arc<SqliteStore>, postgres: Arc<PostgresStore>, options: ShippingOptions) -> Arc<Self> {
        let shipping = Arc::new(Shipping::default());
        let (stop, stopped) = watch::channel(false);
        let window_waits = options.window_waits;
        let shipper = Shipper::new(journal.clone(), postgres.clone(), shipping.clone(), options);
        let task = Task { stop, shipper: tokio::spawn(shipper.run(stopped)) };
        let behind = std::sync::Mutex::default();
        Arc::new(Self { journal, postgres, shipping, window_waits, behind, task: Mutex::new(Some(task)) })
    }

    /// Where shipping stands.
    pub fn shipping(&self) -> &Arc<Shipping> {
        &self.shipping
    }

    /// This replica's journal.
    pub fn journal(&self) -> &Arc<SqliteStore> {
        &self.journal
    }

    /// What waits to be shipped.
    pub fn backlog(&self) -> Waiting {
        let (head, backlog) = (self.journal.head_seq(), self.journal.backlog());
        Waiting {
            records: head.saturating_sub(self.shipping.shipped()),
            bytes: backlog.bytes(),
            cap: backlog.cap(),
            since: self.shipping.lag(head),
        }
    }

    /// What all replicas share.
    pub fn postgres(&self) -> &Arc<PostgresStore> {
        &self.postgres
    }

    /// Signs the last anchor, ships what is left while PostgreSQL takes it, and closes both. What is not shipped stays in the journal.
    pub async fn close(&self) {
        let Some(Task { stop, shipper }) = self.task.lock().await.take() else { return };
        if let Err(error) = self.journal.anchor_now().await {
            tracing::warn!(%error, "the last anchor could not be signed and published");
        }
        let head = self.journal.head_seq();
        if !self.shipping.reaches(head, LAST).await {
            let left = head.saturating_sub(self.shipping.shipped());
            tracing::warn!(left, "records stay in the journal: PostgreSQL did not take them in time");
        }
        let _ = stop.send(true);
        let _ = tokio::time::timeout(LAST, shipper).await;
        self.journal.close().await;
        self.postgres.close().await;
    }

    /// Waits until what this replica had committed is where everybody reads.
    async fn own_is_there(&self) {
        self.own_is_there_within(READ_OWN).await;
    }

    /// The same, for so long at most; false where it is not.
    async fn own_is_there_within(&self, time: Duration) -> bool {
        let head = self.journal.head_seq();
        self.shipping.shipped() >= head
            || !self.shipping.reachable.load(Ordering::Relaxed)
            || self.shipping.reaches(head, time).await
    }

    /// The same for who weighs a rollout: briefly, and only once where this replica is behind. What is missing is in the next look.
    async fn own_is_weighed(&self) {
        let behind = || self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        if behind().is_some_and(|then| then.elapsed() < AGAIN) {
            return;
        }
        let there = self.own_is_there_within(self.window_waits).await;
        *behind() = (!there).then(Instant::now);
    }
}

impl Drop for ReplicatedStore {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().take() {
            task.shipper.abort();
        }
    }
}

impl Journal for ReplicatedStore {
    fn append(&self, record: DecisionRecord) -> Result<StoreFuture<'static, Committed>, StoreError> {
        self.journal.append(record)
    }
}

impl Arms for ReplicatedStore {
    fn window<'a>(
        &'a self,
        tenant_uid: &'a str,
        revision: i64,
        rates_since: Timestamp,
        enough: u64,
    ) -> StoreFuture<'a, Window> {
        Box::pin(async move {
            self.own_is_weighed().await;
            self.postgres.window(tenant_uid, revision, rates_since, enough).await
        })
    }

    /// Without waiting for what this replica has not shipped: the next look sees it.
    fn stage<'a>(
        &'a self,
        tenant_uid: &'a str,
        revision: i64,
        since: Timestamp,
        enough: u64,
    ) -> StoreFuture<'a, Window> {
        self.postgres.stage(tenant_uid, revision, since, enough)
    }

    /// Directly: they are evidence, not records. While PostgreSQL is away they wait at the shadow, or are counted as not compared.
    fn save_shadows<'a>(&'a self, batch: &'a ShadowBatch) -> StoreFuture<'a, ()> {
        self.postgres.save_shadows(batch)
    }
}

impl Replays for ReplicatedStore {
    fn add_run<'a>(&'a self, run: &'a ReplayRun) -> StoreFuture<'a, bool> {
        self.postgres.add_run(run)
    }

    fn supersede_runs<'a>(&'a self, tenant_uid: &'a str, key: &'a str, at: Timestamp) -> StoreFuture<'a, u64> {
        self.postgres.supersede_runs(tenant_uid, key, at)
    }

    fn run<'a>(&'a self, tenant_uid: &'a str, id: &'a str) -> StoreFuture<'a, Option<ReplayRun>> {
        self.postgres.run(tenant_uid, id)
    }

    fn newest_run<'a>(
        &'a self,
        tenant_uid: &'a str,
        key: &'a str,
        state: Option<ReplayState>,
    ) -> StoreFuture<'a, Option<ReplayRun>> {
        self.postgres.newest_run(tenant_uid, key, state)
    }

    fn open_runs(&self) -> StoreFuture<'_, Vec<ReplayRun>> {
        self.postgres.open_runs()
    }

    fn step_run<'a>(&'a self, id: &'a str, step: &'a RunStep) -> StoreFuture<'a, bool> {
        self.postgres.step_run(id, step)
    }

    fn forget_runs(&self, before: Timestamp) -> StoreFuture<'_, u64> {
        self.postgres.forget_runs(before)
    }

    fn selected<'a>(&'a self, tenant: &'a str, selection: &'a ReplaySelection) -> StoreFuture<'a, Selected> {
        Box::pin(async move {
            self.own_is_there().await;
            self.postgres.selected(tenant, selection).await
        })
    }

    fn replay_page<'a>(
        &'a self,
        tenant: &'a str,
        selection: &'a ReplaySelection,
        cuts: &'a [Cut],
        after: Option<&'a Place>,
        limit: u32,
    ) -> StoreFuture<'a, Vec<ReplayRow>> {
        Box::pin(async move {
            self.own_is_there().await;
            self.postgres.replay_page(tenant, selection, cuts, after, limit).await
        })
    }
}

impl History for ReplicatedStore {
    fn note_applied<'a>(
        &'a self,
        tenant: &'a str,
        digest: &'a str,
        username: &'a str,
        at: Timestamp,
    ) -> StoreFuture<'a, ()> {
        self.postgres.note_applied(tenant, digest, username, at)
    }

    fn policies<'a>(&'a self, tenant_uid: &'a str, package: Option<&'a str>) -> StoreFuture<'a, Vec<PolicyVersion>> {
        self.postgres.policies(tenant_uid, package)
    }

    fn versions<'a>(
        &'a self,
        tenant_uid: &'a str,
        package: &'a str,
        policy: &'a str,
        before: Option<u64>,
        limit: u32,
    ) -> StoreFuture<'a, Vec<PolicyVersion>> {
        self.postgres.versions(tenant_uid, package, policy, before, limit)
    }

    fn version<'a>(
        &'a self,
        tenant_uid: &'a str,
        package: &'a str,
        policy: &'a str,
        version: u64,
    ) -> StoreFuture<'a, Option<PolicyVersion>> {
        self.postgres.version(tenant_uid, package, policy, version)
    }
}

impl Store for ReplicatedStore {
    fn decisions<'a>(&'a self, tenant: &'a str, filter: &'a DecisionFilter) -> StoreFuture<'a, Page<StoredDecision>> {
        Box::pin(async move {
            self.own_is_there().await;
            self.postgres.decisions(tenant, filter).await
        })
    }

    /// The replica that has just answered knows its decisions also while PostgreSQL is away.
    fn decision<'a>(&'a self, tenant: &'a str, id: &'a str) -> StoreFuture<'a, Option<StoredDecision>> {
        Box::pin(async move {
            if !self.shipping.reachable.load(Ordering::Relaxed)
                && let Some(own) = self.journal.own_decision(tenant, id).await?
            {
                return Ok(Some(own));
            }
            self.own_is_there().await;
            let found = self.postgres.decision(tenant, id).await;
            match found {
                Err(error) => self.journal.own_decision(tenant, id).await?.map(Some).ok_or(error),
                found => found,
            }
        })
    }

    /// Kept in the journal first, and shipped. While PostgreSQL is away, what another replica has been told is not known.
    fn report_call<'a>(&'a self, decision: &'a str, report: &'a CallReport) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            if self.shipping.reachable.load(Ordering::Relaxed)
                && let Ok(same) = self.postgres.report_call(decision, report).await
            {
                return Ok(same);
            }
            let kept = self.journal.keep_report(decision, report).await?;
            Ok(kept.is_some_and(|k| (k.outcome, k.duration_ms) == (report.outcome, report.duration_ms)))
        })
    }

    fn live_sessions(&self) -> StoreFuture<'_, Vec<SessionRow>> {
        self.postgres.live_sessions()
    }

    fn save_sessions<'a>(&'a self, sessions: &'a [SessionRow]) -> StoreFuture<'a, ()> {
        self.postgres.save_sessions(sessions)
    }

    fn session<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Option<SessionRow>> {
        self.postgres.session(id)
    }

    fn end_silent<'a>(
        &'a self,
        silent: &'a [(SessionRow, Timestamp)],
        now: Timestamp,
    ) -> StoreFuture<'a, Vec<SessionRow>> {
        self.postgres.end_silent(silent, now)
    }

    fn shared(&self) -> bool {
        true
    }

    fn changed_sessions<'a>(&'a self, since: Option<&'a str>) -> StoreFuture<'a, (Vec<SessionRow>, String)> {
        self.postgres.changed_sessions(since)
    }

    fn put_in_force<'a>(&'a self, row: &'a InForceRow, arrival: &'a Arrival) -> StoreFuture<'a, ()> {
        self.postgres.put_in_force(row, arrival)
    }

    fn in_force<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, Vec<InForceRow>> {
        self.postgres.in_force(tenant_uid)
    }

    fn high_water<'a>(&'a self, tenant_uid: &'a str, package: &'a str) -> StoreFuture<'a, Option<(String, String)>> {
        self.postgres.high_water(tenant_uid, package)
    }

    fn signer_seen<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, bool> {
        self.postgres.signer_seen(tenant_uid)
    }

    fn remember_signer<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, ()> {
        self.postgres.remember_signer(tenant_uid)
    }

    fn compromised_keys<'a>(&'a self, tenant_uid: &'a str) -> StoreFuture<'a, BTreeSet<String>> {
        self.postgres.compromised_keys(tenant_uid)
    }

    fn remember_compromised<'a>(&'a self, tenant_uid: &'a str, fingerprints: &'a [String]) -> StoreFuture<'a, ()> {
        self.postgres.remember_compromised(tenant_uid, fingerprints)
    }

    /// What ended parsers of this process, and of the others as far as shipping has heard: loading a package waits for no database.
    fn quarantined(&self) -> StoreFuture<'_, Vec<String>> {
        Box::pin(async move {
            let mut all = self.journal.own_quarantine().await?;
            all.extend(self.shipping.quarantined());
            all.sort();
            all.dedup();
            Ok(all)
        })
    }

    fn parse_begins<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()> {
        self.journal.parse_begins(digest)
    }

    fn parse_ended<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()> {
        self.journal.parse_ended(digest)
    }

    fn recorded_tenants(&self) -> StoreFuture<'_, Vec<String>> {
        Box::pin(async move {
            self.own_is_there().await;
            self.postgres.recorded_tenants().await
        })
    }

    fn retain<'a>(&'a self, tenant: &'a str, before: Timestamp, batch: u32) -> StoreFuture<'a, u64> {
        Box::pin(async move {
            self.own_is_there().await;
            self.postgres.retain(tenant, before, batch).await
        })
    }

    fn audit_rows<'a>(&'a self, writer: &'a str, after: u64, limit: u32) -> StoreFuture<'a, Vec<AuditRow>> {
        Box::pin(async move {
            self.own_is_there().await;
            self.postgres.audit_rows(writer, after, limit).await
        })
    }

    fn audit_writer(&self) -> String {
        self.journal.writer().to_owned()
    }

    fn audit_writers(&self) -> StoreFuture<'_, Vec<String>> {
        self.postgres.audit_writers()
    }

    fn audit_anchors<'a>(&'a self, writer: &'a str) -> StoreFuture<'a, Vec<Envelope>> {
        self.postgres.audit_anchors(writer)
    }

    fn audit_tombstones<'a>(&'a self, writer: &'a str) -> StoreFuture<'a, Vec<Envelope>> {
        self.postgres.audit_tombstones(writer)
    }
}

#[cfg(test)]
#[path = "replicated_tests.rs"]
mod tests;
