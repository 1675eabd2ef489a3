//! The way of a candidate over simulated time: every stage, every wait, every end, and what people may do about it.

use super::tests::{World, at_once, calm, example, proved, replayed};
use super::*;
use crate::api::{
    Budgets, CheckResult, HoldReason, OnInconclusive, PackageSelector, ProofBudget, RolloutPhase, STALLED, Stage,
    StageGate,
};
use crate::lifecycle::drift::{Cause, Severity};
use crate::lifecycle::evidence::{AgentDrift, ProofVerdict};
use crate::policy::RefusalCode;

fn wrong(w: &mut World) {
    w.window.shadow[0].critical = 1;
    w.window.worst = vec![example(Severity::Critical, Cause::AccessExpanded)];
}

#[test]
fn a_good_candidate_goes_from_queued_over_the_stages_to_everybody() {
    let mut w = World::staged();
    w.pass();
    assert_eq!((w.candidate(), w.status.percent, w.reason()), (Some("1.1.0"), None, "Queued"));
    assert_eq!((w.status.phase, w.status.progress.as_deref()), (RolloutPhase::Progressing, Some("queued")));
    assert!(w.kept.contains("sha256:p1.1.0"), "its bytes are kept before anything else");
    let mut epoch = w.status.epoch;
    w.pass();
    for (stage, percent, progress) in [(0, 5, "canary"), (1, 25, "canary"), (2, 100, "promoting")] {
        assert_eq!((w.status.stage, w.status.percent), (Some(stage), Some(percent)));
        assert_eq!(w.status.progress.as_deref(), Some(progress));
        assert_eq!(w.status.epoch, epoch + 1, "whoever may be answered by something else raises the epoch");
        assert_eq!((w.status.shadow_percent, w.version()), (Some(100), Some("1.0.0")));
        epoch = w.status.epoch;
        w.window = calm("coder", 19);
        w.wait(298);
        assert_eq!(w.status.stage, Some(stage), "too early, whatever was decided");
        w.wait(0);
    }
    assert_eq!((w.version(), w.candidate(), w.status.percent), (Some("1.1.0"), None, None));
    assert_eq!((w.status.phase, w.status.progress.as_deref()), (RolloutPhase::Healthy, Some("completed")));
    assert_eq!(w.recorded[0].digest, "sha256:p1.1.0");
    assert_eq!((w.entry(2).phase.as_str(), w.entry(2).cause.as_str()), ("completed", "NewVersion"));
    let phases: Vec<&str> = w.records.iter().map(|r| r.phase.as_str()).collect();
    assert_eq!(phases, ["completed", "queued", "canary", "canary", "promoting", "completed"]);
    assert!(w.records.windows(2).all(|p| p[0].epoch <= p[1].epoch));
}

#[test]
fn a_breach_at_any_stage_brings_stable_back_for_everyone_and_is_remembered() {
    for stage in 0..3 {
        let mut w = World::in_stage_one();
        for _ in 0..stage {
            w.wait(301);
        }
        assert_eq!(w.status.stage, Some(stage));
        let epoch = w.status.epoch;
        wrong(&mut w);
        let effects = w.pass();
        assert_eq!((w.version(), w.candidate(), w.status.percent), (Some("1.0.0"), None, None));
        assert_eq!((w.status.phase, w.status.epoch), (RolloutPhase::Degraded, epoch + 1));
        assert_eq!(w.reason(), "BudgetExceeded");
        for word in ["d-17", "tenant/core/deletes", "criticalDrift is 1", "at most 0"] {
            assert!(w.message().contains(word), "{word} in {}", w.message());
            let told =
                |e: &Effect| matches!(e, Effect::Event { reason: "RolledBack", note, .. } if note.contains(word));
            assert!(effects.iter().any(told), "{word} in {effects:?}");
            assert!(w.entry(2).message.as_ref().unwrap().contains(word));
            assert!(w.records.last().unwrap().message.as_ref().unwrap().contains(word));
        }
        let store = effects.iter().position(|e| matches!(e, Effect::Commit(c) if !c.failures.is_empty())).unwrap();
        let status = effects.iter().position(|e| matches!(e, Effect::WriteStatus { urgent: true })).unwrap();
        assert!(store < status, "the store knows before the status says it");
        assert_eq!(effects.iter().filter(|e| matches!(e, Effect::Event { .. })).count(), 1, "told once: {effects:?}");
        // Nor does it start again by itself: not with time, not after the objects were deleted and applied again.
        w.window = calm("coder", 100);
        w.wait(100_000);
        w.status = TenantRolloutStatus::default();
        let again = w.candidates.clone();
        w.candidates.clear();
        w.settle();
        w.candidates = again;
        w.settle();
        assert_eq!((w.version(), w.candidate(), w.reason()), (Some("1.0.0"), None, "BudgetExceeded"));
    }
}

#[test]
fn too_little_pauses_says_how_much_is_missing_and_the_command() {
    let mut w = World::staged();
    w.replay = Progress::Done(ReplaySummary { selected: 9, replayed: 7, not_replayable: 2, ..replayed() });
    w.settle();
    assert_eq!((w.status.phase, w.reason(), w.status.percent), (RolloutPhase::Paused, "Inconclusive", None));
    assert!(w.message().contains("13 of 20 decisions are missing"), "{}", w.message());
    assert!(w.message().contains("kubectl remit rollout promote -n acme"));
    assert_eq!(w.status.verdict.as_ref().unwrap().result, CheckResult::Inconclusive);
    // A person is waited for: no deadline.
    w.wait(10_000_000);
    assert_eq!(w.status.phase, RolloutPhase::Paused);
    assert!(w.asked("promote", |_| ()).starts_with("done"));
    assert_eq!(w.status.percent, Some(5));
    // The same in a stage; and it goes on by itself once there is enough.
    w.window = calm("coder", 3);
    w.wait(301);
    assert_eq!((w.status.phase, w.reason(), w.status.percent), (RolloutPhase::Paused, "Inconclusive", Some(5)));
    assert!(w.message().contains("14 of 20"), "{}", w.message());
    w.wait(10_000_000);
    w.window = calm("coder", 10);
    w.pass();
    assert_eq!(w.status.percent, Some(25));
    let mut w = World::staged();
    w.spec.on_inconclusive = Some(OnInconclusive::Proceed);
    w.replay = Progress::Done(ReplaySummary::default());
    w.settle();
    for percent in [Some(5), Some(25), Some(100), None] {
        assert_eq!(w.status.percent, percent);
        w.wait(301);
    }
    assert_eq!(w.version(), Some("1.1.0"));
}

#[test]
fn a_manual_gate_is_left_by_a_person_only() {
    let mut w = World::staged();
    w.spec.stages = Some(vec![Stage { gate: Some(StageGate::Manual), ..at_once(10) }, at_once(100)]);
    w.settle();
    assert_eq!((w.status.phase, w.reason(), w.status.percent), (RolloutPhase::Paused, "WaitsForPromotion", Some(10)));
    w.wait(10_000_000);
    assert_eq!(w.status.percent, Some(10));
    // Waiting protects nobody: a breach is a breach.
    let mut bad = w.clone();
    bad.window = calm("coder", 100);
    wrong(&mut bad);
    bad.pass();
    assert_eq!(bad.status.phase, RolloutPhase::Degraded);
    assert!(
        w.asked("promote", |a| a.digest = Some("sha256:other".into())).contains("refused: the candidate is p 1.1.0")
    );
    assert_eq!(w.status.percent, Some(10));
    assert!(w.asked("promote", |a| a.digest = Some("sha256:p1.1.0".into())).starts_with("done"));
    w.settle();
    assert_eq!(w.version(), Some("1.1.0"));
}

#[test]
fn replay_and_proof_fail_before_anybody_is_answered() {
    type Broken = fn(&mut ReplaySummary);
    let cases: [(Broken, &str); 4] = [
        (|s| s.critical = 1, "replayCriticalDrift"),
        (|s| s.high = 3, "replayHighExpansions"),
        (|s| (s.high, s.high_restrictions) = (3, 3), "replayHighRestrictions"),
        (|s| s.invariants_failed = vec!["unknown tools are denied: x/y is allowed".into()], "replayInvariants"),
    ];
    for (broken, check) in cases {
        let mut w = World::staged();
        let mut summary = replayed();
        broken(&mut summary);
        w.replay = Progress::Done(summary);
        // A failure needs nothing else to be known.
        w.proof = Progress::Running { done: 0, total: 1 };
        w.settle();
        assert_eq!((w.status.phase, w.candidate()), (RolloutPhase::Degraded, None));
        assert!(w.message().contains(check), "{}", w.message());
        assert!(w.records.iter().all(|r| r.percent.is_none()));
    }
    // Restrictions can be acknowledged, for this digest; expansions can't.
    let mut w = World::staged();
    w.spec.acknowledged_restrictions = vec!["sha256:p1.1.0".into()];
    w.replay = Progress::Done(ReplaySummary { high: 9, high_restrictions: 9, ..replayed() });
    w.settle();
    assert_eq!(w.status.percent, Some(5));
    let mut w = World::staged();
    w.spec.acknowledged_restrictions = vec!["sha256:p1.1.0".into()];
    w.replay = Progress::Done(ReplaySummary { high: 9, high_restrictions: 6, ..replayed() });
    w.settle();
    assert_eq!(w.status.phase, RolloutPhase::Degraded);
}

/// With a call that breaks it nothing is left to be proved, whatever the budget.
#[test]
fn an_invariant_that_the_proof_refutes_fails_the_candidate() {
    for (failed, unproved, version) in [(1, 0, "1.0.0"), (0, 1, "1.1.0")] {
        let mut w = World::staged();
        let named = |n| vec!["low trust: agent coder may call git/push".to_owned(); n];
        let proof = proved(ProofVerdict::Equivalent);
        w.proof = Progress::Done(ProofSummary {
            invariants_failed: named(failed),
            invariants_unproved: named(unproved),
            ..proof
        });
        w.settle();
        assert_eq!(w.candidate().is_none(), failed > 0, "{version}: {}", w.message());
        assert_eq!(w.message().contains("proofInvariants"), failed > 0, "{}", w.message());
    }
}

#[test]
fn a_candidate_that_cannot_be_loaded_is_taken_back_from_any_stage() {
    let mut w = World::in_stage_one();
    w.candidate_error = Some("its ControllerRevision is gone".into());
    w.pass();
    assert_eq!((w.version(), w.candidate(), w.reason()), (Some("1.0.0"), None, "CandidateUnloadable"));
    assert!(w.message().contains("ControllerRevision is gone"), "{}", w.message());
}

#[test]
fn the_proof_holds_only_what_asks_for_it() {
    use ProofVerdict::{Equivalent, Expands, Incomparable, Restricts, Unknown};
    let (goes, holds, fails) = ("StageReached", "ProofRequired", "BudgetExceeded");
    let table = [
        (ProofBudget::NotRequired, Unknown, goes),
        (ProofBudget::NotRequired, Expands, goes),
        (ProofBudget::Required, Unknown, holds),
        (ProofBudget::Required, Expands, goes),
        (ProofBudget::Required, Equivalent, goes),
        (ProofBudget::NoExpansion, Unknown, holds),
        (ProofBudget::NoExpansion, Expands, fails),
        (ProofBudget::NoExpansion, Incomparable, fails),
        (ProofBudget::NoExpansion, Restricts, goes),
    ];
    for (budget, verdict, what) in table {
        let mut w = World::staged();
        w.spec.budgets = Some(Budgets { proof: Some(budget), ..Budgets::default() });
        w.proof = Progress::Done(proved(verdict));
        w.settle();
        let came = if w.status.percent == Some(5) { goes } else { w.reason() };
        assert_eq!(came, what, "{budget:?} {verdict:?}");
        if what == holds {
            assert!(w.asked("promote", |_| ()).contains("promote --full goes on without"));
            assert!(w.asked("promote-full", |a| a.reason = None).contains("needs a reason"));
            assert!(w.asked("promote-full", |_| ()).starts_with("done"));
            assert_eq!((w.version(), w.entry(2).cause.as_str()), (Some("1.1.0"), "PromotedUnchecked"));
            assert!(w.records.iter().any(|r| r.by.as_deref() == Some("ann") && r.cause == "PromotedUnchecked"));
        }
    }
}

#[test]
fn another_platform_voids_replay_and_proof() {
    // Before stage one: what was made under the old one does not count.
    let mut w = World::staged();
    w.replay = Progress::Running { done: 1, total: 9 };
    w.pass();
    w.pass();
    assert_eq!((w.reason(), w.status.percent), ("Queued", None));
    let old = question(&w.stored.clone().unwrap().state, "acme", &w.uid, &w.platform).unwrap();
    w.platform = vec!["sha256:base".into(), "sha256:more".into()];
    w.replay = Progress::Done(replayed());
    assert!(w.look_with(Some(old.clone())).status.percent.is_none());
    w.pass();
    assert_eq!((w.status.percent, w.status.evidence_platform.len()), (Some(5), 2));
    // In a stage: the stage holds until they are made again, and is not left on the old ones.
    w.platform = vec!["sha256:base2".into()];
    w.replay = Progress::Running { done: 1, total: 9 };
    w.window = calm("coder", 100);
    w.wait(1_000);
    assert_eq!((w.status.percent, w.reason()), (Some(5), "Canary"));
    assert!(w.message().contains("its replay is under way"), "{}", w.message());
    assert!(w.asked("promote", |_| ()).starts_with("refused"));
    let mut bad = w.clone();
    bad.replay = Progress::Done(ReplaySummary { critical: 1, ..replayed() });
    bad.pass();
    assert_eq!((bad.status.phase, bad.candidate()), (RolloutPhase::Degraded, None));
    w.replay = Progress::Done(replayed());
    w.pass();
    assert_eq!((w.status.percent, &w.status.evidence_platform), (Some(25), &w.platform));
    // Without any platform nothing is decided, and nothing goes on.
    w.platform.clear();
    w.wait(1_000);
    assert_eq!(w.status.percent, Some(25));
}

#[test]
fn the_deadline_counts_only_where_nobody_is_waited_for() {
    let mut w = World::staged();
    w.spec.progress_deadline_seconds = Some(60);
    w.replay = Progress::Failed("the store is away".into());
    w.pass();
    w.wait(59);
    assert_eq!((w.status.phase, w.reason()), (RolloutPhase::Progressing, "Queued"));
    let mut paused = w.clone();
    paused.spec.paused = true;
    paused.wait(1_000_000);
    assert_eq!(paused.status.phase, RolloutPhase::Paused);
    paused.spec.paused = false;
    paused.wait(30);
    assert_eq!(paused.status.phase, RolloutPhase::Progressing, "the wait did not count");
    w.wait(10);
    assert_eq!((w.status.phase, w.reason()), (RolloutPhase::Degraded, "ProgressDeadlineExceeded"));
    assert!(w.message().contains("the store is away"), "{}", w.message());
    // A stage that lasts longer than the deadline is not overdue for that.
    let mut w = World::staged();
    w.spec.progress_deadline_seconds = Some(60);
    w.settle();
    w.window = calm("coder", 100);
    w.wait(298);
    assert_eq!(w.status.percent, Some(5));
}

#[test]
fn a_spec_that_changes_starts_a_new_revision_from_stable() {
    let mut w = World::in_stage_one();
    w.wait(301);
    assert_eq!(w.status.percent, Some(25));
    let epoch = w.status.epoch;
    w.spec.acknowledged_restrictions = vec!["sha256:p1.1.0".into()];
    w.pass();
    assert_eq!((w.candidate(), w.status.percent, w.status.stage), (Some("1.1.0"), None, None));
    assert_eq!((w.status.candidate.as_ref().unwrap().revision, w.status.epoch), (3, epoch + 1));
    assert_eq!((w.entry(2).phase.as_str(), w.entry(2).cause.as_str()), ("rolled_back", "SpecChanged"));
    // `paused` is not a change.
    w.settle();
    w.spec.paused = true;
    w.wait(1_000);
    assert_eq!((w.status.percent, w.status.phase), (Some(5), RolloutPhase::Paused));
    w.spec.paused = false;
    w.pass();
    assert_eq!((w.status.percent, w.status.candidate.as_ref().unwrap().revision), (Some(25), 3));
    // A newer package replaces the one on its way; an older one and one that is refused do not.
    w.add("p", "1.0.5", None);
    w.pass();
    assert_eq!(w.candidate(), Some("1.1.0"));
    w.add("p", "1.2.0", None);
    w.pass();
    assert_eq!((w.candidate(), w.status.percent, w.entry(3).cause.as_str()), (Some("1.2.0"), None, "Superseded"));
}

#[test]
fn a_pruned_candidate_goes_on_and_a_compromised_one_does_not() {
    let mut w = World::staged();
    w.keys.good.insert("k".into());
    w.candidates.pop();
    w.add("p", "1.1.0", Some("k"));
    w.settle();
    assert_eq!(w.status.percent, Some(5));
    w.candidates.clear();
    // Superseded: the signer covers nothing any more, and its key is not compromised.
    w.keys.good.clear();
    w.window = calm("coder", 100);
    w.wait(301);
    assert_eq!(w.status.percent, Some(25));
    let mut bad = w.clone();
    bad.keys.compromised.insert("k".into());
    bad.pass();
    assert_eq!((bad.candidate(), bad.status.percent, bad.version()), (None, None, Some("1.0.0")));
    assert_eq!(bad.entry(2).cause, "SignerCompromised");
    w.wait(301);
    w.wait(301);
    assert_eq!(w.version(), Some("1.1.0"));
}

#[test]
fn people_pause_resume_and_abort() {
    let mut w = World::in_stage_one();
    assert!(w.asked("pause", |_| ()).starts_with("done"));
    w.wait(1_000);
    assert_eq!((w.status.phase, w.status.percent, w.reason()), (RolloutPhase::Paused, Some(5), "Paused"));
    assert!(w.message().contains("ann paused it"), "{}", w.message());
    assert!(w.asked("pause", |a| a.actor = "bob".into()).contains("refused: ann paused it already"));
    for action in ["promote", "promote-full"] {
        assert!(w.asked(action, |_| ()).contains("resume it first"));
    }
    assert!(w.asked("resume", |_| ()).starts_with("done"));
    assert!(w.asked("resume", |_| ()).starts_with("refused"));
    assert!(w.asked("abort", |a| a.reason = Some("  ".into())).contains("needs a reason"));
    let epoch = w.status.epoch;
    assert!(w.asked("abort", |_| ()).contains("done: p 1.0.0 answers everybody"));
    assert_eq!((w.candidate(), w.status.epoch, w.reason()), (None, epoch + 1, "Aborted"));
    assert!(w.message().contains("ann: because"), "{}", w.message());
    w.wait(100_000);
    assert_eq!(w.candidate(), None);
    for action in ["abort", "promote", "promote-full", "dance"] {
        assert!(w.asked(action, |_| ()).starts_with("refused"));
    }
    // A pause without a candidate keeps the next one waiting.
    assert!(w.asked("pause", |_| ()).starts_with("done"));
    w.add("p", "1.2.0", None);
    w.pass();
    assert_eq!((w.candidate(), w.status.phase), (None, RolloutPhase::Paused));
    w.asked("resume", |_| ());
    w.pass();
    assert_eq!(w.candidate(), Some("1.2.0"));
}

#[test]
fn people_go_back_to_any_revision_below_the_mark_and_the_manifest_does_not_undo_it() {
    let mut w = World::new();
    for version in ["1.0.0", "1.1.0", "1.2.0"] {
        w.add("p", version, None);
        w.settle();
    }
    assert!(w.asked("rollback", |a| a.revision = Some(9)).contains("there is no revision 9"));
    assert!(w.asked("rollback", |a| a.revision = Some(3)).contains("in force already"));
    assert!(
        w.asked("rollback", |a| a.digest = Some("sha256:p1.1.0".into()))
            .contains("1.2.0 (sha256:p1.2.0) is in force by now")
    );
    let epoch = w.status.epoch;
    assert!(w.asked("rollback", |_| ()).contains("done: p 1.1.0 is in force"));
    assert_eq!(
        (w.version(), w.status.epoch, w.status.stable.as_ref().unwrap().revision),
        (Some("1.1.0"), epoch + 1, 4)
    );
    assert_eq!((w.status.phase, w.reason()), (RolloutPhase::Degraded, "RolledBack"));
    assert!(w.message().contains("ann: because"), "{}", w.message());
    // The tool that keeps applying the same manifest, also after it deleted everything.
    w.wait(100_000);
    w.status = TenantRolloutStatus::default();
    w.settle();
    assert_eq!((w.version(), w.candidate()), (Some("1.1.0"), None));
    // Further back: not to the digest in force, not to the one that was left.
    assert!(w.asked("rollback", |_| ()).contains("done: p 1.0.0 is in force"));
    assert!(w.asked("rollback", |_| ()).contains("there is no revision before"));
    // And by its number to what was left: a person says so.
    assert!(w.asked("rollback", |a| a.revision = Some(3)).contains("done: p 1.2.0 is in force"));
    assert_eq!(w.version(), Some("1.2.0"));
    // What was never in force for everyone can't be had that way: it would be a promotion without its verb.
    w.spec.stages = None;
    w.add("p", "1.3.0", None);
    w.settle();
    w.window = calm("coder", 100);
    wrong(&mut w);
    w.pass();
    let failed = w.status.history.iter().map(|h| h.revision.revision).max().unwrap();
    assert!(w.asked("rollback", |a| a.revision = Some(failed)).contains("never in force for everyone"));
    // Bytes that are gone, or a key that is compromised.
    w.kept.remove("sha256:p1.0.0");
    assert!(w.asked("rollback", |a| a.revision = Some(1)).contains("not kept"));
}

#[test]
fn a_rollback_during_a_rollout_ends_both() {
    let mut w = World::new();
    for version in ["1.0.0", "1.1.0"] {
        w.add("p", version, None);
        w.settle();
    }
    w.spec.stages = None;
    w.add("p", "1.2.0", None);
    w.settle();
    assert_eq!(w.status.percent, Some(5));
    assert!(w.asked("rollback", |_| ()).starts_with("done"));
    w.settle();
    assert_eq!((w.version(), w.candidate(), w.status.percent), (Some("1.0.0"), None, None));
    w.wait(100_000);
    assert_eq!((w.version(), w.candidate()), (Some("1.0.0"), None));
}

#[test]
fn git_revert_is_a_staged_rollout_below_the_mark() {
    let mut w = World::new();
    for version in ["1.0.0", "1.1.0"] {
        w.add("p", version, None);
        w.settle();
    }
    w.spec.stages = None;
    // Verification refuses it as a downgrade, as long as the spec does not name it exactly.
    w.candidates[0].verdict = Err(Refusal::new(RefusalCode::Downgrade, "below 1.1.0"));
    let selector = |v: &str| Some(PackageSelector { version: Some(v.into()), ..PackageSelector::default() });
    w.spec.package = selector("<1.1");
    w.settle();
    assert_eq!((w.candidate(), w.reason()), (None, "Downgrade"));
    w.spec.package = selector("=1.0.0");
    w.settle();
    assert_eq!((w.candidate(), w.status.percent), (Some("1.0.0"), Some(5)));
    assert_eq!(w.status.history[0].cause, "Reverted");
    // Also where its object is pruned, and by digest; but nothing that was never in force here.
    let mut pruned = w.clone();
    pruned.candidates.clear();
    let digest = Some("sha256:p1.0.0".to_owned());
    pruned.spec.package = Some(PackageSelector { digest, ..PackageSelector::default() });
    pruned.settle();
    assert_eq!(pruned.candidate(), Some("1.0.0"));
    w.add("p", "0.9.0", None).verdict = Err(Refusal::new(RefusalCode::Downgrade, "below 1.1.0"));
    w.spec.package = selector("=0.9.0");
    w.settle();
    assert_eq!((w.candidate(), w.version()), (None, Some("1.1.0")));
}

#[test]
fn a_rollout_that_is_deleted_and_made_again_goes_on_where_it_was() {
    let mut w = World::in_stage_one();
    w.wait(301);
    let (epoch, percent) = (w.status.epoch, w.status.percent);
    w.status = TenantRolloutStatus::default();
    w.pass();
    assert_eq!((w.status.percent, w.status.epoch, w.candidate()), (percent, epoch, Some("1.1.0")));
    assert_eq!(w.status.candidate.as_ref().unwrap().revision, 2);
}

#[test]
fn numbers_in_texts_are_not_urgent_and_steps_are() {
    let mut w = World::in_stage_one();
    w.pass();
    w.window = calm("coder", 101);
    let effects = w.look().effects;
    assert_eq!(effects, [Effect::WriteStatus { urgent: false }], "a count in the verdict");
    wrong(&mut w);
    assert!(w.look().effects.contains(&Effect::WriteStatus { urgent: true }));
    let w = World::staged();
    assert!(w.look().effects.contains(&Effect::WriteStatus { urgent: true }));
    assert!(!crate::api::is_true(&w.status.conditions, STALLED));
}

#[test]
fn rates_need_samples_and_differences_do_not() {
    let agent = |name: &str, compared, critical| AgentDrift {
        agent: name.into(),
        compared,
        critical,
        expansions: critical,
        ..AgentDrift::default()
    };
    let mut w = World::in_stage_one();
    w.window = Window { shadow: vec![agent("coder", 1, 1)], ..Window::default() };
    w.pass();
    assert_eq!(w.reason(), "BudgetExceeded", "one critical difference counts at once");
    for (errors, decisions, back) in [(1, 19, false), (1, 20, true), (1, 50, false), (2, 50, true)] {
        let mut w = World::in_stage_one();
        // Where nothing was compared, what was answered counts.
        w.window = Window { shadow: Vec::new(), ..calm("coder", decisions) };
        w.window.canary[0].errors = errors;
        w.window.canary[0].error_example = Some("d-9".into());
        w.window.canary[0].error_policies = vec!["tenant/core/sums".into()];
        w.pass();
        assert_eq!(w.candidate().is_none(), back, "{errors} errors of {decisions}: {}", w.message());
        assert!(!back || w.message().contains("decision d-9, by tenant/core/sums"), "{}", w.message());
    }
    let tails = [
        (20_000, 60_000, 100, false),
        (20_000, 61_000, 100, true),
        (20_000, 61_000, 99, false),
        (100, 9_999, 100, false),
    ];
    for (stable, canary, decisions, back) in tails {
        let mut w = World::in_stage_one();
        w.window = calm("coder", decisions);
        w.window.stable[0].latency_micros = stable * decisions;
        w.window.canary[0].latency_micros = canary * decisions;
        w.pass();
        assert_eq!(w.candidate().is_none(), back, "{stable} to {canary} of {decisions}");
    }
    // Without shadow the arms are compared, by agents that have both.
    for (denied, back) in [(10, false), (11, true)] {
        let mut w = World::in_stage_one();
        w.window.shadow.clear();
        w.window.canary[0].denied = denied;
        w.pass();
        assert_eq!(w.candidate().is_none(), back, "{denied} of 100");
    }
    assert_eq!(HoldReason::default(), HoldReason::Person);
}
