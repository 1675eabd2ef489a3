//! What the other package of a rollout would have made of a call: evaluated after its answer has left, compared, and kept for the
//! rollout to be judged by.
//!
//! Must never delay, change or take back an answer: one thread of low priority works off a bounded queue, what does not fit is dropped
//! and counted, and a panic costs that one comparison. What is kept has no argument values.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::caller::Call;
use super::metrics::Metrics;
use super::wire::weight;
use crate::api::Tier;
use crate::gate::{
    Arm, CheckInput, CheckRequest, Checked, Decision, MAX_PATTERN_COST, Outcome, SessionState, Snapshot, Unit,
    check_under, shadowed,
};
use crate::lifecycle::drift::{Severity, Side, asked_words, compare};
use crate::store::{Arms, ShadowRow};

/// Calls that wait, of all tenants and of one.
const WAITING: usize = 4096;
const WAITING_OF_ONE: usize = 1024;
/// Text of the calls that wait, bytes.
const WAITING_BYTES: usize = 16 * 1024 * 1024;
/// Results that wait to be kept.
const RESULTS: usize = 8192;
/// Results that are kept at once.
const BATCH: usize = 512;
/// For how long results are gathered where nothing in them is urgent, and where something is.
const GATHER: Duration = Duration::from_millis(500);
const GATHER_URGENT: Duration = Duration::from_millis(20);
/// Time for what is left at stop.
const LAST: Duration = Duration::from_secs(5);
/// Evaluation recurses.
const STACK: usize = 8 * 1024 * 1024;
/// How much nicer the thread is than those that answer.
const NICE: i32 = 10;
/// Policies that a sentence names of each side, and characters of each name in it.
const NAMED: usize = 3;
const NAME: usize = 128;

/// Evaluates under an arm: `gate::check_under`, or a stand-in in tests.
pub type Under = fn(&CheckInput<'_>, Arm) -> Checked;

/// One call that was answered.
pub(super) struct Job {
    snapshot: Arc<Snapshot>,
    call: Arc<Call>,
    request: CheckRequest,
    session: SessionState,
    now: Timestamp,
    id: String,
    arm: Arm,
    revision: i64,
    answered: Decision,
}

impl Job {
    /// Of a call that was decided under an arm, where it is one of those that are shadowed.
    pub(super) fn of(
        snapshot: Arc<Snapshot>,
        call: &Arc<Call>,
        request: CheckRequest,
        session: SessionState,
        now: Timestamp,
        checked: &Checked,
    ) -> Option<Self> {
        let revision = checked.record.revision?;
        let tenant = snapshot.tenants.get(&call.tenant)?;
        let canary = tenant.canary.as_ref()?;
        // Where one side can't be loaded there is nothing to compare: that is a fault, and is told as one.
        if canary.package.is_none() || tenant.package.is_none() {
            return None;
        }
        let unit = Unit::of(&request, session);
        if !shadowed(&tenant.uid, canary, unit) {
            return None;
        }
        let (arm, _) = tenant.decides(unit);
        let (id, answered) = (checked.record.id.clone(), checked.decision.clone());
        Some(Self { snapshot, call: call.clone(), request, session, now, id, arm, revision, answered })
    }
}

#[derive(Default)]
struct Waiting {
    /// By tenant, so that none waits for another's.
    jobs: HashMap<String, VecDeque<(Job, usize)>>,
    /// Whose turn it is.
    turns: VecDeque<String>,
    count: usize,
    bytes: usize,
    closed: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it, unless there is no room.
    fn push(&self, job: Job) -> bool {
        let bytes = weight(&job.request);
        let mut w = self.lock();
        if w.closed || w.count >= WAITING || w.bytes.saturating_add(bytes) > WAITING_BYTES {
            return false;
        }
        let tenant = job.call.tenant.clone();
        let of_tenant = w.jobs.entry(tenant.clone()).or_default();
        if of_tenant.len() >= WAITING_OF_ONE {
            return false;
        }
        of_tenant.push_back((job, bytes));
        if of_tenant.len() == 1 {
            w.turns.push_back(tenant);
        }
        w.count += 1;
        w.bytes += bytes;
        drop(w);
        self.arrived.notify_one();
        true
    }

    /// The next call, each tenant in its turn; None: closed.
    fn pop(&self) -> Option<Job> {
        let mut w = self.lock();
        loop {
            if let Some(tenant) = w.turns.pop_front() {
                let Some(of_tenant) = w.jobs.get_mut(&tenant) else { continue };
                let Some((job, bytes)) = of_tenant.pop_front() else { continue };
                if of_tenant.is_empty() {
                    w.jobs.remove(&tenant);
                } else {
                    w.turns.push_back(tenant);
                }
                w.count -= 1;
                w.bytes -= bytes;
                return Some(job);
            }
            if w.closed {
                return None;
            }
            w = self.arrived.wait(w).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }
}

/// Compares, off the answers' path.
pub struct Shadow {
    /// None: nothing is compared.
    queue: Option<Arc<Queue>>,
    metrics: Option<Arc<Metrics>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Shadow {
    /// Compares nothing: where there are no rollouts.
    pub fn off() -> Self {
        Self { queue: None, metrics: None, keeper: Mutex::default() }
    }

    /// Starts. Needs a tokio runtime.
    pub fn start(store: Arc<dyn Arms>, metrics: Arc<Metrics>, redaction_key: Vec<u8>) -> std::io::Result<Self> {
        Self::start_with(store, metrics, redaction_key, check_under)
    }

    /// The same with a stand-in for the gates.
    pub(super) fn start_with(
        store: Arc<dyn Arms>,
        metrics: Arc<Metrics>,
        redaction_key: Vec<u8>,
        under: Under,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let (results, kept) = mpsc::channel(RESULTS);
        let (work, told) = (queue.clone(), metrics.clone());
        std::thread::Builder::new().name("remit-shadow".into()).stack_size(STACK).spawn(move || {
            // On Linux a thread has its own.
            if let Err(error) = rustix::process::nice(NICE) {
                tracing::debug!(%error, "the shadow's thread has the priority of the others");
            }
            while let Some(job) = work.pop() {
                evaluate(job, under, &redaction_key, &results, &told);
            }
        })?;
        let keeper = tokio::spawn(keep(store, kept, metrics.clone()));
        Ok(Self { queue: Some(queue), metrics: Some(metrics), keeper: Mutex::new(Some(keeper)) })
    }

    /// Whether anything is compared.
    pub(super) fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Hands in a call whose answer is on its way. Never waits.
    pub(super) fn submit(&self, job: Job) {
        if let (Some(queue), Some(metrics)) = (&self.queue, &self.metrics)
            && !queue.push(job)
        {
            metrics.shadow_dropped("queue_full", 1);
        }
    }

    /// Takes nothing more, and keeps what was compared.
    pub async fn close(&self) {
        if let Some(queue) = &self.queue {
            queue.close();
        }
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper
            && tokio::time::timeout(LAST, keeper).await.is_err()
        {
            tracing::warn!("not all shadow evaluations could be kept at stop");
        }
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.close();
        }
    }
}

fn evaluate(job: Job, under: Under, key: &[u8], results: &mpsc::Sender<ShadowRow>, metrics: &Metrics) {
    let (id, tenant) = (job.id.clone(), job.call.tenant.clone());
    match catch_unwind(AssertUnwindSafe(|| row(&job, under, key))) {
        Ok(Some(row)) => {
            if results.try_send(row).is_err() {
                metrics.shadow_dropped("store_behind", 1);
            }
        }
        Ok(None) => {}
        Err(_) => {
            metrics.shadow_dropped("panicked", 1);
            tracing::error!(decision_id = id, tenant, "a shadow evaluation panicked");
        }
    }
}

fn row(job: &Job, under: Under, key: &[u8]) -> Option<ShadowRow> {
    let answered = &job.answered;
    let tenant = job.snapshot.tenants.get(&job.call.tenant)?;
    let other = under(
        &CheckInput {
            snapshot: &job.snapshot,
            tenant: &job.call.tenant,
            caller: &job.call.caller,
            request: &job.request,
            session: job.session,
            now: job.now,
            id: &job.id,
            request_id: None,
            redaction_key: key,
            pattern_budget: MAX_PATTERN_COST,
        },
        job.arm.other(),
    )
    .decision;
    // Always from stable to candidate, whichever answered.
    let (stable, candidate) = match job.arm {
        Arm::Stable => (answered, &other),
        Arm::Canary => (&other, answered),
    };
    let (stable_policies, candidate_policies) = (stable.determining(), candidate.determining());
    let (stable_asks, candidate_asks) = (stable.asked(), candidate.asked());
    let resource = &job.request.resource;
    let tier = |arm| -> Option<Tier> {
        let package = tenant.package_of(arm).filter(|_| resource.type_ == "tool")?;
        package.tool(&resource.id).map(|tool| tool.tier)
    };
    let drift = compare(
        &Side { outcome: stable.weighed().0, policies: &stable_policies, asks: &stable_asks, tier: tier(Arm::Stable) },
        &Side {
            outcome: candidate.weighed().0,
            policies: &candidate_policies,
            asks: &candidate_asks,
            tier: tier(Arm::Canary),
        },
    );
    let subject = &job.request.subject;
    let agent = match subject.type_.as_str() {
        "agent" => subject.id.clone(),
        type_ => format!("{type_}:{}", subject.id),
    };
    let sentence = match drift {
        None => String::new(),
        Some(_) => format!(
            "{} and {} {}: {} in force, {} under the candidate.{}",
            name(&agent),
            name(&job.request.action.name),
            name(&resource.id),
            said(stable, &stable_policies),
            said(candidate, &candidate_policies),
            asked_words(&stable_asks, &candidate_asks),
        ),
    };
    Some(ShadowRow {
        decision: job.id.clone(),
        tenant: tenant.name.clone(),
        tenant_uid: tenant.uid.clone(),
        revision: job.revision,
        agent,
        answered: job.arm,
        severity: drift.map_or(Severity::None, |d| d.severity),
        cause: drift.map(|d| d.cause),
        sentence,
        stable_policies,
        candidate_policies,
        time: job.now,
    })
}

/// What a side says, in words.
fn said(decision: &Decision, policies: &[String]) -> String {
    let (outcome, code) = decision.weighed();
    let word = match outcome {
        Outcome::Allow => "allowed".to_owned(),
        Outcome::ApprovalRequired => "asked of people".to_owned(),
        Outcome::Deny | Outcome::Refused => format!("denied ({code})"),
    };
    let named: Vec<String> = policies.iter().take(NAMED).map(|p| name(p)).collect();
    match (named.as_slice(), policies.len().saturating_sub(NAMED)) {
        ([], _) => word,
        (named, 0) => format!("{word} by {}", named.join(", ")),
        (named, more) => format!("{word} by {} and {more} more", named.join(", ")),
    }
}

/// A name that somebody chose, fit for one line.
fn name(text: &str) -> String {
    text.escape_debug().take(NAME).collect()
}

/// Keeps results in batches until there are no more.
async fn keep(store: Arc<dyn Arms>, mut results: mpsc::Receiver<ShadowRow>, metrics: Arc<Metrics>) {
    let mut batch: Vec<ShadowRow> = Vec::with_capacity(BATCH);
    while let Some(first) = results.recv().await {
        let mut wait = gather(&first);
        let begun = tokio::time::Instant::now();
        batch.push(first);
        while batch.len() < BATCH {
            match tokio::time::timeout_at(begun + wait, results.recv()).await {
                Ok(Some(row)) => {
                    wait = wait.min(gather(&row));
                    batch.push(row);
                }
                Ok(None) | Err(_) => break,
            }
        }
        match store.save_shadows(&batch).await {
            Ok(()) => batch.iter().for_each(|row| metrics.shadow_compared(&row.tenant, row.severity)),
            Err(error) => {
                // Not tried again: whether they were kept is not known, and nothing may count twice.
                metrics.shadow_dropped("store_failed", batch.len() as u64);
                tracing::warn!(%error, rows = batch.len(), "shadow evaluations could not be kept");
            }
        }
        batch.clear();
    }
}

/// What may stop a rollout is told soon.
fn gather(row: &ShadowRow) -> Duration {
    if row.severity >= Severity::High { GATHER_URGENT } else { GATHER }
}

#[cfg(test)]
#[path = "shadow_tests.rs"]
mod unit;
