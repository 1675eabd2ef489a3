//! Counts and rates by agent: what one of several agents does moves one agent's share, however often it calls.
//!
//! What an agent can have for the asking (being denied, erring, being slow) never breaches a budget by one of several agents alone: the
//! highest counts no more than the next one's. That goes for an agent that is alone in the window of a namespace that has more, too.

use std::collections::{BTreeMap, BTreeSet};

use super::budgets::Limits;
use super::verdict::{ACKNOWLEDGED, check, worst_restriction};
use crate::api::{BudgetCheck, CheckResult};
use crate::lifecycle::evidence::{AgentCounts, CALLER, ReplaySummary, Window};

/// Microseconds below which latency is not compared: what a busy machine makes of a check that takes a tenth of that.
const QUICK: u64 = 10_000;
/// Decisions of each arm below which latency is a matter of luck.
const MIN_TIMED: u64 = 100;

/// The sum in which, of several agents, none counts more than the next one does, and none that counts less than 1. `agents`: how many
/// there are, also those that counted nothing.
pub fn capped(mut counts: Vec<u64>, agents: u64) -> u64 {
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let (first, rest) = match counts.split_first() {
        Some((first, rest)) if agents > 1 || !rest.is_empty() => (*first, rest),
        _ => return counts.iter().sum(),
    };
    first.min(rest.first().copied().unwrap_or(0).max(1)) + rest.iter().sum::<u64>()
}

/// How many agents the namespace has: those that are there, or those that were seen, if these are more.
pub(super) fn known(w: &Window) -> u64 {
    let arms = w.stable.iter().chain(&w.canary).map(|c| c.agent.as_str());
    let seen: BTreeSet<&str> = arms.chain(w.shadow.iter().map(|a| a.agent.as_str())).collect();
    w.agents.max(seen.len() as u64)
}

/// Of so many, those that count: where at least two agents call, the one with the most counts for at most half of what is needed,
/// rounded up. An agent that nobody calls beside counts whole: else a namespace with one busy agent could never change its policy.
fn shared(all: u64, most: u64, callers: u64, needed: u64) -> u64 {
    let half = needed.div_ceil(2);
    if callers < 2 || needed == 0 { all } else { all.saturating_sub(most.saturating_sub(half)) }
}

/// Decisions that the candidate made, answered or in shadow (every call that was compared was decided by it too), of which `needed` are
/// needed.
pub fn decisions_of_candidate(w: &Window, needed: u64) -> u64 {
    // The comparisons are counted by the minute, the answers to the instant.
    let decided = |a: OfAgent<'_>| a.canary.0.max(a.compared.0.min(a.canary.0 + a.stable.0));
    let each: Vec<u64> = by_agent(w).into_values().map(decided).collect();
    let callers = each.iter().filter(|n| **n >= CALLER).count() as u64;
    shared(each.iter().sum(), each.iter().max().copied().unwrap_or(0), callers, needed)
}

/// Replayed decisions, of which `needed` are needed.
pub fn replayed_that_count(s: &ReplaySummary, needed: u64) -> u64 {
    let shares = s.shares.unwrap_or_default();
    shared(s.replayed, shares.most, shares.callers, needed)
}

/// What is known of one agent.
#[derive(Default)]
struct OfAgent<'w> {
    /// Decisions, and those that ended in an error.
    stable: (u64, u64),
    canary: (u64, u64),
    /// Calls that were compared, and those that the candidate alone could not evaluate.
    compared: (u64, u64),
    /// Of the candidate.
    counts: Option<&'w AgentCounts>,
}

fn by_agent(w: &Window) -> BTreeMap<&str, OfAgent<'_>> {
    let mut all: BTreeMap<&str, OfAgent<'_>> = BTreeMap::new();
    w.stable.iter().for_each(|c| all.entry(&c.agent).or_default().stable = (c.decisions, c.errors));
    for c in &w.canary {
        let of = all.entry(&c.agent).or_default();
        (of.canary, of.counts) = ((c.decisions, c.errors), Some(c));
    }
    w.shadow.iter().for_each(|a| all.entry(&a.agent).or_default().compared = (a.compared, a.errors.min(a.compared)));
    all
}

/// A rate over agents.
struct Rate {
    /// Percent, or points.
    measured: f64,
    /// Whether it is more than one agent's, where there are more.
    several: bool,
}

/// The mean of the agents' own rates: each weighs the same, however often it calls, and the highest counts no more than the next.
/// `parts`: the rate and how many calls it is of.
fn mean(parts: &[(f64, u64)], known: u64, min_samples: u64) -> Rate {
    let at_least = |floor: u64| -> Vec<(f64, u64)> { parts.iter().filter(|(_, n)| *n >= floor).copied().collect() };
    let callers = at_least(CALLER);
    let alone = known <= 1;
    let enough = callers.len() > 1 && callers.iter().map(|(_, n)| n).sum::<u64>() >= min_samples;
    let counted = if enough { callers } else { at_least(1) };
    let all: u64 = counted.iter().map(|(_, n)| n).sum();
    let most = counted.iter().map(|(_, n)| *n).max().unwrap_or(0);
    // Of many that call once or twice each, what the others say together is something too.
    let several = alone || enough || counted.len() > 2 && all - most >= min_samples.max(2 * CALLER);
    let mut rates: Vec<f64> = counted.iter().map(|(rate, _)| *rate).collect();
    rates.sort_by(|a, b| b.total_cmp(a));
    if let [first, second, ..] = rates.as_mut_slice() {
        *first = *second;
    }
    let measured = if rates.is_empty() { 0.0 } else { rates.iter().sum::<f64>() / rates.len() as f64 };
    Rate { measured, several }
}

fn percent((part, whole): (u64, u64)) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

fn total(counts: &[AgentCounts]) -> u64 {
    counts.iter().map(|c| c.decisions).sum()
}

fn too_few(name: &str, made: u64, needed: u64, threshold: String) -> BudgetCheck {
    check(name, CheckResult::Inconclusive, format!("{made} of {needed} decisions"), threshold, None)
}

/// What a rate over its budget is: a breach only where it is of more than one agent, or of all there are.
fn over(several: bool, reason: Option<String>) -> (CheckResult, Option<String>) {
    match several {
        true => (CheckResult::Fail, reason),
        false => (CheckResult::Inconclusive, Some("one agent of several has called enough so far".to_owned())),
    }
}

/// How many more of the calls are denied. Where the same calls were evaluated under both packages, on those; else between the arms, by
/// agents that have both.
pub(super) fn denial_growth(limits: &Limits, acknowledged: bool, w: &Window) -> BudgetCheck {
    const NAME: &str = "denialGrowth";
    let threshold = format!("at most {} points", limits.denial_growth);
    let compared: Vec<(f64, u64)> =
        w.shadow.iter().map(|a| (percent((a.restrictions.min(a.compared), a.compared)), a.compared)).collect();
    let both: Vec<(f64, u64)> = w
        .canary
        .iter()
        .filter_map(|c| Some((c, w.stable.iter().find(|s| s.agent == c.agent && s.decisions > 0)?)))
        .map(|(c, s)| {
            let growth = percent((c.denied, c.decisions)) - percent((s.denied, s.decisions));
            (growth, c.decisions.min(s.decisions))
        })
        .collect();
    let sum = |parts: &[(f64, u64)]| parts.iter().map(|(_, n)| n).sum::<u64>();
    let parts = if sum(&compared) >= limits.min_samples {
        compared
    } else if sum(&both) >= limits.min_samples {
        both
    } else {
        return too_few(NAME, sum(&compared).max(sum(&both)), limits.min_samples, threshold);
    };
    let rate = mean(&parts, known(w), limits.min_samples);
    let value = format!("{:.1} points more calls denied", rate.measured);
    if acknowledged {
        return check(NAME, CheckResult::Pass, value, ACKNOWLEDGED.into(), None);
    }
    let (result, reason) = match rate.measured > limits.denial_growth as f64 {
        true => over(rate.several, worst_restriction(w).or_else(|| erring(w))),
        false => (CheckResult::Pass, None),
    };
    check(NAME, result, value, threshold, reason)
}

/// Decisions of the candidate that it, and it alone, could not evaluate; and whether that keeps the stage from being left. What both
/// packages can't evaluate, or the platform's can't, is not the candidate's doing: where all of an agent's calls were compared, what
/// counts is what the comparisons say; else also by how much it errs more on the candidate than agents do in force.
pub(super) fn errors(limits: &Limits, needed: u64, w: &Window) -> (BudgetCheck, bool) {
    const NAME: &str = "errors";
    let threshold = format!("at most {} %", limits.errors);
    let made = by_agent(w).into_values().map(|a| a.canary.0.max(a.compared.0)).sum();
    if made < needed.max(1) {
        return (too_few(NAME, made, needed, threshold), made < needed);
    }
    let in_force =
        median(w.stable.iter().filter(|c| c.decisions > 0).map(|c| percent((c.errors, c.decisions))).collect());
    let parts: Vec<(f64, u64)> = by_agent(w)
        .into_values()
        .map(|a| {
            let compared = percent((a.compared.1, a.compared.0));
            if a.compared.0 >= a.canary.0 + a.stable.0 {
                return (compared, a.compared.0);
            }
            let before = if a.stable.0 > 0 { percent((a.stable.1, a.stable.0)) } else { in_force };
            let answered = if a.canary.0 > 0 { percent((a.canary.1, a.canary.0)) - before } else { 0.0 };
            (compared.max(answered), a.compared.0.max(a.canary.0))
        })
        .collect();
    let rate = mean(&parts, known(w), limits.min_samples);
    let value = format!("{:.1} % of its decisions end in an evaluation error of its own", rate.measured);
    let (result, reason) = match rate.measured > limits.errors as f64 {
        false => (CheckResult::Pass, None),
        true if made < limits.min_samples => {
            (CheckResult::Inconclusive, Some(format!("of {made} decisions, where a rate takes {}", limits.min_samples)))
        }
        true => over(rate.several, erring(w).or_else(|| worst_restriction(w))),
    };
    let holds = result == CheckResult::Inconclusive;
    (check(NAME, result, value, threshold, reason), holds)
}

/// A decision of the candidate that ended in an error, and the policies that erred, of the agent with the most.
fn erring(w: &Window) -> Option<String> {
    let named = by_agent(w).into_values().filter_map(|a| a.counts).filter(|c| c.error_example.is_some());
    let worst = named.max_by_key(|c| c.errors)?;
    let by = match worst.error_policies.as_slice() {
        [] => String::new(),
        policies => format!(", by {}", policies.join(", ")),
    };
    Some(format!("decision {}{by}", worst.error_example.as_deref().unwrap_or_default()))
}

/// How much longer the gates take: for the agent in the middle, its mean on the candidate against its own in force, or against the mean of
/// the agent in the middle where it has none. Of two in the middle the one that grows less.
pub(super) fn latency(limits: &Limits, w: &Window) -> BudgetCheck {
    const NAME: &str = "latency";
    let threshold = format!("at most {} % more", limits.latency_growth);
    let (made, takes) = (total(&w.canary).min(total(&w.stable)), MIN_TIMED.max(limits.min_samples));
    if made < takes {
        return too_few(NAME, made, takes, threshold);
    }
    let timed = |c: &&AgentCounts| c.decisions >= CALLER;
    let mean_of = |c: &AgentCounts| c.latency_micros as f64 / c.decisions.max(1) as f64;
    let everyone = median(w.stable.iter().filter(timed).map(mean_of).collect());
    let mut growths: Vec<(f64, f64, f64, &AgentCounts)> = w
        .canary
        .iter()
        .filter(timed)
        .map(|c| {
            let before = w.stable.iter().filter(timed).find(|s| s.agent == c.agent).map_or(everyone, mean_of);
            let after = mean_of(c);
            let growth = if after < QUICK as f64 { 0.0 } else { (after - before) * 100.0 / before.max(1.0) };
            (growth, before, after, c)
        })
        .collect();
    growths.sort_by(|a, b| a.0.total_cmp(&b.0));
    let Some((growth, before, after, c)) = growths.get(growths.len().saturating_sub(1) / 2) else {
        return too_few(NAME, made, takes, threshold);
    };
    let value = format!("{after:.0} µs on average for {}, before {before:.0} µs", c.agent);
    let (result, reason) = match *growth > limits.latency_growth as f64 {
        true => over(growths.len() > 1 || known(w) <= 1, None),
        false => (CheckResult::Pass, None),
    };
    check(NAME, result, value, threshold, reason)
}
