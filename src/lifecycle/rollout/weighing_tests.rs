//! How much is enough, and how much one agent moves.

use super::tests::{World, at_once, calm, example, replayed};
use super::*;
use crate::api::{BudgetCheck, Budgets, CheckResult, OnInconclusive, RolloutPhase, Stage};
use crate::lifecycle::drift::{Cause, Severity};
use crate::lifecycle::evidence::{AgentCounts, AgentDrift, Shares};

fn compared(agent: &str, compared: u64) -> AgentDrift {
    AgentDrift { agent: agent.into(), compared, ..AgentDrift::default() }
}

fn counts(agent: &str, decisions: u64) -> AgentCounts {
    AgentCounts { agent: agent.into(), decisions, latency_micros: 300 * decisions, ..AgentCounts::default() }
}

fn found<'w>(w: &'w World, name: &str) -> &'w BudgetCheck {
    w.status.verdict.as_ref().unwrap().checks.iter().find(|c| c.name == name).unwrap()
}

/// In stage one under these budgets, with this minimum of decisions for each stage.
fn staged(budgets: Budgets, min_decisions: i64) -> World {
    let mut w = World::staged();
    let stage = |percent| Stage { min_decisions: Some(min_decisions), ..at_once(percent) };
    w.spec.stages = Some(vec![stage(5), stage(100)]);
    w.spec.budgets = Some(budgets);
    w.pass();
    w.pass();
    assert_eq!(w.status.percent, Some(5));
    w
}

/// Answers alone say nothing of what the package in force would have made of these calls.
#[test]
fn differences_that_nobody_looked_for_leave_no_stage() {
    let mut w = World::in_stage_one();
    w.window = Window { shadow: Vec::new(), ..calm("coder", 1000) };
    w.wait(301);
    assert_eq!((w.status.phase, w.reason(), w.status.percent), (RolloutPhase::Paused, "Inconclusive", Some(5)));
    assert!(w.message().contains("0 of 20 compared calls") || w.message().contains("0 of 0 calls"), "{}", w.message());
    for name in ["shadow", "criticalDrift", "highExpansions", "highRestrictions"] {
        assert_eq!(found(&w, name).result, CheckResult::Inconclusive, "{name}");
    }
    // One that is wrong is wrong at once.
    let mut bad = w.clone();
    bad.window.shadow = vec![AgentDrift { critical: 1, ..compared("coder", 1) }];
    bad.pass();
    assert_eq!((bad.candidate(), bad.reason()), (None, "BudgetExceeded"));
    // Nineteen are too few, twenty are enough.
    w.window.shadow = vec![compared("coder", 19)];
    w.pass();
    assert_eq!(w.status.percent, Some(5));
    assert!(w.message().contains("criticalDrift is 0 in 19 of 20 compared calls"), "{}", w.message());
    let mut asked = w.clone();
    assert!(asked.asked("promote", |_| ()).starts_with("done"), "a person may");
    w.window.shadow = vec![compared("coder", 20)];
    w.pass();
    assert_eq!(w.status.percent, Some(25));
}

#[test]
fn a_spec_that_compares_nothing_is_told_so_by_the_name_of_the_field() {
    let mut w = staged(Budgets { shadow_percent: Some(0), ..Budgets::default() }, 20);
    w.window = Window { shadow: Vec::new(), ..calm("coder", 1000) };
    w.pass();
    assert_eq!((w.reason(), w.status.percent), ("Inconclusive", Some(5)));
    assert!(w.message().contains("spec.budgets.shadowPercent is 0"), "{}", w.message());
    w.spec.on_inconclusive = Some(OnInconclusive::Proceed);
    w.settle();
    assert_eq!(w.version(), Some("1.1.0"));
}

/// What a stage needs is never more than what it asks for.
#[test]
fn a_stage_that_asks_for_less_is_left_on_less() {
    for (asked, seen, goes) in [(0, 0, true), (5, 4, false), (5, 5, true)] {
        let mut w = staged(Budgets::default(), asked);
        w.window = calm("coder", 10);
        w.window.shadow = vec![compared("coder", seen)];
        w.pass();
        assert_eq!(w.status.percent == Some(100), goes, "{asked} {seen}: {}", w.message());
        if seen == 0 {
            assert_eq!(found(&w, "criticalDrift").result, CheckResult::Inconclusive, "never a pass on nothing");
        }
    }
}

#[test]
fn what_was_dropped_holds_the_stage_by_number() {
    for (dropped, goes) in [(22, true), (23, false)] {
        let mut w = World::in_stage_one();
        w.window.dropped = dropped;
        w.wait(301);
        assert_eq!(w.status.percent == Some(25), goes, "{dropped}: {}", w.message());
        let words = format!("{dropped} of {} calls not compared", 200 + dropped);
        assert!(goes || w.message().contains(&format!("shadow is {words}, budget at most 10 %")), "{}", w.message());
        assert!(goes || found(&w, "shadow").value == words);
    }
}

/// What can't be read may be a breach.
#[test]
fn records_that_cannot_be_read_leave_no_stage_and_stop_no_person() {
    let mut w = World::in_stage_one();
    w.unread = true;
    w.spec.on_inconclusive = Some(OnInconclusive::Proceed);
    w.pass();
    w.wait(301);
    w.pass();
    w.settle();
    w.wait(1_000);
    assert_eq!((w.status.percent, w.reason()), (Some(5), "Canary"), "{}", w.message());
    assert!(w.message().contains("what the records say of it can't be read"), "{}", w.message());
    assert!(w.asked("abort", |_| ()).starts_with("done"));
}

#[test]
fn errors_take_answers_and_comparisons_together_and_hold_while_they_are_few() {
    // All of them compared: what both packages can't evaluate is no error of the candidate.
    let mut w = World::in_stage_one();
    (w.window.canary[0].errors, w.window.stable[0].errors) = (100, 0);
    w.pass();
    assert_eq!((w.candidate(), found(&w, "errors").result), (Some("1.1.0"), CheckResult::Pass));
    w.window.shadow[0].errors = 5;
    w.window.worst = vec![example(Severity::High, Cause::AccessRestricted)];
    w.pass();
    assert!(w.message().contains("errors is 2.5 %") && w.message().contains("decision d-17, by"), "{}", w.message());
    // Not compared: as many as in force are not its own.
    for (stable, back) in [(100, false), (0, true)] {
        let mut w = World::in_stage_one();
        w.window.shadow.clear();
        (w.window.canary[0].errors, w.window.stable[0].errors) = (100, stable);
        w.pass();
        assert_eq!(w.candidate().is_none(), back, "{stable} in force");
    }
    // Too few for a rate, and there is one already.
    let mut w = staged(Budgets::default(), 5);
    w.window = Window { shadow: vec![AgentDrift { errors: 1, ..compared("coder", 10) }], ..calm("coder", 5) };
    w.pass();
    assert_eq!((w.reason(), w.status.percent), ("Inconclusive", Some(5)));
    assert!(w.message().contains("errors is 10.0 %"), "{}", w.message());
}

/// The stage, and the replay before it.
#[test]
fn one_agent_makes_at_most_half_of_what_is_needed_beside_another() {
    for (other, missing) in [(0, 0), (4, 0), (5, 5), (9, 1), (10, 0)] {
        let mut w = World::in_stage_one();
        w.window = calm("mallory", 100_000);
        w.window.canary.push(counts("coder", other));
        // A namespace with one busy agent must be able to change its policy.
        w.window.agents = 9;
        w.wait(301);
        assert_eq!(w.status.percent == Some(25), missing == 0, "{other}: {}", w.message());
        assert!(missing == 0 || w.message().contains(&format!("{missing} of 20 decisions are missing")));

        let mut w = World::staged();
        let callers = if other >= 5 { 2 } else { 1 };
        let shares = Shares { callers, most: 10_000, high_restrictions: 0 };
        w.replay = Progress::Done(ReplaySummary { replayed: 10_000 + other, shares: Some(shares), ..replayed() });
        w.settle();
        assert_eq!(w.status.percent == Some(5), missing == 0, "{other}: {}", w.message());
        assert!(missing == 0 || w.message().contains(&format!("{missing} of 20 decisions are missing")));
        assert!(missing == 0 || found(&w, "replay").reason.as_ref().unwrap().contains("one agent made 10000"));
    }
}

/// Nobody can make a candidate let others do more: there is nothing to cap.
#[test]
fn what_expands_for_one_agent_only_counts_whole() {
    let eleven = |one: AgentDrift| (0..10).map(|n| compared(&format!("a{n}"), 20)).chain([one]).collect::<Vec<_>>();
    let reads = AgentDrift { high: 10_000, expansions: 10_000, ..compared("scout", 10_000) };
    let writes = AgentDrift { critical: 2, expansions: 2, ..compared("scout", 10) };
    for (one, critical) in [(reads, 0), (writes, 1)] {
        let mut w = staged(Budgets { critical_drift: Some(critical), ..Budgets::default() }, 20);
        w.window.shadow = eleven(one);
        w.pass();
        assert_eq!((w.candidate(), w.reason()), (None, "BudgetExceeded"), "{critical}");
    }
}
