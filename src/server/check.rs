//! One question on its way through the server: session, gates, metrics, journal, answer.
//!
//! Must never let an allow leave before its record is committed: whatever goes wrong with the journal turns it into a deny.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use uuid::Uuid;

use super::AppState;
use super::caller::{Call, Refusal};
use super::error::HttpError;
use super::lanes::{LIGHT, LIGHT_COST};
use super::shadow::Job;
use super::wire::{Answer, weight};
use crate::gate::{
    self, Arm, CheckInput, CheckRequest, Checked, MAX_PATTERN_COST, Outcome, SessionState, Snapshot, TOO_COSTLY, Unit,
};
use crate::lifecycle::session::Owner;
use crate::store::{Committed, StoreError, StoreFuture};

/// A decision that may still wait for its record.
pub struct Pending {
    answer: Answer,
    outcome: Outcome,
    /// What it would be if it were enforced; empty but for what is observed.
    would_be: &'static str,
    status: u16,
    took: Duration,
    /// The commit that an allow waits for.
    commit: Option<Result<StoreFuture<'static, Committed>, StoreError>>,
    /// What it counts for, while a rollout runs.
    rollout: Option<Box<Counted>>,
}

/// What a decision counts for in a rollout.
struct Counted {
    tenant: String,
    arm: Arm,
    /// To be compared with the other arm, once it is answered.
    job: Option<Job>,
}

/// What the gates were given, and what they said.
struct Ran {
    checked: Checked,
    snapshot: Arc<Snapshot>,
    session: SessionState,
    now: jiff::Timestamp,
    /// Time in the gates.
    gates: Duration,
}

/// Runs the gates and queues the record.
pub async fn check(
    state: &AppState,
    call: &Arc<Call>,
    request: CheckRequest,
    request_id: Option<&str>,
) -> Result<Pending, HttpError> {
    if let Some(session) = request.session.as_deref() {
        state.sessions.find(state.store.as_ref(), session, state.clock.now()).await;
    }
    let id = Uuid::now_v7().to_string();
    // An unknown tenant costs nothing: the gates end before they look at the arguments.
    let heavy = weight(&request) > LIGHT && call.snapshot.tenants.contains_key(&call.tenant);
    let started = state.clock.instant();
    // Many patterns make a short argument costly, too: what the request's own thread may not do is begun again in the lane.
    let light = (!heavy).then(|| run(state, call, &request, &id, request_id, LIGHT_COST));
    // What was begun is part of what it took; what the call then waits for its turn is not.
    let begun = light.as_ref().and_then(|done| done.as_ref().ok()).map_or(Duration::ZERO, |ran| ran.gates);
    let light = light.filter(|done| !done.as_ref().is_ok_and(|ran| ran.checked.decision.code == TOO_COSTLY));
    let (ran, request, begun) = if let Some(done) = light {
        (done, request, Duration::ZERO)
    } else {
        let (state2, call2, request_id) = (state.clone(), call.clone(), request_id.map(str::to_owned));
        let work = move || (run(&state2, &call2, &request, &id, request_id.as_deref(), MAX_PATTERN_COST), request);
        let (ran, request) = state.lanes.run(call.lane(), work).await?;
        (ran, request, begun)
    };
    let Ran { checked, snapshot, session, now, gates } = ran?;
    let took = state.clock.instant().saturating_duration_since(started);
    let rollout = checked.record.revision.and_then(|_| {
        let (arm, _) = snapshot.tenants.get(&call.tenant)?.decides(Unit::of(&request, session));
        let job = state.shadow.is_on().then(|| Job::of(snapshot, call, request, session, now, &checked)).flatten();
        Some(Box::new(Counted { tenant: call.tenant.clone(), arm, job }))
    });
    Ok(Pending { rollout, ..queue(state, call, checked, begun + gates, took) })
}

fn run(
    state: &AppState,
    call: &Call,
    request: &CheckRequest,
    id: &str,
    request_id: Option<&str>,
    budget: u64,
) -> Result<Ran, HttpError> {
    let snapshot = snapshot(state, call)?;
    let session = session(state, &snapshot, &call.tenant, request);
    let now = state.clock.now();
    let input = input(state, &snapshot, call, &call.tenant, request, session, now, id, request_id);
    let input = CheckInput { pattern_budget: budget, ..input };
    let started = state.clock.instant();
    // The gates don't panic; if they did, the caller must hear a refusal and not a cut connection.
    let checked = catch_unwind(AssertUnwindSafe(|| (state.gate)(&input))).map_err(|_| {
        tracing::error!(decision_id = id, tenant = call.tenant, "the gates panicked");
        HttpError::internal()
    })?;
    Ok(Ran { checked, snapshot, session, now, gates: since(state, started) })
}

/// The set to answer from. Taken only when the answer is made: a body that trickles in, a place in the lane or a long batch must not
/// outlive a stop, an ended session or a feed that has gone silent.
pub fn snapshot(state: &AppState, call: &Call) -> Result<Arc<Snapshot>, HttpError> {
    let snapshot = state.current()?;
    if call.holds_in(&snapshot) {
        return Ok(snapshot);
    }
    let reason = "What Remit knows of the caller's identity changed while the request was under way: ask again.";
    Err(HttpError::unavailable("identity_changed", reason))
}

#[allow(clippy::too_many_arguments)]
fn input<'a>(
    state: &'a AppState,
    snapshot: &'a Snapshot,
    call: &'a Call,
    tenant: &'a str,
    request: &'a CheckRequest,
    session: SessionState,
    now: jiff::Timestamp,
    id: &'a str,
    request_id: Option<&'a str>,
) -> CheckInput<'a> {
    CheckInput {
        snapshot,
        tenant,
        caller: &call.caller,
        request,
        session,
        now,
        id,
        request_id,
        redaction_key: &state.redaction_key,
        pattern_budget: MAX_PATTERN_COST,
    }
}

/// What the session table says of the session that a question names.
pub fn session(state: &AppState, snapshot: &Snapshot, tenant: &str, request: &CheckRequest) -> SessionState {
    let Some(id) = request.session.as_deref() else { return SessionState::NotNamed };
    let Some(tenant) = snapshot.tenants.get(tenant) else { return SessionState::Unknown };
    let agent = tenant.agents.get(&request.subject.id).filter(|_| request.subject.type_ == "agent");
    let Some(agent) = agent else { return SessionState::Unknown };
    let owner = Owner {
        tenant: tenant.name.clone(),
        tenant_uid: tenant.uid.clone(),
        agent: agent.facts.name.clone(),
        agent_uid: agent.facts.uid.clone(),
    };
    state.sessions.state(id, &owner, state.clock.now(), tenant.profile.session_timeout_seconds)
}

/// Keeps the record of a caller that may not ask.
pub fn refuse(
    state: &AppState,
    call: &Call,
    refusal: &Refusal,
    request: &CheckRequest,
    request_id: Option<&str>,
) -> HttpError {
    let id = Uuid::now_v7().to_string();
    let now = state.clock.now();
    let kept_by = &refusal.kept_by;
    let input = input(state, &call.snapshot, call, kept_by, request, SessionState::NotNamed, now, &id, request_id);
    let checked = gate::refused(&input, 403, refusal.code, refusal.reason.clone());
    let pending = queue(state, call, checked, Duration::ZERO, Duration::ZERO);
    HttpError { decision_id: Some(pending.answer.context.decision_id), ..refusal.error() }
}

/// `gates`: time in the gates, which the record keeps; `took`: with what the call waited for its turn.
fn queue(state: &AppState, call: &Call, checked: Checked, gates: Duration, took: Duration) -> Pending {
    let Checked { decision, mut record } = checked;
    record.latency_micros = u64::try_from(gates.as_micros()).unwrap_or(u64::MAX);
    let answer = Answer::new(&decision, &record, call.caller.kind);
    let (outcome, status) = (decision.outcome, decision.status);
    let would_be = decision.would_be.as_ref().map_or("", |w| w.outcome.as_str());
    if let Some(would_be) = &decision.would_be {
        tracing::info!(target: "remit::decision", decision_id = record.id, tenant = record.tenant, agent = record.agent,
            outcome = outcome.as_str(), code = decision.code, would_be = would_be.outcome.as_str(), would_be_code = would_be.code,
            latency_micros = record.latency_micros, "observed");
    } else if outcome == Outcome::Allow {
        tracing::debug!(target: "remit::decision", decision_id = record.id, tenant = record.tenant, agent = record.agent,
            outcome = outcome.as_str(), code = decision.code, latency_micros = record.latency_micros, "decided");
    } else {
        tracing::info!(target: "remit::decision", decision_id = record.id, tenant = record.tenant, agent = record.agent,
            outcome = outcome.as_str(), code = decision.code, latency_micros = record.latency_micros, "decided");
    }
    let queued = state.journal.append(record);
    let commit = if outcome == Outcome::Allow {
        Some(queued)
    } else {
        // Denies and stops don't wait: nothing happens because of them.
        if let Err(error) = queued {
            state.metrics.record_lost();
            tracing::error!(%error, decision_id = answer.context.decision_id, "the record of a deny is lost");
        }
        None
    };
    Pending { answer, outcome, would_be, status, took, commit, rollout: None }
}

impl Pending {
    /// Whether this is an allow, if its record can be committed.
    pub fn allows(&self) -> bool {
        self.outcome == Outcome::Allow
    }

    /// Waits for the record of an allow; then this is the answer. `Err` for a question that was itself wrong.
    pub async fn answer(self, state: &AppState) -> Result<Answer, HttpError> {
        let Self { answer, outcome, would_be, status, took, commit, rollout } = self;
        if let Some(queued) = commit {
            let waited = state.clock.instant();
            if let Err(why) = committed(queued, state.settings.commit_timeout).await {
                tracing::error!(
                    decision_id = answer.context.decision_id,
                    why,
                    "an allow was withheld: its record is not committed"
                );
                state.metrics.decided("deny", "audit_unavailable", "", took);
                let reason = "The record of this decision can't be kept now, so nothing is allowed.";
                return Ok(Answer::denied("audit_unavailable", reason, answer.context.decision_id));
            }
            state.metrics.committed(since(state, waited));
        }
        state.metrics.decided(outcome.as_str(), answer.context.code, would_be, took);
        if let Some(counted) = rollout {
            state.metrics.decided_by_arm(&counted.tenant, counted.arm, outcome.as_str());
            if let Some(job) = counted.job {
                state.shadow.submit(job);
            }
        }
        if outcome != Outcome::Refused {
            return Ok(answer);
        }
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let context = answer.context;
        let mut error = HttpError::new(status, context.code, context.reason);
        error.decision_id = Some(context.decision_id);
        // Gates name a wrong field at the start of their reason.
        error.field = match error.message.split_once(": ") {
            Some((field, _)) if status == StatusCode::BAD_REQUEST && !field.contains(' ') => Some(field.to_owned()),
            _ => None,
        };
        error.retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        Err(error)
    }
}

fn since(state: &AppState, then: Instant) -> Duration {
    state.clock.instant().saturating_duration_since(then)
}

async fn committed(
    queued: Result<StoreFuture<'static, Committed>, StoreError>,
    limit: Duration,
) -> Result<Committed, String> {
    match tokio::time::timeout(limit, queued.map_err(|e| e.to_string())?).await {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(_) => Err(format!("no commit within {} ms", limit.as_millis())),
    }
}
