//! What the budgets say: of replay and proof before stage one, of the records of both arms from then on.
//!
//! Nothing that is counted comes from a caller. One agent moves at most one agent's share of what anybody can have for the asking: where
//! there are several, nobody's restrictions count more than the next one's. What lets somebody do more can't be had for the asking, and
//! counts whole. What there is too little of is inconclusive, never a pass, and keeps the stage; but whatever is over a budget that counts
//! single differences counts at once.

use super::budgets::{Limits, min_replayed};
use super::rates::{self, capped, replayed_that_count};
use super::words::clip_to;
use crate::api::{BudgetCheck, CheckResult, ProofBudget, RolloutVerdict, TenantRolloutSpec};
use crate::lifecycle::drift::Severity;
use crate::lifecycle::evidence::{AgentDrift, DriftExample, ProofSummary, ProofVerdict, ReplaySummary, Window};

/// Calls of 100 that may go uncompared.
const MAX_DROPPED: u64 = 10;
/// Threshold of what is meant.
pub(super) const ACKNOWLEDGED: &str = "acknowledged in the spec";
/// Longest value and reason of a check.
const MAX_VALUE: usize = 256;
const MAX_REASON: usize = 512;

/// Names of the checks that replay and proof make.
pub(super) const PREFLIGHT: [&str; 7] = [
    "replay",
    "replayCriticalDrift",
    "replayHighExpansions",
    "replayHighRestrictions",
    "replayInvariants",
    "proof",
    "proofInvariants",
];

/// The verdict over checks: the worst of them.
pub(super) fn overall(checks: Vec<BudgetCheck>) -> RolloutVerdict {
    let any = |r| checks.iter().any(|c| c.result == r);
    let result = match () {
        () if any(CheckResult::Fail) => CheckResult::Fail,
        () if checks.is_empty() || any(CheckResult::Inconclusive) => CheckResult::Inconclusive,
        () => CheckResult::Pass,
    };
    RolloutVerdict { result, checks }
}

pub(super) fn check(
    name: &str,
    result: CheckResult,
    value: String,
    threshold: String,
    reason: Option<String>,
) -> BudgetCheck {
    BudgetCheck {
        name: name.into(),
        result,
        value: clip_to(&value, MAX_VALUE),
        threshold: clip_to(&threshold, MAX_VALUE),
        reason: reason.filter(|r| !r.is_empty()).map(|r| clip_to(&r, MAX_REASON)),
    }
}

fn at_most(name: &str, n: u64, limit: u64, reason: Option<String>) -> BudgetCheck {
    let result = if n > limit { CheckResult::Fail } else { CheckResult::Pass };
    check(name, result, n.to_string(), format!("at most {limit}"), reason.filter(|_| n > 0))
}

/// A count of restrictions that may be acknowledged.
fn restrictions(name: &str, n: u64, limit: u64, acknowledged: bool, reason: Option<String>) -> BudgetCheck {
    if acknowledged {
        return check(name, CheckResult::Pass, n.to_string(), ACKNOWLEDGED.into(), None);
    }
    at_most(name, n, limit, reason)
}

/// What replay and proof of a candidate's digest say before stage one, in a cluster and in a pull request alike.
pub fn preflight(
    spec: &TenantRolloutSpec,
    candidate: &str,
    replay: &ReplaySummary,
    proof: &ProofSummary,
) -> Vec<BudgetCheck> {
    let mut checks = of_replay(spec, candidate, replay);
    checks.extend(of_proof(spec, proof));
    checks
}

/// What a replay says; the first check is whether there was enough to replay.
pub(super) fn of_replay(spec: &TenantRolloutSpec, candidate: &str, s: &ReplaySummary) -> Vec<BudgetCheck> {
    let (limits, acknowledged) = (Limits::from(spec), acknowledged(spec, candidate));
    let needed = min_replayed(spec).max(1);
    let counted = replayed_that_count(s, needed);
    let enough = if counted >= needed { CheckResult::Pass } else { CheckResult::Inconclusive };
    let value =
        format!("{} of {} decisions, {} without the facts of their time", s.replayed, s.selected, s.not_replayable);
    let one =
        format!("one agent made {} of them, and counts for half of what is needed", s.shares.unwrap_or_default().most);
    let one = Some(one).filter(|_| enough == CheckResult::Inconclusive && counted < s.replayed);
    let restricted = s.shares.map_or(s.high_restrictions, |shares| shares.high_restrictions.min(s.high_restrictions));
    // The summary counts by severity; what restricts can't be critical.
    let expanding = s.high.saturating_sub(s.high_restrictions);
    vec![
        check("replay", enough, value, format!("at least {needed}"), one),
        at_most(
            "replayCriticalDrift",
            s.critical,
            limits.critical,
            worst(&s.worst, |e| e.severity == Severity::Critical),
        ),
        at_most("replayHighExpansions", expanding, limits.high, worst(&s.worst, high_expansion)),
        restrictions(
            "replayHighRestrictions",
            restricted,
            limits.high,
            acknowledged,
            worst(&s.worst, high_restriction),
        ),
        at_most("replayInvariants", s.invariants_failed.len() as u64, 0, Some(s.invariants_failed.join("; "))),
    ]
}

/// What the proof says.
pub(super) fn of_proof(spec: &TenantRolloutSpec, s: &ProofSummary) -> Vec<BudgetCheck> {
    let budget = Limits::from(spec).proof;
    let unknown = s.alone == ProofVerdict::Unknown || s.with_approval == ProofVerdict::Unknown;
    let expands = s.alone.expands() || s.with_approval.expands();
    let result = match budget {
        ProofBudget::NotRequired => CheckResult::Pass,
        ProofBudget::NoExpansion if expands => CheckResult::Fail,
        _ if unknown => CheckResult::Inconclusive,
        _ => CheckResult::Pass,
    };
    let threshold = match budget {
        ProofBudget::NotRequired => "not required",
        ProofBudget::Required => "must be known",
        ProofBudget::NoExpansion => "nobody may do more",
    };
    let value = format!("{}; with a human {}", s.alone.as_str(), s.with_approval.as_str());
    let reason = s.counter_examples.first().cloned().or_else(|| s.unknown_because.clone());
    // What is refuted comes with a call that breaks it, and whoever declares an invariant wants it kept whatever else is required.
    let kept = s.invariants_unproved.is_empty() || budget == ProofBudget::NotRequired;
    let invariants_are = match () {
        () if !s.invariants_failed.is_empty() => CheckResult::Fail,
        () if kept => CheckResult::Pass,
        () => CheckResult::Inconclusive,
    };
    let invariants = match (s.invariants_failed.len(), s.invariants_unproved.len()) {
        (0, 0) => "all hold".to_owned(),
        (failed, unproved) => format!("{failed} do not hold, {unproved} are not proved"),
    };
    let sentences = s.invariants_failed.iter().chain(&s.invariants_unproved).cloned().collect::<Vec<_>>().join("; ");
    vec![
        check("proof", result, value, threshold.into(), reason),
        check("proofInvariants", invariants_are, invariants, "none fails".into(), Some(sentences)),
    ]
}

/// What the records of both arms say, and whether a stage may be left on it.
pub(super) struct Weighed {
    pub checks: Vec<BudgetCheck>,
    /// The first of them that says too little for the stage to be left.
    pub holds: Option<BudgetCheck>,
}

/// What the records of both arms say. `needed`: calls that must have been compared, and decisions that must have been made.
pub(super) fn of_window(spec: &TenantRolloutSpec, candidate: &str, needed: u64, w: &Window) -> Weighed {
    let (limits, acknowledged) = (Limits::from(spec), acknowledged(spec, candidate));
    let sum = |of: fn(&AgentDrift) -> u64| w.shadow.iter().filter(|a| a.compared > 0).map(of).sum::<u64>();
    let restricted = w.shadow.iter().filter(|a| a.compared > 0).map(|a| a.high_restrictions).collect();
    let compared = Compared { calls: sum(|a| a.compared), needed, off: limits.shadow_percent == 0 };
    // Nobody can make a candidate let others do more: what expands is counted whole. Restrictions can be had for the asking.
    let mut weighed = vec![
        shadow(&compared, w.dropped),
        compared.at_most("criticalDrift", sum(|a| a.critical), limits.critical, || {
            worst(&w.worst, |e| e.severity == Severity::Critical)
        }),
        compared.at_most("highExpansions", sum(|a| a.high.saturating_sub(a.high_restrictions)), limits.high, || {
            worst(&w.worst, high_expansion)
        }),
    ];
    weighed.push(if acknowledged {
        let value = capped(restricted, rates::known(w)).to_string();
        (check("highRestrictions", CheckResult::Pass, value, ACKNOWLEDGED.into(), None), false)
    } else {
        compared.at_most("highRestrictions", capped(restricted, rates::known(w)), limits.high, || {
            worst(&w.worst, high_restriction)
        })
    });
    weighed.push((rates::denial_growth(&limits, acknowledged, w), false));
    weighed.push(rates::errors(&limits, needed, w));
    weighed.push((rates::latency(&limits, w), false));
    let holds = weighed.iter().find(|(_, holds)| *holds).map(|(c, _)| c.clone());
    Weighed { checks: weighed.into_iter().map(|(c, _)| c).collect(), holds }
}

/// How many calls were evaluated under both packages.
struct Compared {
    calls: u64,
    needed: u64,
    /// `shadowPercent` is 0.
    off: bool,
}

impl Compared {
    /// Differences, and whether they keep the stage from being left: one too many is one too many however few were looked at, but none
    /// is good only where enough were.
    fn at_most(&self, name: &str, n: u64, limit: u64, reason: impl Fn() -> Option<String>) -> (BudgetCheck, bool) {
        if n > limit || self.calls >= self.needed.max(1) {
            return (at_most(name, n, limit, reason()), false);
        }
        let value = format!("{n} in {} of {} compared calls", self.calls, self.needed);
        let threshold = format!("at most {limit}");
        (check(name, CheckResult::Inconclusive, value, threshold, self.why()), self.calls < self.needed)
    }

    fn why(&self) -> Option<String> {
        self.off.then(|| "spec.budgets.shadowPercent is 0, so no call is compared with the package in force".to_owned())
    }
}

/// Whether calls that were to be compared were: what was dropped may be what matters.
fn shadow(compared: &Compared, dropped: u64) -> (BudgetCheck, bool) {
    let all = compared.calls.saturating_add(dropped);
    let lost = u128::from(dropped) * 100 > u128::from(all) * u128::from(MAX_DROPPED);
    let (result, reason) = match () {
        () if lost => {
            (CheckResult::Inconclusive, Some("there were too many at once, or they could not be kept".into()))
        }
        () if compared.calls == 0 => (CheckResult::Inconclusive, compared.why()),
        () => (CheckResult::Pass, None),
    };
    let value = format!("{dropped} of {all} calls not compared");
    let holds = lost || compared.calls == 0 && compared.needed > 0;
    (check("shadow", result, value, format!("at most {MAX_DROPPED} %"), reason), holds)
}

/// Whether the stage has seen enough.
pub(super) fn samples(made: u64, needed: u64) -> BudgetCheck {
    let result = if made >= needed { CheckResult::Pass } else { CheckResult::Inconclusive };
    check("samples", result, format!("{made} decisions in this stage"), format!("at least {needed}"), None)
}

/// Whether the restrictions of this package are meant.
fn acknowledged(spec: &TenantRolloutSpec, candidate: &str) -> bool {
    spec.acknowledged_restrictions.iter().any(|d| d == candidate)
}

fn high_expansion(e: &DriftExample) -> bool {
    e.severity == Severity::High && e.cause.expands()
}

fn high_restriction(e: &DriftExample) -> bool {
    e.severity == Severity::High && e.cause.restricts()
}

/// The worst example of a restriction.
pub(super) fn worst_restriction(w: &Window) -> Option<String> {
    worst(&w.worst, |e| e.cause.restricts())
}

/// The worst example of a kind: the decision, the policies, the sentence.
fn worst(examples: &[DriftExample], of: impl Fn(&DriftExample) -> bool) -> Option<String> {
    let e = examples.iter().find(|e| of(e))?;
    let by = match e.candidate_policies.as_slice() {
        [] => "no policy matches".to_owned(),
        policies => format!("by {}", policies.join(", ")),
    };
    Some(format!("decision {}, {by}: {}", e.decision, e.sentence))
}
