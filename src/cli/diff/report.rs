//! What a pull request is told: one sentence each for what is newly possible and what is no more, the budgets, and the details below.
//!
//! Pure. Names and arguments come from agents and tenants: nothing of them may become markup, a link or a mention.

use serde::Serialize;

use crate::gate::Outcome;
use crate::package::TestReport;
use crate::proof::{Holding, Proof};
use crate::replay::Report;

/// Calls and decisions that are shown.
const MAX_SHOWN: usize = 10;
/// The longest text of others that stands in a line.
const MAX_TEXT: usize = 600;

/// What the proof must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofWanted {
    NotRequired,
    Required,
    NoExpansion,
}

/// What a candidate is held to; the defaults are a rollout's.
#[derive(Clone, Copy, Debug)]
pub struct Budgets {
    pub critical: u64,
    pub high: u64,
    pub min_decisions: u64,
    /// Restrictions are meant.
    pub acknowledged: bool,
    /// What is inconclusive fails.
    pub require: bool,
    pub proof: ProofWanted,
}

/// How the candidate's own tests did.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tests {
    pub passed: usize,
    pub total: usize,
    pub failures: Vec<String>,
}

impl Tests {
    pub fn of(report: &TestReport) -> Self {
        Self {
            passed: report.results.iter().filter(|r| r.passed).count(),
            total: report.results.len(),
            failures: report.refusals().iter().map(ToString::to_string).collect(),
        }
    }
}

/// What a budget came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Came {
    Pass,
    Inconclusive,
    Fail,
}

/// One budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    pub name: &'static str,
    pub result: Came,
    /// What was found.
    pub value: String,
    /// What it may be.
    pub threshold: String,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diff {
    pub passed: bool,
    /// The comment's first sentences.
    pub headline: Vec<String>,
    pub checks: Vec<Check>,
    pub tests: Tests,
    pub proof: Proof,
    pub replay: Report,
}

impl Diff {
    /// Weighs what was found.
    pub fn new(tests: Tests, proof: Proof, replay: Report, budgets: &Budgets) -> Self {
        let checks = checks(&tests, &proof, &replay, budgets);
        let fails = |c: &Check| c.result == Came::Fail || budgets.require && c.result == Came::Inconclusive;
        Self {
            passed: !checks.iter().any(fails),
            headline: vec![permits(&proof), denies(&replay)],
            checks,
            tests,
            proof,
            replay,
        }
    }

    /// The comment.
    pub fn markdown(&self) -> String {
        let (old, new) = (&self.replay.baseline, &self.replay.candidate);
        let mut text = format!(
            "## Remit: {} {} → {}: {}\n\n",
            safe(&new.package),
            safe(&old.version),
            safe(&new.version),
            if self.passed { "within the budgets" } else { "over a budget" }
        );
        for sentence in &self.headline {
            text.push_str(&format!("{}\n\n", safe(sentence)));
        }
        text.push_str("| | found | budget | |\n|---|---|---|---|\n");
        for check in &self.checks {
            let result = match check.result {
                Came::Pass => "ok",
                Came::Inconclusive => "**inconclusive**",
                Came::Fail => "**FAILED**",
            };
            text.push_str(&format!(
                "| {} | {} | {} | {result} |\n",
                check.name,
                safe(&check.value),
                safe(&check.threshold)
            ));
        }
        let mut details = |title: &str, lines: Vec<String>| {
            if !lines.is_empty() {
                text.push_str(&format!("\n<details><summary>{title}</summary>\n\n"));
                lines.iter().take(MAX_SHOWN).for_each(|line| text.push_str(&format!("- {}\n", safe(line))));
                if let Some(more) = lines.len().checked_sub(MAX_SHOWN).filter(|n| *n > 0) {
                    text.push_str(&format!("- and {more} more\n"));
                }
                text.push_str("\n</details>\n");
            }
        };
        let calls = |expands: bool| {
            let all = self.proof.counter_examples.iter().filter(|c| c.expands == expands);
            all.map(|c| c.sentence.clone()).collect::<Vec<_>>()
        };
        details("Failed tests", self.tests.failures.clone());
        details("Newly let through (proved over all calls)", calls(true));
        details("No more let through (proved over all calls)", calls(false));
        details("Last decisions that would come out otherwise, the worst first", self.replay.sentences(MAX_SHOWN + 1));
        details("Why something is not proved", self.proof.unknown_because.clone());
        details(
            "Policies that can err",
            self.proof.can_err.iter().map(|c| format!("{} in {}", c.policy, c.environment)).collect(),
        );
        details("Policies that can never apply", self.proof.never_apply.clone());
        text.push_str(&format!("\n<sub>{} → {}</sub>\n", safe(&old.digest), safe(&new.digest)));
        text
    }
}

/// What is newly possible, over all calls.
fn permits(proof: &Proof) -> String {
    let new: Vec<_> = proof.counter_examples.iter().filter(|c| c.expands).collect();
    let rest = match proof.is_unknown() || !proof.unknown_because.is_empty() {
        true => format!(" Not everything is proved: {}.", proof.unknown_because.join("; ")),
        false => String::new(),
    };
    match new.as_slice() {
        [] if rest.is_empty() => "Permits no new call: that is proved over all calls.".to_owned(),
        [] => format!("Whether it permits new calls is not known.{rest}"),
        [one] => format!("Permits a new call: {}.{rest}", one.sentence),
        [one, ..] => format!("Permits {} new calls, here is one: {}.{rest}", counted(new.len() as u64), one.sentence),
    }
}

/// What becomes of the recorded decisions.
fn denies(replay: &Report) -> String {
    let moved = |from: &[Outcome], to: &[Outcome]| -> u64 {
        let cells = replay.matrix.iter().filter(|c| from.contains(&c.baseline) && to.contains(&c.candidate));
        cells.map(|c| c.reads + c.writes).sum()
    };
    use Outcome::{Allow, ApprovalRequired as Asked, Deny, Refused};
    let span = match (replay.from, replay.to) {
        (Some(from), Some(to)) => {
            let day = |t: jiff::Timestamp| t.strftime("%Y-%m-%d").to_string();
            if day(from) == day(to) {
                format!(" of {}", day(from))
            } else {
                format!(" from {} to {}", day(from), day(to))
            }
        }
        _ => String::new(),
    };
    let all = u64::try_from(replay.counts.replayed).unwrap_or_default();
    if all == 0 {
        return "No recorded decision could be replayed.".to_owned();
    }
    let mut parts = vec![format!(
        "denies {} of {} recorded decisions{span}",
        counted(moved(&[Allow, Asked], &[Deny, Refused])),
        counted(all)
    )];
    for (n, what) in [
        (moved(&[Deny, Refused, Asked], &[Allow]), "newly allowed"),
        (moved(&[Allow], &[Asked]), "newly asked about"),
        (moved(&[Deny, Refused], &[Asked]), "newly possible with a human"),
    ] {
        if n > 0 {
            parts.push(format!("{} {what}", counted(n)));
        }
    }
    let not = u64::try_from(replay.counts.not_replayable).unwrap_or_default();
    if not > 0 {
        parts.push(format!("{} without the facts of their time", counted(not)));
    }
    let text = parts.join("; ");
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| format!("{}{}.", c.to_uppercase(), chars.as_str()))
}

fn checks(tests: &Tests, proof: &Proof, replay: &Report, budgets: &Budgets) -> Vec<Check> {
    let n = |n: i64| u64::try_from(n).unwrap_or_default();
    let check = |name, result, value: String, threshold: String| Check { name, result, value, threshold };
    let at_most = |name, found: u64, limit: u64| {
        let result = if found > limit { Came::Fail } else { Came::Pass };
        check(name, result, counted(found), format!("at most {}", counted(limit)))
    };
    let counts = &replay.counts;
    let good = tests.failures.is_empty();
    let mut all = vec![check(
        "tests",
        if good { Came::Pass } else { Came::Fail },
        format!("{} of {} passed", tests.passed, tests.total),
        "all".into(),
    )];
    let expands = proof.expands();
    all.push(check(
        "proof",
        match budgets.proof {
            ProofWanted::NotRequired => Came::Pass,
            ProofWanted::NoExpansion if expands => Came::Fail,
            _ if proof.is_unknown() => Came::Fail,
            _ => Came::Pass,
        },
        format!("alone {}, with approval {}", proof.alone.as_str(), proof.with_approval.as_str()),
        match budgets.proof {
            ProofWanted::NotRequired => "shown only",
            ProofWanted::Required => "known",
            ProofWanted::NoExpansion => "nobody may do more",
        }
        .into(),
    ));
    for invariant in &proof.invariants {
        let (result, found) = match invariant.holding {
            Holding::Holds => (Came::Pass, "holds".to_owned()),
            Holding::Fails => (Came::Fail, "fails".to_owned()),
            Holding::Unknown => (Came::Inconclusive, "not proved".to_owned()),
        };
        let because = invariant.because.as_ref().map(|b| format!(": {b}")).unwrap_or_default();
        all.push(check(
            "invariant",
            result,
            format!("{} {found}{because}", invariant.name),
            "holds of all calls".into(),
        ));
    }
    let enough = if n(counts.replayed) < budgets.min_decisions { Came::Inconclusive } else { Came::Pass };
    all.push(check(
        "replayed decisions",
        enough,
        format!("{} of {}", counted(n(counts.replayed)), counted(n(counts.selected))),
        format!("at least {}", counted(budgets.min_decisions)),
    ));
    all.push(at_most("critical drift", n(counts.critical), budgets.critical));
    all.push(at_most(
        "expansions of severity high",
        n(counts.high).saturating_sub(n(counts.high_restrictions)),
        budgets.high,
    ));
    all.push(if budgets.acknowledged {
        check("restrictions of severity high", Came::Pass, counted(n(counts.high_restrictions)), "acknowledged".into())
    } else {
        at_most("restrictions of severity high", n(counts.high_restrictions), budgets.high)
    });
    for failed in replay.invariants_failed() {
        all.push(check("invariant in replay", Came::Fail, failed, "holds of every decision".into()));
    }
    all
}

/// A number as people read it.
fn counted(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A text of others in a comment: one line, no markup, no link, nobody mentioned.
fn safe(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(MAX_TEXT) {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '@' => out.push_str("&#64;"),
            '#' => out.push_str("&#35;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '!' => {
                out.push('\\');
                out.push(c);
            }
            // A name with a scheme or `www.` becomes a link by itself.
            ':' => out.push_str("&#58;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    if text.chars().nth(MAX_TEXT).is_some() {
        out.push('…');
    }
    out.replace("www.", "www&#46;")
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
