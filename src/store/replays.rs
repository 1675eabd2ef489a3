//! Runs of replays, and the records that they read: page by page, oldest first, so that memory does not grow with their number.
//!
//! A run belongs to its namespace's UID and is found by it only. Its id is issued by Remit; a run that is there is never overwritten, and
//! what has finished stays as it is.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{StoreError, StoreFuture};
use crate::api::{Invariant, ReplaySelection, ReplayState};
use crate::gate::DecisionRecord;

/// Most records of one page.
pub const MAX_REPLAY_PAGE: u32 = 10_000;

/// Runs of one namespace that may wait or be under way: those of its rollouts, and apart from them those that people ask for.
pub const MAX_OPEN_RUNS: i64 = 16;
/// What keys of rollouts' runs begin with.
pub const OF_ROLLOUT: &str = "rollout:";
/// Why a run of a rollout ended that asks for something else by now.
pub const SUPERSEDED: &str = "superseded: the rollout asks for another replay now";

/// A record's place in the order of a replay: time, then id. Ids are issued by Remit, in the order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// When it was decided, microseconds since 1970.
    pub micros: i64,
    /// Decision id.
    pub id: String,
}

impl Place {
    /// Of a record.
    pub fn of(record: &DecisionRecord) -> Self {
        Self { micros: record.time.as_microsecond(), id: record.id.clone() }
    }
}

/// A record as a replay takes it: not parsed yet, and with the hash that stands for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayRow {
    /// Where it stands.
    pub place: Place,
    /// Hash of its writer's chain up to and including it, hex.
    pub hash: String,
    /// The record, JSON.
    pub body: String,
}

/// How many records a selection takes, and which its limit leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// How many, its limit included.
    pub total: u64,
    /// Of whose records some are left out, by agent. Who writes much has no more of them replayed than who writes little.
    pub cuts: Vec<Cut>,
    /// The newest record that its limit leaves out, where there are too many agents for a share of each.
    pub after: Option<Place>,
}

/// What a limit leaves out of an agent's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    pub agent: String,
    /// The newest of them: what comes after it is taken.
    pub after: Place,
    /// How many.
    pub left_out: u64,
}

/// More agents than these have no share each.
const MAX_SHARED: usize = 10_000;

/// How many of its newest records each agent has in a selection with a limit: the same for all that have as many, and one more for the
/// first in the order of their names as far as that goes. None where there are too many agents.
pub(super) fn shares(mut counts: Vec<(String, u64)>, limit: u64) -> Option<Vec<(String, u64, u64)>> {
    if counts.len() > MAX_SHARED {
        return None;
    }
    // From who has least on: what one does not need is the others'.
    counts.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
    let (mut left, mut agents) = (limit, counts.len() as u64);
    let mut each = u64::MAX;
    for (_, count) in &counts {
        if *count > left / agents {
            each = left / agents;
            break;
        }
        left -= count;
        agents -= 1;
    }
    let mut more = if each == u64::MAX { 0 } else { left % agents };
    counts.sort();
    let share = |(agent, count): (String, u64)| {
        let further = count > each && more > 0;
        more -= u64::from(further);
        let share = count.min(each.saturating_add(u64::from(further)));
        (agent, share, count - share)
    };
    Some(counts.into_iter().map(share).collect())
}

/// What a run was asked for. It never changes: all of it is fixed when the run is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunSpec {
    /// Digest of the package that is compared with.
    pub baseline: String,
    /// Digest of the package that is tried.
    pub candidate: String,
    /// Digests of the platform's packages, base first, on both sides.
    pub platform: Vec<String>,
    /// Which decisions; `until` is set.
    pub selection: ReplaySelection,
    /// What must hold of the candidate.
    #[serde(default)]
    pub invariants: Vec<Invariant>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayRun {
    /// Issued by Remit, a UUIDv7.
    pub id: String,
    /// Namespace.
    pub tenant: String,
    /// Its UID.
    pub tenant_uid: String,
    /// Who asked for what, so that it is found again: `rollout:…`, `object:…`, `http:…`.
    pub key: String,
    /// What was asked for.
    pub spec: RunSpec,
    /// Where it stands.
    pub state: ReplayState,
    /// Records that were looked at.
    pub done: u64,
    /// Records that were selected; 0 until it has begun.
    pub total: u64,
    /// Where to go on, JSON; only while it is under way.
    pub checkpoint: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// Its report, JSON; only once it is completed.
    pub report: Option<String>,
    /// Fingerprint of what went in; only once it is completed.
    pub input_fingerprint: Option<String>,
    /// Fingerprint of what came out; only once it is completed.
    pub result_fingerprint: Option<String>,
    /// When it was asked for.
    pub created: Timestamp,
    /// When it began.
    pub started: Option<Timestamp>,
    /// When it finished.
    pub finished: Option<Timestamp>,
}

impl ReplayRun {
    /// A run that waits for its turn.
    pub fn queued(id: String, tenant: &str, tenant_uid: &str, key: String, spec: RunSpec, now: Timestamp) -> Self {
        Self {
            id,
            tenant: tenant.to_owned(),
            tenant_uid: tenant_uid.to_owned(),
            key,
            spec,
            state: ReplayState::Queued,
            done: 0,
            total: 0,
            checkpoint: None,
            error: None,
            report: None,
            input_fingerprint: None,
            result_fingerprint: None,
            created: now,
            started: None,
            finished: None,
        }
    }
}

/// What became of a run. Says nothing of one that has finished: that stays as it is.
#[derive(Clone, Debug)]
pub enum RunStep {
    /// It is under way.
    Begun { total: u64, at: Timestamp },
    /// So far it has come. Another leader's that has come farther stays.
    Progress { done: u64, checkpoint: String },
    /// It has a result.
    Completed { done: u64, report: String, input_fingerprint: String, result_fingerprint: String, at: Timestamp },
    /// It can't be carried out.
    Failed { error: String, at: Timestamp },
}

/// Runs, and what they read.
pub trait Replays: Send + Sync {
    /// Keeps a new run; false where [`MAX_OPEN_RUNS`] of its namespace and kind are open, however many ask at once. `Invalid` where a run
    /// of this id is there.
    fn add_run<'a>(&'a self, run: &'a ReplayRun) -> StoreFuture<'a, bool>;
    /// Ends as failed the open runs of a namespace's rollouts, but those with this key; says how many.
    fn supersede_runs<'a>(&'a self, tenant_uid: &'a str, key: &'a str, at: Timestamp) -> StoreFuture<'a, u64>;
    /// One run of a namespace.
    fn run<'a>(&'a self, tenant_uid: &'a str, id: &'a str) -> StoreFuture<'a, Option<ReplayRun>>;
    /// The newest run of a namespace with this key; of those in this state only, where one is named.
    fn newest_run<'a>(
        &'a self,
        tenant_uid: &'a str,
        key: &'a str,
        state: Option<ReplayState>,
    ) -> StoreFuture<'a, Option<ReplayRun>>;
    /// Runs that have not finished, at most 1000: the oldest of each namespace, then the second of each, and so on, so that nobody's are
    /// hidden by another's.
    fn open_runs(&self) -> StoreFuture<'_, Vec<ReplayRun>>;
    /// Moves a run on; false where it has finished, is not there, or has come farther.
    fn step_run<'a>(&'a self, id: &'a str, step: &'a RunStep) -> StoreFuture<'a, bool>;
    /// Forgets runs that finished before this instant; says how many.
    fn forget_runs(&self, before: Timestamp) -> StoreFuture<'_, u64>;
    /// How many records of a namespace a selection takes.
    fn selected<'a>(&'a self, tenant: &'a str, selection: &'a ReplaySelection) -> StoreFuture<'a, Selected>;
    /// The next records of a selection after a place, oldest first, at most `limit` (1 to [`MAX_REPLAY_PAGE`]), and fewer
    /// where they are large, but for what these cuts leave out; none only at the end. The selection's limit counts in `selected` only.
    fn replay_page<'a>(
        &'a self,
        tenant: &'a str,
        selection: &'a ReplaySelection,
        cuts: &'a [Cut],
        after: Option<&'a Place>,
        limit: u32,
    ) -> StoreFuture<'a, Vec<ReplayRow>>;
}

/// Size of a page, if it may be asked for.
pub(super) fn page_limit(limit: u32) -> Result<i64, StoreError> {
    if (1..=MAX_REPLAY_PAGE).contains(&limit) {
        return Ok(i64::from(limit));
    }
    Err(StoreError::Invalid { field: "limit", why: format!("{limit} is not within 1 to {MAX_REPLAY_PAGE}") })
}

/// A delegator as a selection names it: as it stands, of a user, or of an agent.
pub(super) fn delegator_names(names: &[String]) -> Vec<String> {
    names.iter().flat_map(|n| [n.clone(), format!("user:{n}"), format!("agent:{n}")]).collect()
}

pub(super) fn state(text: &str) -> Result<ReplayState, StoreError> {
    let known = [ReplayState::Queued, ReplayState::Running, ReplayState::Completed, ReplayState::Failed];
    let state = known.into_iter().find(|s| s.as_str() == text);
    state.ok_or_else(|| StoreError::Corrupt { what: "state of a replay", why: format!("`{}`", text.escape_debug()) })
}

pub(super) fn spec(text: &str) -> Result<RunSpec, StoreError> {
    serde_json::from_str(text).map_err(|e| StoreError::Corrupt { what: "replay", why: e.to_string() })
}

pub(super) fn spec_text(spec: &RunSpec) -> Result<String, StoreError> {
    serde_json::to_string(spec).map_err(|e| StoreError::Corrupt { what: "replay", why: e.to_string() })
}

pub(super) fn taken(id: &str) -> StoreError {
    StoreError::Invalid { field: "id", why: format!("a replay run {} is there already", id.escape_debug()) }
}
