//! What a replay comes to, for people and programs.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::event::{Canonical, Event, shown};
use super::invariants::{InvariantResult, Judge};
use super::tally::{OUTCOMES, Tally, hex};
use super::{EffectiveSet, Task};
use crate::api::{ReplayCounts, ReplaySelection, ReplayVerdict};
use crate::gate::Outcome;
use crate::lifecycle::evidence::{DriftExample, ReplaySummary, Shares};
use crate::store::Cut;

/// Differences of a summary.
const SUMMARY: usize = 10;
/// Agents of whom it is said how many decisions were left out.
const LEFT_OUT: usize = 100;

/// What a replay comes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Namespace.
    pub tenant: String,
    /// What was compared with.
    pub baseline: Named,
    /// What was tried.
    pub candidate: Named,
    /// Which decisions were selected.
    pub selection: ReplaySelection,
    /// When the first of them was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// When the last of them was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
    /// What it comes to.
    pub verdict: ReplayVerdict,
    /// Why, in sentences.
    pub reasons: Vec<String>,
    /// Whose decisions the selection's limit left out, and how many: the most first, at most 100 agents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// Counts.
    pub counts: ReplayCounts,
    /// What budgets take of them: none of several agents moves more than one agent's share. None: not counted by agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<Shares>,
    /// Replayed decisions by outcome before and after; pairs that did not occur are left out.
    pub matrix: Vec<MatrixCell>,
    /// The worst differences: by severity, then time, then id; at most 100.
    pub worst: Vec<Event>,
    /// What came of each invariant.
    pub invariants: Vec<InvariantResult>,
    /// Stands for what went in: packages, selection, invariants and every selected record, in the order of time and id.
    pub input_fingerprint: String,
    /// Stands for what came out. The same input always gives the same.
    pub result_fingerprint: String,
}

/// What the selection's limit left out of one agent's decisions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOut {
    /// The agent.
    pub agent: String,
    /// How many, all older than those that were replayed.
    pub decisions: u64,
}

/// One side's packages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Named {
    /// Name of the package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Its digest.
    pub digest: String,
    /// Digests of the platform's packages, base first.
    pub platform: Vec<String>,
}

impl Named {
    fn of(set: &EffectiveSet) -> Self {
        Self {
            package: set.package.package().to_owned(),
            version: set.package.version().to_string(),
            digest: set.package.digest().to_owned(),
            platform: set.platform.iter().map(|p| p.digest().to_owned()).collect(),
        }
    }
}

/// Decisions with this outcome before and that one after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MatrixCell {
    /// Before.
    pub baseline: Outcome,
    /// After.
    pub candidate: Outcome,
    /// Calls that only read.
    pub reads: u64,
    /// All others.
    pub writes: u64,
}

pub(super) fn report(task: &Task, judge: &Judge, tally: &Tally) -> Report {
    let invariants = judge.results(task, tally);
    let (input, result) = tally.fingerprints();
    // Invariants over the package itself are a part of what came out.
    let result = invariants.iter().fold(Canonical::new(b"end\0").text(result), |c, i| {
        c.text(&i.name).text(i.counter_example.as_deref().unwrap_or_default())
    });
    let matrix = (0..16).map(|n| (n / 4, n % 4)).filter_map(|(b, c)| {
        let [writes, reads] = tally.matrix()[b][c];
        (writes + reads > 0).then_some(MatrixCell { baseline: OUTCOMES[b], candidate: OUTCOMES[c], reads, writes })
    });
    let (from, to) = tally.span();
    let (verdict, reasons) = verdict(tally.counts(), &invariants);
    Report {
        tenant: task.tenant.clone(),
        baseline: Named::of(&task.baseline),
        candidate: Named::of(&task.candidate),
        selection: task.selection.clone(),
        from,
        to,
        verdict,
        reasons,
        left_out: Vec::new(),
        counts: tally.counts().clone(),
        shares: Some(tally.shares()),
        matrix: matrix.collect(),
        worst: tally.worst().to_vec(),
        invariants,
        input_fingerprint: format!("sha256:{input}"),
        result_fingerprint: format!("sha256:{}", hex(&result.finish())),
    }
}

/// Nothing replayed is nothing found: never a pass.
fn verdict(counts: &ReplayCounts, invariants: &[InvariantResult]) -> (ReplayVerdict, Vec<String>) {
    let mut reasons: Vec<String> = invariants
        .iter()
        .filter_map(|i| i.counter_example.as_ref().map(|c| format!("Invariant {} does not hold: {c}", i.name)))
        .collect();
    if counts.critical > 0 {
        reasons.push(format!("{} replayed decisions differ critically.", counts.critical));
    }
    if !reasons.is_empty() {
        return (ReplayVerdict::Fail, reasons);
    }
    match (counts.selected, counts.replayed) {
        (0, _) => (ReplayVerdict::Inconclusive, vec!["No recorded decision was selected.".to_owned()]),
        (selected, 0) => {
            let why: Vec<String> = counts.not_replayable_because.iter().map(|(why, n)| format!("{n} {why}")).collect();
            let reason = format!("None of the {selected} selected decisions could be replayed: {}.", why.join(", "));
            (ReplayVerdict::Inconclusive, vec![reason])
        }
        (_, replayed) => {
            (ReplayVerdict::Pass, vec![format!("{replayed} decisions were replayed; none differs critically.")])
        }
    }
}

impl Report {
    /// What a rollout looks at.
    pub fn summary(&self, run: &str) -> ReplaySummary {
        let n = |n: i64| u64::try_from(n).unwrap_or_default();
        let counts = &self.counts;
        ReplaySummary {
            run: run.to_owned(),
            input_fingerprint: self.input_fingerprint.clone(),
            result_fingerprint: self.result_fingerprint.clone(),
            selected: n(counts.selected),
            replayed: n(counts.replayed),
            not_replayable: n(counts.not_replayable),
            low: n(counts.low),
            medium: n(counts.medium),
            high: n(counts.high),
            critical: n(counts.critical),
            expansions: n(counts.expansions),
            restrictions: n(counts.restrictions),
            high_restrictions: n(counts.high_restrictions),
            shares: self.shares,
            invariants_failed: self.invariants_failed(),
            worst: self.worst.iter().take(SUMMARY).map(example).collect(),
        }
    }

    /// Invariants that do not hold, each with its counter-example.
    pub fn invariants_failed(&self) -> Vec<String> {
        let failed = self.invariants.iter().filter_map(|i| Some((&i.name, i.counter_example.as_ref()?)));
        failed.map(|(name, counter_example)| format!("{name}: {counter_example}")).collect()
    }

    /// The sentences of the worst differences, the worst first.
    pub fn sentences(&self, most: usize) -> Vec<String> {
        self.worst.iter().take(most).map(|e| format!("{}: {}", e.severity.as_str(), e.sentence)).collect()
    }

    /// The names of invariants that do not hold, and nothing of any decision.
    pub fn invariants_that_fail(&self) -> Vec<String> {
        self.invariants.iter().filter(|i| !i.holds).map(|i| i.name.clone()).collect()
    }

    /// Notes what the selection's limit left out.
    pub fn leave_out(&mut self, cuts: Vec<Cut>) {
        self.left_out = cuts.into_iter().map(|cut| LeftOut { agent: cut.agent, decisions: cut.left_out }).collect();
        self.left_out.sort_by(|a, b| (b.decisions, &a.agent).cmp(&(a.decisions, &b.agent)));
        self.left_out.truncate(LEFT_OUT);
    }

    /// Lines for people.
    pub fn text(&self) -> String {
        let c = &self.counts;
        let mut out = format!(
            "{} {} -> {} {}: {}\n",
            self.baseline.package,
            self.baseline.version,
            self.candidate.package,
            self.candidate.version,
            self.verdict.as_str()
        );
        self.reasons.iter().for_each(|reason| out.push_str(&format!("  {reason}\n")));
        out.push_str(&format!(
            "selected {}, replayed {}, not replayable {}, same {}\n",
            c.selected, c.replayed, c.not_replayable, c.same
        ));
        c.not_replayable_because.iter().for_each(|(why, n)| out.push_str(&format!("  not replayable: {n} {why}\n")));
        for LeftOut { agent, decisions } in &self.left_out {
            out.push_str(&format!("  left out by the limit: {decisions} of agent {}\n", shown(agent)));
        }
        out.push_str(&format!("critical {}, high {}, medium {}, low {}\n", c.critical, c.high, c.medium, c.low));
        c.causes.iter().for_each(|(cause, n)| out.push_str(&format!("  {cause} {n}\n")));
        for event in &self.worst {
            out.push_str(&format!(
                "{:<8} {} {} {}\n",
                event.severity.as_str(),
                event.time,
                event.decision,
                event.sentence
            ));
        }
        for invariant in &self.invariants {
            let result = invariant.counter_example.as_deref().map_or("holds", |counter_example| counter_example);
            out.push_str(&format!("invariant {}: {result}\n", invariant.name));
        }
        out.push_str(&format!("input  {}\nresult {}\n", self.input_fingerprint, self.result_fingerprint));
        out
    }
}

fn example(event: &Event) -> DriftExample {
    DriftExample {
        decision: event.decision.clone(),
        severity: event.severity,
        cause: event.cause,
        sentence: event.sentence.clone(),
        candidate_policies: event.candidate.policies.clone(),
    }
}
