//! What the other package of a rollout would have made of a call: evaluated after its answer has left, compared, and kept for the
//! rollout to be judged by.
//!
//! Must never delay, change or take back an answer: one thread of low priority works off a bounded queue, what does not fit is not
//! compared, and a panic costs that one comparison. Whatever was to be compared and was not is counted, in the store too: a rollout must
//! know what it did not see. What is kept has no argument values.

mod keeper;
mod queue;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::caller::Call;
use super::metrics::Metrics;
use crate::api::Tier;
use crate::gate::{
    Arm, CheckInput, CheckRequest, Checked, Decision, EntityRef, MAX_PATTERN_COST, Outcome, SessionState, Snapshot,
    Unit, check_under, shadowed,
};
use crate::lifecycle::drift::{Severity, Side, asked_words, compare};
use crate::store::{Arms, ShadowRow};

use self::keeper::{Keeper, Lost};
use self::queue::Queue;

/// Results that wait to be kept.
const RESULTS: usize = 8192;
/// Time for what is left at stop: to be compared and kept, and then to be counted as not compared.
const LAST: Duration = Duration::from_secs(4);
const LAST_COUNTS: Duration = Duration::from_secs(1);
/// Evaluation recurses.
const STACK: usize = 8 * 1024 * 1024;
/// How much nicer the thread is than those that answer.
const NICE: i32 = 10;
/// What the code of a deny is by which nobody decided.
const NOT_EVALUATED: &str = "evaluation_error";
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

/// Compares, off the answers' path.
pub struct Shadow(Option<On>);

struct On {
    queue: Arc<Queue>,
    lost: Arc<Lost>,
    metrics: Arc<Metrics>,
    closing: watch::Sender<bool>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Shadow {
    /// Compares nothing: where there are no rollouts.
    pub fn off() -> Self {
        Self(None)
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
        let (queue, lost) = (Arc::new(Queue::default()), Arc::new(Lost::default()));
        let (results, kept) = mpsc::channel(RESULTS);
        let (work, told, uncompared) = (queue.clone(), metrics.clone(), lost.clone());
        std::thread::Builder::new().name("remit-shadow".into()).stack_size(STACK).spawn(move || {
            // On Linux a thread has its own.
            if let Err(error) = rustix::process::nice(NICE) {
                tracing::debug!(%error, "the shadow's thread has the priority of the others");
            }
            while let Some(job) = work.pop() {
                evaluate(job, under, &redaction_key, &results, &uncompared, &told);
            }
        })?;
        let (closing, closed) = watch::channel(false);
        let keeper = Keeper { store, lost: lost.clone(), closing: closed, metrics: metrics.clone() };
        let keeper = Mutex::new(Some(tokio::spawn(keeper.run(kept))));
        Ok(Self(Some(On { queue, lost, metrics, closing, keeper })))
    }

    /// Whether anything is compared.
    pub(super) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Hands in a call whose answer is on its way. Never waits.
    pub(super) fn submit(&self, job: Job) {
        if let Some(on) = &self.0 {
            on.give_up("queue_full", on.queue.push(job));
        }
    }

    /// Takes nothing more, and keeps what was compared. What there is no time for is counted.
    pub async fn close(&self) {
        let Some(on) = &self.0 else { return };
        on.queue.close();
        let _ = on.closing.send(true);
        let keeper = on.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut keeper) = keeper else { return };
        if tokio::time::timeout(LAST, &mut keeper).await.is_ok() {
            return;
        }
        on.give_up("stopped", on.queue.abandon());
        if tokio::time::timeout(LAST_COUNTS, keeper).await.is_err() {
            tracing::warn!("not all shadow evaluations could be kept at stop");
        }
    }
}

impl On {
    /// These are not compared.
    fn give_up(&self, reason: &'static str, jobs: Vec<Job>) {
        for job in jobs {
            self.lost.job(&job);
            self.metrics.shadow_dropped(reason, 1);
        }
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        if let Some(on) = &self.0 {
            on.queue.close();
            let _ = on.closing.send(true);
        }
    }
}

fn evaluate(job: Job, under: Under, key: &[u8], results: &mpsc::Sender<ShadowRow>, lost: &Lost, metrics: &Metrics) {
    match catch_unwind(AssertUnwindSafe(|| row(&job, under, key))) {
        Ok(Some(row)) => {
            if results.try_send(row).is_err() {
                lost.job(&job);
                metrics.shadow_dropped("store_behind", 1);
            }
        }
        Ok(None) => {}
        Err(_) => {
            lost.job(&job);
            metrics.shadow_dropped("panicked", 1);
            tracing::error!(decision_id = job.id, tenant = job.call.tenant, "a shadow evaluation panicked");
        }
    }
}

/// Whom a call is counted for.
fn subject_name(subject: &EntityRef) -> String {
    match subject.type_.as_str() {
        "agent" if !subject.id.is_empty() => subject.id.clone(),
        type_ => format!("{type_}:{}", subject.id),
    }
}

/// Whether only the candidate could not evaluate the call. A policy of the platform that erred on both sides is not the candidate's.
fn only_candidate_erred(stable: &Decision, candidate: &Decision) -> bool {
    if candidate.weighed().1 != NOT_EVALUATED || stable.weighed().1 == NOT_EVALUATED {
        return false;
    }
    let of_both = |policy: &str| policy.starts_with("platform/") && stable.errors.iter().any(|e| e.policy == policy);
    candidate.errors.is_empty() || candidate.errors.iter().any(|e| !of_both(&e.policy))
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
    let agent = subject_name(&job.request.subject);
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
        erred: only_candidate_erred(stable, candidate),
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

#[cfg(test)]
#[path = "shadow_tests.rs"]
mod unit;
