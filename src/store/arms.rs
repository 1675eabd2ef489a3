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
    /// Whether the candidate could not evaluate what the package in force could.
    pub erred: bool,
    /// When the call was decided.
    pub time: Timestamp,
}

/// Calls that were to be compared and were not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowDropped {
    /// Namespace.
    pub tenant: String,
    /// Its UID.
    pub tenant_uid: String,
    /// Number of the revision under way.
    pub revision: i64,
    /// How many.
    pub calls: u64,
    /// The newest of them.
    pub time: Timestamp,
}

/// What is kept at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShadowBatch {
    /// Unique: what is handed in again under the same id counts once.
    pub id: String,
    /// Calls that were compared.
    pub rows: Vec<ShadowRow>,
    /// Calls that were not.
    pub dropped: Vec<ShadowDropped>,
}

/// What a rollout is judged by. What is read is bounded, however much there is.
pub trait Arms: Send + Sync {
    /// What the records of exactly this namespace UID and revision say from `rates_since` on, and their shadow evaluations since the
    /// revision began, by whatever clock. Of each arm the newest records count, at most `NEWEST` or `enough`.
    fn window<'a>(
        &'a self,
        tenant_uid: &'a str,
        revision: i64,
        rates_since: Timestamp,
        enough: u64,
    ) -> StoreFuture<'a, Window>;
    /// Decisions of both arms and compared calls since a stage began, by agent, and nothing else. Counting stops at what is enough, as
    /// above. How many calls were compared is kept by the second or so in which they were.
    fn stage<'a>(
        &'a self,
        tenant_uid: &'a str,
        revision: i64,
        since: Timestamp,
        enough: u64,
    ) -> StoreFuture<'a, Window>;
    /// Keeps shadow evaluations in one transaction: differences as they are, equal ones as counts. A batch that may have been kept may be
    /// handed in again.
    fn save_shadows<'a>(&'a self, batch: &'a ShadowBatch) -> StoreFuture<'a, ()>;
}

/// Records of an arm, and rows of counts, that are read at most where less is enough.
const NEWEST: u64 = 20_000;
/// Agents of an arm, or of the shadow, that are told apart: those with the most calls. The others are one.
pub(super) const AGENTS: usize = 256;
/// What those others are called. No agent and no `type:id` is.
pub(super) const OTHERS: &str = "(others)";
/// Length of a record that is looked into for the policies that erred, bytes.
pub(super) const READABLE: i64 = 64 * 1024;

/// Columns of the sums, as `Counted::drift` takes them.
pub(super) const SUMS: [&str; 9] =
    ["compared", "critical", "high", "medium", "low", "high_restrictions", "expansions", "restrictions", "errors"];

/// Rows that are read for `enough`.
pub(super) fn newest(enough: u64) -> i64 {
    i64::try_from(enough.max(NEWEST)).unwrap_or(i64::MAX)
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

/// What is counted of an agent in a batch.
#[derive(Clone, Copy)]
pub(super) struct Count {
    pub compared: i64,
    pub errors: i64,
    pub dropped: i64,
    pub newest: i64,
}

/// What a batch counts, by tenant, its UID, revision and agent; calls that were not compared have none.
pub(super) fn counts(batch: &ShadowBatch) -> BTreeMap<(&str, &str, i64, &str), Count> {
    let mut counts = BTreeMap::new();
    let none = || Count { compared: 0, errors: 0, dropped: 0, newest: i64::MIN };
    for row in &batch.rows {
        let of = (row.tenant.as_str(), row.tenant_uid.as_str(), row.revision, row.agent.as_str());
        let count: &mut Count = counts.entry(of).or_insert_with(none);
        count.compared += 1;
        count.errors += i64::from(row.erred);
        count.newest = row.time.as_microsecond().max(count.newest);
    }
    for d in &batch.dropped {
        let count = counts.entry((d.tenant.as_str(), d.tenant_uid.as_str(), d.revision, "")).or_insert_with(none);
        count.dropped = count.dropped.saturating_add(i64::try_from(d.calls).unwrap_or(i64::MAX));
        count.newest = d.time.as_microsecond().max(count.newest);
    }
    counts
}

/// Policies that erred, as the record's body names them.
fn erred(body: Option<&str>) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Erred {
        policy: String,
    }
    #[derive(serde::Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Vec<Erred>,
    }
    let body: Option<Body> = body.and_then(|b| serde_json::from_str(b).ok());
    body.map_or_else(Vec::new, |b| b.errors.into_iter().map(|e| e.policy).collect())
}

/// Puts together what a database counted.
#[derive(Default)]
pub(super) struct Counted {
    window: Window,
}

impl Counted {
    /// Decisions of a subject on an arm: all, denied (errors included), errors, and the microseconds that they took; and the newest.
    pub fn decisions(&mut self, arm: Arm, subject: String, counts: [i64; 4], newest: i64) -> Result<(), StoreError> {
        let [decisions, denied, errors, latency] = counts;
        let counts = AgentCounts {
            agent: subject,
            decisions: unsigned(decisions)?,
            denied: unsigned(denied)?,
            errors: unsigned(errors)?,
            latency_micros: unsigned(latency)?,
            ..AgentCounts::default()
        };
        let newest = Timestamp::from_microsecond(newest)
            .map_err(|e| StoreError::Corrupt { what: "time of a record", why: e.to_string() })?;
        self.window.newest = self.window.newest.max(Some(newest));
        self.of(arm).push(counts);
        Ok(())
    }

    fn of(&mut self, arm: Arm) -> &mut Vec<AgentCounts> {
        if arm == Arm::Canary { &mut self.window.canary } else { &mut self.window.stable }
    }

    /// All of an arm were told: of very many agents those with the fewest decisions are one.
    pub fn arm_ended(&mut self, arm: Arm) {
        let all = self.of(arm);
        if all.len() > AGENTS {
            all.sort_by(|a, b| b.decisions.cmp(&a.decisions).then_with(|| a.agent.cmp(&b.agent)));
            let mut others = AgentCounts { agent: OTHERS.into(), ..AgentCounts::default() };
            for a in all.drain(AGENTS..) {
                others.decisions += a.decisions;
                others.denied += a.denied;
                others.errors += a.errors;
                others.latency_micros = others.latency_micros.saturating_add(a.latency_micros);
            }
            all.push(others);
        }
        all.sort_by(|a, b| a.agent.cmp(&b.agent));
    }

    /// Arms and agents of which a decision that was denied by an error should be named.
    pub fn erring(&self) -> Vec<(Arm, String)> {
        let of = |arm, all: &[AgentCounts]| {
            let erring = all.iter().filter(|a| a.errors > 0 && a.agent != OTHERS).take(ERROR_EXAMPLES);
            erring.map(|a| (arm, a.agent.clone())).collect::<Vec<_>>()
        };
        let mut all = of(Arm::Stable, &self.window.stable);
        all.extend(of(Arm::Canary, &self.window.canary));
        all
    }

    /// Names such a decision, and the policies that erred as its record has them.
    pub fn error(&mut self, arm: Arm, subject: &str, decision: String, body: Option<&str>) {
        if let Some(counts) = self.of(arm).iter_mut().find(|a| a.agent == subject) {
            counts.error_example = Some(decision);
            counts.error_policies = erred(body);
        }
    }

    /// Calls of an agent that were evaluated under both.
    pub fn compared(&mut self, agent: String, calls: i64) -> Result<(), StoreError> {
        self.window.shadow.push(AgentDrift { agent, compared: unsigned(calls)?, ..AgentDrift::default() });
        Ok(())
    }

    /// Sums of an agent, the most compared first; an empty name: of all together, which comes last.
    pub fn drift(&mut self, agent: String, sums: [i64; 9], dropped: i64) -> Result<(), StoreError> {
        // What the sums keep is never negative but for what somebody deleted by hand.
        let [compared, critical, high, medium, low, high_restrictions, expansions, restrictions, errors] =
            sums.map(|n| u64::try_from(n).unwrap_or(0));
        let of = AgentDrift {
            agent,
            compared,
            critical,
            high,
            medium,
            low,
            high_restrictions,
            expansions,
            restrictions,
            errors,
        };
        if !of.agent.is_empty() {
            self.window.shadow.push(of);
            return Ok(());
        }
        self.window.dropped = unsigned(dropped.max(0))?;
        let rest =
            |of: fn(&AgentDrift) -> u64, all: u64| all.saturating_sub(self.window.shadow.iter().map(of).sum::<u64>());
        let others = AgentDrift {
            agent: OTHERS.into(),
            compared: rest(|a| a.compared, of.compared),
            critical: rest(|a| a.critical, of.critical),
            high: rest(|a| a.high, of.high),
            medium: rest(|a| a.medium, of.medium),
            low: rest(|a| a.low, of.low),
            high_restrictions: rest(|a| a.high_restrictions, of.high_restrictions),
            expansions: rest(|a| a.expansions, of.expansions),
            restrictions: rest(|a| a.restrictions, of.restrictions),
            errors: rest(|a| a.errors, of.errors),
        };
        if others != (AgentDrift { agent: OTHERS.into(), ..AgentDrift::default() }) {
            self.window.shadow.push(others);
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
    pub fn window(mut self) -> Window {
        self.window.shadow.sort_by(|a, b| a.agent.cmp(&b.agent));
        self.window
    }
}
