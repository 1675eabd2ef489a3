//! What the two arms of a rollout did: counted from the records, and from evaluations under the other arm.
//!
//! Only what Remit wrote itself is counted, and only of exactly one namespace UID and one revision.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{StoreError, StoreFuture};
use crate::gate::Arm;
use crate::lifecycle::drift::{Cause, Severity};
use crate::lifecycle::evidence::{AgentCounts, AgentDrift, DriftExample, Window};

/// A call that was evaluated under the other arm too. No argument values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowRow {
    /// The decision.
    pub decision: String,
    /// Namespace.
    pub tenant: String,
    /// Its UID.
    pub tenant_uid: String,
    /// Number of the revision under way.
    pub revision: i64,
    /// Name of the agent, or `type:id` of another subject.
    pub agent: String,
    /// The arm that answered.
    pub answered: Arm,
    /// How bad the difference is, from stable to candidate; none: they are the same, and the row is only counted.
    pub severity: Severity,
    /// Of what kind the difference is; None where there is none.
    pub cause: Option<Cause>,
    /// A sentence that names agent, tool and the policies of both sides.
    pub sentence: String,
    /// Determining policies and open asks of the package in force.
    pub stable_policies: Vec<String>,
    /// Determining policies and open asks of the candidate.
    pub candidate_policies: Vec<String>,
    /// When the call was decided.
    pub time: Timestamp,
}

/// What a rollout is judged by.
pub trait Arms: Send + Sync {
    /// What the records of exactly this namespace UID and revision say from `rates_since` on, and their shadow evaluations from
    /// `drift_since` on. How many calls were compared is kept by the second or so in which they were.
    fn window<'a>(
        &'a self,
        tenant_uid: &'a str,
        revision: i64,
        rates_since: Timestamp,
        drift_since: Timestamp,
    ) -> StoreFuture<'a, Window>;
    /// Keeps shadow evaluations in one transaction: differences as they are, equal ones as counts. Each call is handed in once; what
    /// could not be kept is not handed in again, so that nothing counts twice.
    fn save_shadows<'a>(&'a self, rows: &'a [ShadowRow]) -> StoreFuture<'a, ()>;
}

/// Differences that a window names.
pub(super) const WORST: i64 = 10;
/// Decisions denied by an error that a window names: one an agent, of so many agents of each arm.
const ERROR_EXAMPLES: usize = 20;

/// Severity as a number that sorts; none is 0.
pub(super) fn rank(severity: Severity) -> i64 {
    match severity {
        Severity::None => 0,
        Severity::Low => 1,
        Severity::Medium => 2,
        Severity::High => 3,
        Severity::Critical => 4,
    }
}

fn severity(rank: i64) -> Result<Severity, StoreError> {
    [Severity::Low, Severity::Medium, Severity::High, Severity::Critical]
        .into_iter()
        .find(|s| self::rank(*s) == rank)
        .ok_or_else(|| StoreError::Corrupt { what: "severity of a shadow evaluation", why: rank.to_string() })
}

fn cause(text: &str) -> Result<Cause, StoreError> {
    use Cause::{AccessExpanded, AccessRestricted, ApprovalAdded, ApprovalRemoved, ApprovalWeakened, RuleChanged};
    [AccessRestricted, AccessExpanded, ApprovalAdded, ApprovalRemoved, ApprovalWeakened, RuleChanged]
        .into_iter()
        .find(|c| c.as_str() == text)
        .ok_or_else(|| StoreError::Corrupt { what: "cause of a shadow evaluation", why: text.to_owned() })
}

fn unsigned(n: i64) -> Result<u64, StoreError> {
    u64::try_from(n).map_err(|_| StoreError::Corrupt { what: "count", why: n.to_string() })
}

/// How many calls of each agent are in these rows, with the newest of them.
pub(super) fn compared(rows: &[ShadowRow]) -> BTreeMap<(&str, &str, i64, &str), (i64, i64)> {
    let mut counts = BTreeMap::new();
    for row in rows {
        let of = (row.tenant.as_str(), row.tenant_uid.as_str(), row.revision, row.agent.as_str());
        let (n, newest) = counts.entry(of).or_insert((0, i64::MIN));
        *n += 1;
        *newest = row.time.as_microsecond().max(*newest);
    }
    counts
}

/// Puts together what a database counted.
#[derive(Default)]
pub(super) struct Counted {
    window: Window,
    shadow: BTreeMap<String, AgentDrift>,
}

impl Counted {
    /// Decisions of a subject on an arm: all, denied (errors included), errors, and the newest.
    pub fn decisions(&mut self, arm: &str, subject: String, counts: [i64; 3], newest: i64) -> Result<(), StoreError> {
        let [decisions, denied, errors] = counts;
        let counts = AgentCounts {
            agent: subject,
            decisions: unsigned(decisions)?,
            denied: unsigned(denied)?,
            errors: unsigned(errors)?,
            ..AgentCounts::default()
        };
        let newest = Timestamp::from_microsecond(newest)
            .map_err(|e| StoreError::Corrupt { what: "time of a record", why: e.to_string() })?;
        self.window.newest = self.window.newest.max(Some(newest));
        self.of(arm).push(counts);
        Ok(())
    }

    fn of(&mut self, arm: &str) -> &mut Vec<AgentCounts> {
        if arm == Arm::Canary.as_str() { &mut self.window.canary } else { &mut self.window.stable }
    }

    /// Arms and agents of which a decision that was denied by an error should be named.
    pub fn erring(&self) -> Vec<(Arm, String)> {
        let of = |arm, all: &[AgentCounts]| {
            let erring = all.iter().filter(|a| a.errors > 0).take(ERROR_EXAMPLES);
            erring.map(|a| (arm, a.agent.clone())).collect::<Vec<_>>()
        };
        let mut all = of(Arm::Stable, &self.window.stable);
        all.extend(of(Arm::Canary, &self.window.canary));
        all
    }

    /// Names such a decision.
    pub fn error(&mut self, arm: Arm, subject: &str, decision: Option<String>) {
        if let Some(counts) = self.of(arm.as_str()).iter_mut().find(|a| a.agent == subject) {
            counts.error_example = decision;
        }
    }

    fn agent(&mut self, agent: &str) -> &mut AgentDrift {
        let new = || AgentDrift { agent: agent.to_owned(), ..AgentDrift::default() };
        self.shadow.entry(agent.to_owned()).or_insert_with(new)
    }

    /// Calls of an agent that were evaluated under both.
    pub fn compared(&mut self, agent: &str, calls: i64) -> Result<(), StoreError> {
        self.agent(agent).compared += unsigned(calls)?;
        Ok(())
    }

    /// Differences of an agent.
    pub fn drift(&mut self, agent: &str, rank: i64, cause: &str, calls: i64) -> Result<(), StoreError> {
        let (severity, cause, calls) = (severity(rank)?, self::cause(cause)?, unsigned(calls)?);
        let of = self.agent(agent);
        match severity {
            Severity::None => {}
            Severity::Low => of.low += calls,
            Severity::Medium => of.medium += calls,
            Severity::High => of.high += calls,
            Severity::Critical => of.critical += calls,
        }
        if cause.expands() {
            of.expansions += calls;
        }
        if cause.restricts() {
            of.restrictions += calls;
            of.high_restrictions += if severity == Severity::High { calls } else { 0 };
        }
        Ok(())
    }

    /// One of the worst differences, the worst first.
    pub fn example(
        &mut self,
        decision: String,
        rank: i64,
        cause: &str,
        sentence: String,
        policies: &str,
    ) -> Result<(), StoreError> {
        let corrupt = |e: serde_json::Error| StoreError::Corrupt { what: "policies", why: e.to_string() };
        self.window.worst.push(DriftExample {
            decision,
            severity: severity(rank)?,
            cause: self::cause(cause)?,
            sentence,
            candidate_policies: serde_json::from_str(policies).map_err(corrupt)?,
        });
        Ok(())
    }

    /// What was counted.
    pub fn window(self) -> Window {
        Window { shadow: self.shadow.into_values().collect(), ..self.window }
    }
}
