//! What the budgets say: of replay and proof before stage one, of the records of both arms from then on.
//!
//! Nothing that is counted comes from a caller. One agent moves at most one agent's share: where there are several, nobody counts more
//! than the next one in a count, and all weigh the same in a rate. What there is too little of is inconclusive, never a pass; but
//! whatever is over a budget that counts single differences counts at once.

use super::budgets::{Limits, min_replayed};
use super::words::clip_to;
use crate::api::{BudgetCheck, CheckResult, ProofBudget, RolloutVerdict, TenantRolloutSpec};
use crate::lifecycle::drift::Severity;
use crate::lifecycle::evidence::{
    AgentCounts, AgentDrift, DriftExample, ProofSummary, ProofVerdict, ReplaySummary, Window,
};

/// Decisions below which one agent's rate is left out, as long as the others have enough.
const FLOOR: u64 = 5;
/// Microseconds below which latency is not compared: what a busy machine makes of a check that takes a tenth of that.
const QUICK: u64 = 10_000;
/// Decisions of each arm below which 95 of 100 is a matter of luck.
const MIN_TAIL: u64 = 100;
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

fn check(name: &str, result: CheckResult, value: String, threshold: String, reason: Option<String>) -> BudgetCheck {
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
        return check(name, CheckResult::Pass, n.to_string(), "acknowledged in the spec".into(), None);
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
    let enough = if s.replayed >= needed { CheckResult::Pass } else { CheckResult::Inconclusive };
    let value =
        format!("{} of {} decisions, {} without the facts of their time", s.replayed, s.selected, s.not_replayable);
    // The summary counts by severity; what restricts can't be critical.
    let expanding = s.high.saturating_sub(s.high_restrictions);
    vec![
        check("replay", enough, value, format!("at least {needed}"), None),
        at_most(
            "replayCriticalDrift",
            s.critical,
            limits.critical,
            worst(&s.worst, |e| e.severity == Severity::Critical),
        ),
        at_most("replayHighExpansions", expanding, limits.high, worst(&s.worst, high_expansion)),
        restrictions(
            "replayHighRestrictions",
            s.high_restrictions,
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

/// What the records of both arms say.
pub(super) fn of_window(spec: &TenantRolloutSpec, candidate: &str, w: &Window) -> Vec<BudgetCheck> {
    let (limits, acknowledged) = (Limits::from(spec), acknowledged(spec, candidate));
    let count = |of: fn(&AgentDrift) -> u64| capped(w.shadow.iter().filter(|a| a.compared > 0).map(of).collect());
    vec![
        at_most(
            "criticalDrift",
            count(|a| a.critical),
            limits.critical,
            worst(&w.worst, |e| e.severity == Severity::Critical),
        ),
        at_most(
            "highExpansions",
            count(|a| a.high.saturating_sub(a.high_restrictions)),
            limits.high,
            worst(&w.worst, high_expansion),
        ),
        restrictions(
            "highRestrictions",
            count(|a| a.high_restrictions),
            limits.high,
            acknowledged,
            worst(&w.worst, high_restriction),
        ),
        denial_growth(&limits, acknowledged, w),
        errors(&limits, w),
        latency(&limits, w),
    ]
}

/// Whether the stage has seen enough.
pub(super) fn samples(made: u64, needed: u64) -> BudgetCheck {
    let result = if made >= needed { CheckResult::Pass } else { CheckResult::Inconclusive };
    check("samples", result, format!("{made} decisions in this stage"), format!("at least {needed}"), None)
}

/// Decisions that the candidate made, answered or in shadow: every call that was compared was decided by it too.
pub fn decisions_of_candidate(w: &Window) -> u64 {
    let answered: u64 = total(&w.canary);
    let compared: u64 = w.shadow.iter().map(|a| a.compared).sum();
    // The comparisons are counted by the minute, the answers to the instant.
    answered.max(compared.min(answered + total(&w.stable)))
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

/// The worst example of a kind: the decision, the policies, the sentence.
fn worst(examples: &[DriftExample], of: impl Fn(&DriftExample) -> bool) -> Option<String> {
    let e = examples.iter().find(|e| of(e))?;
    let by = match e.candidate_policies.as_slice() {
        [] => "no policy matches".to_owned(),
        policies => format!("by {}", policies.join(", ")),
    };
    Some(format!("decision {}, {by}: {}", e.decision, e.sentence))
}

/// The sum in which, of several agents, none counts more than the next one does, and none that counts less than 1.
fn capped(mut counts: Vec<u64>) -> u64 {
    counts.sort_unstable_by(|a, b| b.cmp(a));
    match counts.as_slice() {
        [first, second, ..] => {
            let cap = (*second).max(1);
            (*first).min(cap) + counts[1..].iter().sum::<u64>()
        }
        _ => counts.iter().sum(),
    }
}

/// The mean of the agents' own rates, percent: each weighs the same, however often it calls. `of`: (part, whole).
fn mean_percent(parts: &[(u64, u64)], min_samples: u64) -> f64 {
    let enough = |floor: u64| parts.iter().filter(move |(_, n)| *n >= floor);
    let floor = if enough(FLOOR).map(|(_, n)| n).sum::<u64>() >= min_samples { FLOOR } else { 1 };
    let rates: Vec<f64> = enough(floor).map(|(part, n)| *part as f64 * 100.0 / *n as f64).collect();
    if rates.is_empty() { 0.0 } else { rates.iter().sum::<f64>() / rates.len() as f64 }
}

fn total(counts: &[AgentCounts]) -> u64 {
    counts.iter().map(|c| c.decisions).sum()
}

fn too_few(name: &str, made: u64, limits: &Limits, threshold: String) -> BudgetCheck {
    let value = format!("{made} of {} decisions", limits.min_samples);
    check(name, CheckResult::Inconclusive, value, threshold, None)
}

fn percent_at_most(name: &str, measured: f64, limit: u64, what: String, reason: Option<String>) -> BudgetCheck {
    let result = if measured > limit as f64 { CheckResult::Fail } else { CheckResult::Pass };
    let reason = reason.filter(|_| result == CheckResult::Fail);
    check(name, result, what, format!("at most {limit} %"), reason)
}

/// How many more of the calls are denied. Where the same calls were evaluated under both packages, on those; else between the arms, by
/// agents that have both.
fn denial_growth(limits: &Limits, acknowledged: bool, w: &Window) -> BudgetCheck {
    const NAME: &str = "denialGrowth";
    let compared: Vec<(u64, u64)> = w.shadow.iter().map(|a| (a.restrictions.min(a.compared), a.compared)).collect();
    let both: Vec<(&AgentCounts, &AgentCounts)> = w
        .canary
        .iter()
        .filter_map(|c| Some((c, w.stable.iter().find(|s| s.agent == c.agent)?)))
        .filter(|(c, s)| c.decisions > 0 && s.decisions > 0)
        .collect();
    let (of_canary, of_stable) = (
        both.iter().map(|(c, _)| (c.denied, c.decisions)).collect::<Vec<_>>(),
        both.iter().map(|(_, s)| (s.denied, s.decisions)).collect::<Vec<_>>(),
    );
    let sum = |parts: &[(u64, u64)]| parts.iter().map(|(_, n)| n).sum::<u64>();
    let growth = if sum(&compared) >= limits.min_samples {
        mean_percent(&compared, limits.min_samples)
    } else if sum(&of_canary).min(sum(&of_stable)) >= limits.min_samples {
        // The floor would leave out other agents on each side.
        mean_percent(&of_canary, u64::MAX) - mean_percent(&of_stable, u64::MAX)
    } else {
        let made = sum(&compared).max(sum(&of_canary).min(sum(&of_stable)));
        return too_few(NAME, made, limits, format!("at most {} points", limits.denial_growth));
    };
    let value = format!("{growth:.1} points more calls denied");
    if acknowledged {
        return check(NAME, CheckResult::Pass, value, "acknowledged in the spec".into(), None);
    }
    let result = if growth > limits.denial_growth as f64 { CheckResult::Fail } else { CheckResult::Pass };
    let reason = worst(&w.worst, |e| e.cause.restricts()).filter(|_| result == CheckResult::Fail);
    check(NAME, result, value, format!("at most {} points", limits.denial_growth), reason)
}

fn errors(limits: &Limits, w: &Window) -> BudgetCheck {
    const NAME: &str = "errors";
    let made = total(&w.canary);
    if made < limits.min_samples {
        return too_few(NAME, made, limits, format!("at most {} %", limits.errors));
    }
    let parts: Vec<(u64, u64)> = w.canary.iter().map(|c| (c.errors, c.decisions)).collect();
    let rate = mean_percent(&parts, limits.min_samples);
    let example = w.canary.iter().find_map(|c| c.error_example.as_ref()).map(|d| format!("decision {d}"));
    percent_at_most(
        NAME,
        rate,
        limits.errors,
        format!("{rate:.1} % of its decisions end in an evaluation error"),
        example,
    )
}

fn latency(limits: &Limits, w: &Window) -> BudgetCheck {
    const NAME: &str = "latency";
    let made = total(&w.canary).min(total(&w.stable));
    let (Some(before), Some(after), true) = (w.stable_p95_micros, w.canary_p95_micros, made >= limits.min_samples)
    else {
        return too_few(NAME, made, limits, format!("at most {} % more", limits.latency_growth));
    };
    if made < MIN_TAIL {
        let value = format!("{made} of {MIN_TAIL} decisions that this takes");
        return check(NAME, CheckResult::Pass, value, format!("at most {} %", limits.latency_growth), None);
    }
    let growth = (after as f64 - before as f64) * 100.0 / before.max(1) as f64;
    let measured = if after < QUICK { 0.0 } else { growth };
    percent_at_most(
        NAME,
        measured,
        limits.latency_growth,
        format!("95 of 100 within {after} µs, before {before} µs"),
        None,
    )
}
