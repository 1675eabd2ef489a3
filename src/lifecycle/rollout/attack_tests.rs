//! Attacks on a rollout, by name.

use super::tests::{UID, World, calm, example, replayed};
use super::*;
use crate::api::{CheckResult, RevisionStatus, RolloutHold, RolloutPhase};
use crate::lifecycle::drift::{Cause, Severity};
use crate::lifecycle::evidence::{AgentCounts, AgentDrift};

/// A good replay of another change says nothing of this one, whichever part of the question differs.
#[test]
fn replay_of_another_digest() {
    let mut w = World::staged();
    w.pass();
    let asked = question(&w.stored.clone().unwrap().state, "acme", UID, &w.platform).unwrap();
    assert_eq!((asked.baseline.as_str(), asked.candidate.as_str()), ("sha256:p1.0.0", "sha256:p1.1.0"));
    let others: [fn(&mut Question); 5] = [
        |q| q.candidate = "sha256:good".into(),
        |q| q.baseline = "sha256:p1.1.0".into(),
        |q| q.tenant_uid = "another".into(),
        |q| q.tenant = "beta".into(),
        |q| q.platform.push("sha256:x".into()),
    ];
    for other in others {
        let mut another = asked.clone();
        other(&mut another);
        let next = w.look_with(Some(another.clone()));
        assert_eq!((next.status.stage, next.status.percent), (None, None), "{another:?}");
        assert!(next.status.verdict.is_none(), "it is not even shown");
    }
    assert_eq!(w.look_with(Some(asked)).status.percent, Some(5));
}

#[test]
fn zero_event_replay_passes() {
    for summary in
        [ReplaySummary::default(), ReplaySummary { selected: 5_000, not_replayable: 5_000, ..ReplaySummary::default() }]
    {
        let mut w = World::staged();
        w.spec.replay = Some(crate::api::RolloutReplay { min_decisions: Some(1), ..Default::default() });
        w.replay = Progress::Done(summary);
        w.settle();
        assert_eq!((w.status.phase, w.status.percent), (RolloutPhase::Paused, None));
        let verdict = w.status.verdict.clone().unwrap();
        assert_eq!(verdict.checks.iter().find(|c| c.name == "replay").unwrap().result, CheckResult::Inconclusive);
        assert_ne!(verdict.result, CheckResult::Pass);
    }
}

/// A run that could not be carried out is no run: neither a pass nor a failure of the candidate.
#[test]
fn failed_run_counts() {
    let mut w = World::staged();
    w.spec.on_inconclusive = Some(crate::api::OnInconclusive::Proceed);
    w.replay = Progress::Failed("decisions could not be read".into());
    w.settle();
    assert_eq!((w.status.percent, w.candidate(), w.reason()), (None, Some("1.1.0"), "Queued"));
    assert!(w.failed.is_empty() && w.message().contains("tried again"), "{}", w.message());
    assert!(w.asked("promote", |_| ()).starts_with("refused"));
    w.replay = Progress::Done(replayed());
    w.settle();
    assert_eq!(w.status.percent, Some(5));
}

/// Whatever callers report of their calls, and whatever a status says of a verdict, only Remit's own records are weighed.
#[test]
fn caller_supplied_error_rate() {
    let mut w = World::in_stage_one();
    let check = |name: &str, result| crate::api::BudgetCheck { name: name.into(), result, ..Default::default() };
    // Bad numbers in the status take nothing back …
    let forged = vec![check("errors", CheckResult::Fail), check("replayCriticalDrift", CheckResult::Fail)];
    w.status.verdict = Some(crate::api::RolloutVerdict { result: CheckResult::Fail, checks: forged });
    w.pass();
    assert_eq!((w.status.percent, w.status.phase), (Some(5), RolloutPhase::Progressing));
    assert_eq!(w.status.verdict.as_ref().unwrap().result, CheckResult::Pass);
    // … and good ones keep nothing: the records decide.
    w.window.canary[0].errors = 3;
    w.status.verdict = Some(crate::api::RolloutVerdict {
        result: CheckResult::Pass,
        checks: vec![check("errors", CheckResult::Pass)],
    });
    w.pass();
    assert_eq!((w.candidate(), w.reason()), (None, "BudgetExceeded"));
}

#[test]
fn retry_after_failure_is_possible_with_a_new_spec() {
    let mut w = World::in_stage_one();
    w.window.shadow[0].high = 5;
    w.window.shadow[0].high_restrictions = 5;
    w.window.worst = vec![example(Severity::High, Cause::AccessRestricted)];
    w.pass();
    assert_eq!((w.candidate(), w.reason()), (None, "BudgetExceeded"));
    // The same spec again, also by way of another one, does not start it.
    let failed = w.spec.clone();
    w.spec.paused = true;
    w.settle();
    w.spec.paused = false;
    w.settle();
    assert_eq!(w.candidate(), None);
    // One that means the restriction does.
    w.spec.acknowledged_restrictions = vec!["sha256:p1.1.0".into()];
    w.pass();
    assert_eq!(w.candidate(), Some("1.1.0"));
    w.spec = failed;
    w.settle();
    assert_eq!((w.candidate(), w.reason()), (None, "BudgetExceeded"), "back to the old one: it is not forgotten");
    // So does another package under the old one.
    w.add("p", "1.1.1", None);
    w.pass();
    assert_eq!(w.candidate(), Some("1.1.1"));
}

/// Somebody who can write status, or a backup that was restored, moves nobody: the store is right, and what puts the status right is
/// newer than what was forged.
#[test]
fn forged_stage_in_status() {
    let w = World::in_stage_one();
    let evil =
        RevisionStatus { tenant_uid: UID.into(), digest: "sha256:evil".into(), revision: 9, ..Default::default() };
    type Forgery = Box<dyn Fn(&mut TenantRolloutStatus)>;
    let forgeries: [(&str, Forgery); 6] = [
        ("stage", Box::new(|s| (s.stage, s.percent) = (Some(2), Some(100)))),
        (
            "candidate",
            Box::new({
                let e = evil.clone();
                move |s| s.candidate = Some(e.clone())
            }),
        ),
        (
            "stable",
            Box::new({
                let e = evil.clone();
                move |s| s.stable = Some(e.clone())
            }),
        ),
        ("gone", Box::new(|s| *s = TenantRolloutStatus::default())),
        ("time", Box::new(|s| s.stage_started = Some(Time(Timestamp::UNIX_EPOCH)))),
        ("hold", Box::new(|s| s.hold = Some(RolloutHold::default()))),
    ];
    for (name, forge) in forgeries {
        let mut w = w.clone();
        let right = w.status.clone();
        forge(&mut w.status);
        let forged = w.status.epoch;
        w.pass();
        let routed = |s: &TenantRolloutStatus| {
            (s.stable.clone(), s.candidate.clone(), s.stage, s.percent, s.stage_started.clone())
        };
        assert_eq!(routed(&w.status), routed(&right), "{name}");
        assert_eq!(w.status.hold, None, "{name}");
        assert!(w.status.epoch >= forged.max(right.epoch), "{name}: a replica that took it takes what is right again");
        let moved = !matches!(name, "gone" | "time" | "hold");
        assert_eq!(w.status.epoch > right.epoch, moved, "{name}");
        assert_eq!(w.look().effects, [], "{name}");
    }
    // Under a higher number it looks as after a store that was put back: then nothing is on its way.
    let mut forged = w.clone();
    (forged.status.percent, forged.status.epoch) = (Some(100), 7_000);
    forged.pass();
    assert_eq!((forged.version(), forged.candidate(), forged.status.percent), (Some("1.0.0"), None, None));
    assert!(forged.status.epoch > 7_000, "a replica that took it takes what is right again");
    // Where the store knows of nothing, a stage in the status is nothing.
    let mut w = World::new();
    w.status.candidate = Some(evil);
    (w.status.stage, w.status.percent) = (Some(0), Some(100));
    w.pass();
    assert_eq!((w.candidate(), w.status.percent, w.status.stage), (None, None, None));
}

/// Entries of others, however many and however senseless, hold back nobody: all are handled in one pass.
#[test]
fn action_list_filled_to_block_rollback() {
    let mut w = World::new();
    for version in ["1.0.0", "1.1.0"] {
        w.add("p", version, None);
        w.settle();
    }
    for i in 0..63 {
        let action = ["pause", "promote", "nonsense", "rollback"][i % 4];
        w.ask(action, |a| {
            (a.id, a.actor) = (format!("junk-{i}"), format!("mallory-{}", i / 4));
            // Of a package that is not in force: nothing is done.
            a.digest = Some("sha256:nothing".into());
            a.reason = Some("x".repeat(1024));
        });
    }
    w.ask("rollback", |a| a.id = "real".into());
    let effects = w.pass();
    assert_eq!(w.version(), Some("1.0.0"));
    assert!(w.status.actions.is_empty());
    let real = w.status.handled.iter().find(|h| h.action.id == "real").unwrap();
    assert!(real.result.starts_with("done"), "{}", real.result);
    let removed = effects.iter().find_map(|e| match e {
        Effect::RemoveActions(gone) => Some(gone.len()),
        _ => None,
    });
    assert_eq!(removed, Some(64));
    assert!(w.status.handled.len() <= 64);
    w.pass();
    assert!(w.status.handled.len() <= 32);
    // Exactly once: an entry that could not be removed is not carried out again.
    let mut w = World::in_stage_one();
    w.ask("promote", |_| ());
    let next = w.look();
    let until = next.effects.iter().position(|e| matches!(e, Effect::RemoveActions(_))).unwrap();
    w.carry_out(&next, until);
    assert_eq!((w.status.percent, w.status.actions.len()), (Some(25), 1));
    w.pass();
    assert_eq!((w.status.percent, w.status.actions.len(), w.status.handled.len()), (Some(25), 0, 1));
}

/// An entry whose text no database may be able to keep is refused, whatever it asks for, and the others are handled.
#[test]
fn nul_in_a_reason_to_wedge_the_rollout() {
    let mut w = World::in_stage_one();
    for (n, action) in ["abort", "rollback", "pause", "promote-full"].into_iter().enumerate() {
        w.ask(action, |a| (a.id, a.reason) = (format!("evil-{n}"), Some("x\0".into())));
    }
    w.ask("abort", |a| a.id = "real".into());
    w.pass();
    assert_eq!(w.candidate(), None);
    assert!(w.status.actions.is_empty());
    for h in &w.status.handled {
        let wanted = if h.action.id == "real" { "done" } else { "refused: its reason holds the character U+0000" };
        assert!(h.result.starts_with(wanted), "{}: {}", h.action.id, h.result);
    }
}

/// One agent that calls what the fix denies, over and over, moves one agent's share and no more.
#[test]
fn denials_inflated_to_hold_back_a_fix() {
    let agents = |n: usize, attacker: AgentDrift| {
        let honest = (0..n).map(|i| AgentDrift { agent: format!("a{i}"), compared: 20, ..AgentDrift::default() });
        honest.chain([attacker]).collect::<Vec<_>>()
    };
    let flood = || AgentDrift {
        agent: "mallory".into(),
        compared: 100_000,
        high: 100_000,
        high_restrictions: 100_000,
        restrictions: 100_000,
        ..AgentDrift::default()
    };
    let fix = |shadow: Vec<AgentDrift>| {
        let mut w = World::in_stage_one();
        w.window.shadow = shadow;
        w.window.worst = vec![example(Severity::High, Cause::AccessRestricted)];
        // Denials that both packages make say nothing at all.
        let denied = |agent: &str| AgentCounts {
            agent: agent.into(),
            decisions: 100_000,
            denied: 100_000,
            ..Default::default()
        };
        (w.window.stable, w.window.canary) = (vec![denied("mallory")], vec![denied("mallory")]);
        w.pass();
        w
    };
    assert_eq!(fix(agents(10, flood())).candidate(), Some("1.1.0"), "one agent of eleven");
    // Where many agents lose calls it is no attack, but the package.
    let mut many = agents(10, flood());
    many.iter_mut().take(5).for_each(|a| (a.high, a.high_restrictions, a.restrictions) = (10, 10, 10));
    assert_eq!(fix(many).candidate(), None);
    // A tenant with one agent has no one else to ask; what is meant is acknowledged.
    let mut w = World::staged();
    w.spec.acknowledged_restrictions = vec!["sha256:p1.1.0".into()];
    w.settle();
    w.window = Window { shadow: vec![flood()], ..calm("mallory", 100) };
    w.pass();
    assert_eq!((w.candidate(), w.status.percent), (Some("1.1.0"), Some(5)));
    // Expansions can't be: not by anybody's acknowledgement, and from one call on.
    w.window.shadow[0].critical = 1;
    w.pass();
    assert_eq!(w.candidate(), None);
}

/// A definition that drops fields: a budget that Git has would not be there. Nothing starts, and what is on its way comes back.
#[test]
fn budget_dropped_by_an_old_crd() {
    let mut w = World::staged();
    w.gap = Some("spec.budgets.criticalDrift".into());
    w.settle();
    assert_eq!((w.candidate(), w.status.phase, w.reason()), (None, RolloutPhase::Degraded, "OutdatedDefinition"));
    assert!(w.message().contains("spec.budgets.criticalDrift"), "{}", w.message());
    w.gap = None;
    w.settle();
    assert_eq!(w.status.percent, Some(5));
    w.gap = Some("spec.stages".into());
    w.pass();
    assert_eq!((w.candidate(), w.status.percent, w.version()), (None, None, Some("1.0.0")));
    w.gap = None;
    w.pass();
    assert_eq!(w.candidate(), Some("1.1.0"), "that was no failure of the package");
}
