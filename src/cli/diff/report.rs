//! What a pull request is told: one sentence each for what is newly possible and what is no more, the budgets, and the details below.
//!
//! Pure. Names and arguments come from agents and tenants: nothing of them may become markup, a link or a mention.

use serde::Serialize;

use crate::api::{BudgetCheck, CheckResult, TenantRolloutSpec};
use crate::gate::Outcome;
use crate::lifecycle::rollout::preflight;
use crate::package::TestReport;
use crate::proof::Proof;
use crate::replay::Report;

/// The check that says whether enough could be replayed.
const REPLAY: &str = "replay";
/// Calls and decisions that are shown.
const MAX_SHOWN: usize = 10;
/// The longest text of others that stands in a line.
const MAX_TEXT: usize = 600;

/// What a candidate is held to.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// The rollout that it will go through: what it says of budgets, replay and acknowledged restrictions.
    pub rollout: TenantRolloutSpec,
    /// What is inconclusive fails.
    pub require: bool,
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

    fn check(&self) -> BudgetCheck {
        BudgetCheck {
            name: "tests".into(),
            result: if self.failures.is_empty() { CheckResult::Pass } else { CheckResult::Fail },
            value: format!("{} of {} passed", self.passed, self.total),
            threshold: "all".into(),
            reason: None,
        }
    }
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diff {
    pub passed: bool,
    /// The comment's first sentences.
    pub headline: Vec<String>,
    /// The tests, and the checks of a rollout before its first stage, by the same names.
    pub checks: Vec<BudgetCheck>,
    pub tests: Tests,
    pub proof: Proof,
    pub replay: Report,
}

impl Diff {
    /// Weighs what was found.
    pub fn new(tests: Tests, proof: Proof, replay: Report, held: &Held) -> Self {
        let mut checks = vec![tests.check()];
        checks.extend(preflight(&held.rollout, &replay.candidate.digest, &replay.summary(""), &proof.summary()));
        let fails = |c: &BudgetCheck| match c.result {
            CheckResult::Pass => false,
            CheckResult::Fail => true,
            // Only where it is required is an unknown proof more than a thing to be shown.
            CheckResult::Inconclusive => held.require || c.name != REPLAY,
        };
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
                CheckResult::Pass => "ok",
                CheckResult::Inconclusive => "**inconclusive**",
                CheckResult::Fail => "**FAILED**",
            };
            let why = check.reason.as_ref().filter(|_| check.result != CheckResult::Pass);
            text.push_str(&format!(
                "| {} | {} | {} | {result}{} |\n",
                check.name,
                safe(&check.value),
                safe(&check.threshold),
                why.map(|why| format!(": {}", safe(why))).unwrap_or_default()
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
            // GitHub looks for mentions and references in the rendered text, where an entity is its character again. What follows a
            // zero width space is neither.
            '@' | '#' => out.extend([c, '\u{200b}']),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '!' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    if text.chars().nth(MAX_TEXT).is_some() {
        out.push('…');
    }
    // A name with a scheme or `www.` becomes a link by itself.
    out.replace("://", "&#58;//").replace("www.", "www&#46;")
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
