//! Attacks on a rollout, by name.

use super::tests::{UID, World, calm, example, replayed};
use super::*;
use crate::api::{Budgets, CheckResult, RevisionStatus, RolloutHold, RolloutPhase, TenantRollout};
use crate::lifecycle::drift::{Cause, Severity};
use crate::lifecycle::evidence::{AgentCounts, AgentDrift, Shares};
use crate::source::routing::Routing;

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
    w.window.shadow[0].errors = 5;
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

/// A store, or store and objects, put back to what they were while replicas run, and an epoch that somebody made up: what replicas act by
/// afterwards is what the store says, on those that ran on and on those that were restarted alike.
#[test]
fn restored_epoch_freezes_replicas() {
    let object = |w: &World| {
        let mut rollout = TenantRollout::new("default", w.spec.clone());
        rollout.metadata.uid = Some("r".into());
        rollout.status = Some(w.status.clone());
        rollout
    };
    let follow = |w: &World, running: &mut Routing| {
        *running = Routing::of(&object(w), Some(running));
        let restarted = Routing::of(&object(w), None);
        assert_eq!(*running, restarted, "a replica that ran on and one that was restarted");
        restarted.candidate.and_then(|c| c.share).map(|(percent, _)| percent)
    };
    let breach = |w: &mut World| {
        w.window.shadow[0].critical = 1;
        w.pass();
    };
    let backup = World::in_stage_one();
    let mut ahead = backup.clone();
    let mut running = Routing::of(&object(&ahead), None);
    for percent in [25, 100] {
        ahead.wait(400);
        assert_eq!(follow(&ahead, &mut running), Some(percent));
    }
    // The store alone; store and objects, with a leader that ran on and with one that was restarted.
    for (status, in_use) in [(false, 0), (true, running.epoch()), (true, 0)] {
        let (mut w, mut replica) = (ahead.clone(), running.clone());
        (w.stored, w.recorded, w.failed) = (backup.stored.clone(), backup.recorded.clone(), backup.failed.clone());
        w.in_use = in_use;
        if status {
            w.status = backup.status.clone();
        }
        w.pass();
        if !status || in_use > 0 {
            let percent = w.status.percent.and_then(|p| u8::try_from(p).ok());
            assert!(percent < Some(100) && follow(&w, &mut replica) == percent, "what the store says: {percent:?}");
        }
        breach(&mut w);
        assert_eq!(follow(&w, &mut replica), None, "a rollback is followed at once: {status} {in_use}");
        assert!(w.look().effects.is_empty());
    }
    // A higher number and nothing else: as after a store that was put back, nothing is on its way, for all replicas alike.
    let (mut w, mut replica) = (ahead.clone(), running.clone());
    w.status.epoch += 5_000;
    assert_eq!(follow(&w, &mut replica), Some(100));
    w.pass();
    assert_eq!(follow(&w, &mut replica), None, "what puts it right is followed at once");
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

    // In the replay: a hundred writes of one agent, none of anybody else. (What the tally makes of records is tested there.)
    for (capped, starts) in [(1, true), (3, false)] {
        let mut w = World::staged();
        let shares = Some(Shares { callers: 3, most: 10, high_restrictions: capped });
        w.replay = Progress::Done(ReplaySummary { high: 100, high_restrictions: 100, shares, ..replayed() });
        w.settle();
        assert_eq!(w.status.percent == Some(5), starts, "{}", w.message());
    }

    // Whoever calls first is alone in the window, and not in the namespace.
    let drift = |agent: &str, compared: u64, restricted: u64| AgentDrift {
        agent: agent.into(),
        compared,
        high: restricted,
        high_restrictions: restricted,
        restrictions: restricted,
        ..AgentDrift::default()
    };
    let weighed = |window: Window| {
        let mut w = World::in_stage_one();
        w.window = window;
        w.window.worst = vec![example(Severity::High, Cause::AccessRestricted)];
        w.pass();
        w
    };
    let shadow = |shadow: Vec<AgentDrift>, agents| weighed(Window { shadow, agents, ..Window::default() });
    for calls in [3, 20, 100_000] {
        let alone = shadow(vec![drift("mallory", calls, calls)], 5);
        assert_eq!(alone.candidate(), Some("1.1.0"), "{calls}: {}", alone.message());
        let only = shadow(vec![drift("coder", calls, calls)], 1);
        assert_eq!(only.candidate(), None, "of a namespace with one agent it is all there is");
    }
    // Beside others that have called enough, too; not where they lose calls as well, and then the cause is named.
    assert_eq!(shadow(vec![drift("mallory", 99, 99), drift("coder", 20, 0)], 2).candidate(), Some("1.1.0"));
    let both = shadow(vec![drift("mallory", 99, 2), drift("coder", 10, 2), drift("tester", 10, 0)], 3);
    assert_eq!(both.candidate(), None);
    let mut growth = World::in_stage_one();
    growth.spec.budgets = Some(Budgets { high_drift: Some(1_000), ..Budgets::default() });
    growth.settle();
    growth.pass();
    growth.window.shadow = vec![drift("mallory", 99, 50), drift("coder", 20, 10)];
    growth.window.worst = vec![example(Severity::High, Cause::AccessRestricted)];
    growth.pass();
    assert!(growth.message().contains("denialGrowth is 50.0 points"), "{}", growth.message());
    assert!(growth.message().contains("decision d-17, by tenant/core/deletes"), "{}", growth.message());

    // Errors: alone on the candidate with what nobody can evaluate, or one of several with what the candidate alone can't.
    let arm = |agents: &[(&str, u64, u64, u64)]| -> Vec<AgentCounts> {
        let one = |(agent, decisions, errors, micros): &(&str, u64, u64, u64)| AgentCounts {
            agent: (*agent).into(),
            decisions: *decisions,
            denied: *errors,
            errors: *errors,
            latency_micros: decisions * micros,
            ..AgentCounts::default()
        };
        agents.iter().map(one).collect()
    };
    let arms = |stable: &[(&str, u64, u64, u64)], canary: &[(&str, u64, u64, u64)]| {
        weighed(Window { stable: arm(stable), canary: arm(canary), agents: 3, ..Window::default() })
    };
    let quiet: [(&str, u64, u64, u64); 2] = [("coder", 100, 0, 300), ("tester", 100, 0, 300)];
    assert_eq!(arms(&[], &[("mallory", 100, 100, 300)]).candidate(), Some("1.1.0"));
    assert_eq!(arms(&quiet, &[("mallory", 100, 100, 300)]).candidate(), Some("1.1.0"));
    let one_of_three = [quiet[0], quiet[1], ("mallory", 9_999, 9_999, 300)];
    assert_eq!(arms(&quiet, &one_of_three).candidate(), Some("1.1.0"));
    assert_eq!(arms(&quiet, &[quiet[0], ("tester", 100, 10, 300), ("mallory", 99, 99, 300)]).candidate(), None);
    let erring = |agent: &str| AgentDrift { errors: 20, ..drift(agent, 20, 0) };
    assert_eq!(shadow(vec![erring("mallory"), drift("coder", 20, 0)], 2).candidate(), Some("1.1.0"));
    assert_eq!(shadow(vec![erring("mallory"), erring("coder")], 2).candidate(), None);

    // Latency: one agent's heavy calls are one vote, on either arm.
    let slow = |agent| (agent, 100_000, 0, 900_000);
    assert_eq!(arms(&quiet, &[quiet[0], quiet[1], slow("mallory")]).candidate(), Some("1.1.0"));
    assert_eq!(arms(&quiet, &[slow("mallory")]).candidate(), Some("1.1.0"), "alone there, it is one of several");
    let hiding = arms(&[quiet[0], quiet[1], slow("mallory")], &[slow("coder"), slow("tester"), slow("mallory")]);
    assert_eq!((hiding.candidate(), hiding.reason()), (None, "BudgetExceeded"), "nor does it hide a slow candidate");
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

/// After a compromise with no good predecessor nothing comes into force by itself, least of all what failed or was aborted.
#[test]
fn compromise_lets_no_unproved_package_in() {
    let compromised = |w: &mut World| {
        w.keys = Keys { good: ["b".to_owned()].into(), compromised: ["a".to_owned()].into(), required: true };
        w.candidates.retain(|c| c.verdict.as_ref().is_ok_and(|k| k.as_deref() == Some("b")));
        w.pass();
    };
    let world = || {
        let mut w = World::new();
        w.spec.stages = None;
        w.keys.good = ["a".to_owned(), "b".to_owned()].into();
        w.add("p", "1.0.0", Some("a"));
        w.settle();
        w.add("p", "1.1.0", Some("b"));
        w.settle();
        assert_eq!((w.version(), w.status.percent), (Some("1.0.0"), Some(5)));
        w
    };
    // Under way, failed, aborted: in no case it is in force.
    let mut under_way = world();
    compromised(&mut under_way);
    let mut failed = world();
    failed.window = calm("coder", 100);
    failed.window.shadow[0].critical = 1;
    failed.pass();
    assert_eq!(failed.reason(), "BudgetExceeded");
    compromised(&mut failed);
    let mut aborted = world();
    assert!(aborted.asked("abort", |_| ()).starts_with("done"));
    compromised(&mut aborted);
    for (name, mut w) in [("under way", under_way.clone()), ("failed", failed), ("aborted", aborted)] {
        w.settle();
        assert_eq!((w.version(), w.status.percent), (None, None), "{name}");
        w.wait(1_000_000);
        w.settle();
        assert_eq!((w.version(), w.status.percent), (None, None), "{name}, and not with time");
        let waits = w.candidate();
        assert_eq!(waits, (name == "under way").then_some("1.1.0"), "{name}: a failed pair is not even offered");
        // Neither by a rollout that is made anew, nor by a newer package.
        w.status = TenantRolloutStatus::default();
        w.settle();
        assert_eq!(w.version(), None, "{name}");
        w.add("p", "1.2.0", Some("b"));
        w.settle();
        assert_eq!((w.version(), w.candidate(), w.reason()), (None, Some("1.2.0"), "NothingInForce"), "{name}");
    }
    // A person decides, with a reason; an ordinary promotion is none.
    let mut w = under_way;
    w.settle();
    assert!(w.message().contains("promote --full"), "{}", w.message());
    assert!(w.asked("promote", |_| ()).contains("refused: nothing is in force"));
    assert!(w.asked("promote-full", |a| a.reason = None).contains("needs a reason"));
    assert_eq!(w.version(), None);
    assert!(w.asked("promote-full", |_| ()).starts_with("done"));
    assert_eq!((w.version(), w.status.history[0].cause.as_str()), (Some("1.1.0"), "PromotedUnchecked"));
    w.settle();
    assert_eq!(w.status.phase, RolloutPhase::Healthy);
}

/// A signer's object that is deleted takes back nothing of its being compromised: not for going back, not for what it signs next.
#[test]
fn compromise_is_forgotten_with_the_signer() {
    let mut w = World::new();
    w.keys.good = ["a".to_owned(), "b".to_owned()].into();
    for (version, key) in [("1.0.0", "a"), ("1.1.0", "b"), ("1.2.0", "b")] {
        w.add("p", version, Some(key));
        w.settle();
    }
    w.keys.good.remove("b");
    w.keys.compromised.insert("b".into());
    w.candidates.clear();
    w.settle();
    assert_eq!(w.version(), Some("1.0.0"));
    // The object is gone, and the history alone remembers.
    w.keys.compromised.clear();
    for revision in [2, 3] {
        let said = w.asked("rollback", |a| a.revision = Some(revision));
        assert!(said.contains("compromised key"), "{revision}: {said}");
    }
    assert!(w.asked("rollback", |_| ()).contains("there is no revision before"));
    assert_eq!(w.version(), Some("1.0.0"));
    // The store alone remembers, and somebody declares the key again, as good: what it signs is refused, and says so.
    w.status.history.iter_mut().for_each(|h| h.cause = "NewVersion".into());
    w.keys.compromised.insert("b".into());
    w.add("p", "1.3.0", Some("b"));
    w.settle();
    assert_eq!((w.version(), w.candidate()), (Some("1.0.0"), None));
    assert!(w.asked("rollback", |a| a.revision = Some(3)).contains("compromised key"));
}

/// Two who ask for the next stage at once get one stage, in one pass and in two; and nothing comes into force that was not looked at.
#[test]
fn two_promotions_skip_a_stage() {
    let mut w = World::in_stage_one();
    for actor in ["ann", "bob", "eve"] {
        w.ask("promote", |a| (a.id, a.actor) = (actor.into(), actor.into()));
    }
    w.pass();
    assert_eq!((w.status.stage, w.status.percent, w.version()), (Some(1), Some(25), Some("1.0.0")));
    let results: Vec<&str> = w.status.handled.iter().map(|h| h.result.as_str()).collect();
    assert_eq!(results.iter().filter(|r| r.starts_with("done")).count(), 1, "{results:?}");
    assert_eq!(results.iter().filter(|r| r.contains("asks for a stage that is past")).count(), 2, "{results:?}");
    // In the next pass: who looked at stage one has not seen stage two.
    let late = w.asked("promote", |a| a.stage = Some(1));
    assert!(late.contains("asks for a stage that is past") && late.contains("25 %"), "{late}");
    assert_eq!(w.status.percent, Some(25));
    assert!(w.asked("promote", |a| a.stage = Some(2)).starts_with("done"));
    assert_eq!(w.status.percent, Some(100));

    for action in ["promote", "promote-full", "rollback"] {
        let mut w = World::in_stage_one();
        let said = w.asked(action, |a| a.digest = None);
        assert!(said.starts_with("refused") && said.contains("`digest` is missing"), "{said}");
        assert_eq!((w.version(), w.status.percent), (Some("1.0.0"), Some(5)));
    }
    // Two rollbacks of what is in force go back by one revision.
    let mut w = World::new();
    for version in ["1.0.0", "1.1.0", "1.2.0"] {
        w.add("p", version, None);
        w.settle();
    }
    for actor in ["ann", "bob"] {
        w.ask("rollback", |a| (a.id, a.actor) = (actor.into(), actor.into()));
    }
    w.pass();
    assert_eq!(w.version(), Some("1.1.0"));
}

/// What was right once may not be so today: it is refused with the reason, and what is in force stays.
#[test]
fn rollback_to_what_does_not_compile_any_more() {
    let mut w = World::new();
    for version in ["1.0.0", "1.1.0", "1.2.0"] {
        w.add("p", version, None);
        w.settle();
    }
    w.obstacles.insert("sha256:p1.1.0".into(), "a.cedar:1: unknown type".into());
    for revision in [None, Some(2)] {
        let said = w.asked("rollback", |a| a.revision = revision);
        assert!(said.starts_with("refused") && said.contains("a.cedar:1: unknown type"), "{said}");
    }
    assert_eq!((w.version(), w.failed.len()), (Some("1.2.0"), 0));
    assert!(w.asked("rollback", |a| a.revision = Some(1)).starts_with("done"));
    // The way back from a compromised key leads past it too.
    let mut w = World::new();
    w.keys.good = ["a".to_owned(), "b".to_owned()].into();
    for (version, key) in [("1.0.0", "a"), ("1.1.0", "a"), ("1.2.0", "b")] {
        w.add("p", version, Some(key));
        w.settle();
    }
    w.obstacles.insert("sha256:p1.1.0a".into(), "a.cedar:1: unknown type".into());
    w.keys = Keys { good: ["a".to_owned()].into(), compromised: ["b".to_owned()].into(), required: true };
    w.candidates.clear();
    w.settle();
    assert_eq!(w.version(), Some("1.0.0"));
}

/// A pause holds the share of the candidate, whatever newer package is there; and the first package too.
#[test]
fn newer_package_moves_a_paused_rollout() {
    let mut w = World::in_stage_one();
    w.asked("pause", |_| ());
    w.add("p", "1.2.0", None);
    w.settle();
    assert_eq!((w.candidate(), w.status.percent), (Some("1.1.0"), Some(5)));
    w.asked("resume", |_| ());
    w.settle();
    assert_eq!(w.candidate(), Some("1.2.0"));
    let mut w = World::in_stage_one();
    w.spec.paused = true;
    w.add("p", "1.2.0", None);
    w.settle();
    assert_eq!((w.candidate(), w.status.percent), (Some("1.1.0"), Some(5)));
}

/// `git revert` to an unsigned revision whose object is gone, where signatures are needed by now: no more than while it is there.
#[test]
fn deleting_the_object_makes_an_unsigned_revision_good() {
    let mut w = World::new();
    w.add("p", "1.0.0", None);
    w.settle();
    (w.keys.good, w.keys.required) = (["k".to_owned()].into(), true);
    w.add("p", "1.1.0", Some("k"));
    w.settle();
    assert_eq!(w.version(), Some("1.1.0"));
    w.spec.package = Some(crate::api::PackageSelector { version: Some("=1.0.0".into()), ..Default::default() });
    w.candidates.retain(|c| c.object != "p-1.0.0");
    w.settle();
    assert_eq!((w.version(), w.candidate()), (Some("1.1.0"), None));
    w.keys = Keys::default();
    w.settle();
    assert_eq!(w.version(), Some("1.0.0"), "where no signature is needed it is `git revert`");
}
