//! What waits for no package to be judged, and what can't be looked at.

use super::tests::{World, at_once, example};
use super::*;
use crate::api::{HumanAction, OnInconclusive, RolloutPhase};
use crate::lifecycle::drift::{Cause, Severity};

/// What is urgent, while nothing is known of the packages of the namespace.
fn urgently(w: &World) -> Option<Next> {
    w.see(None, |o| urgent(&Observation { candidates: &[], ..*o }))
}

fn ask(action: &str) -> HumanAction {
    HumanAction {
        id: format!("{action}-1"),
        actor: "ann".into(),
        action: action.into(),
        reason: Some("because".into()),
        digest: Some("sha256:p1.1.0".into()),
        ..HumanAction::default()
    }
}

/// Carries it out. What follows, once the packages are judged, tells nobody the same again.
fn followed_by_nothing(w: &mut World, next: &Next) {
    w.carry_out(next, usize::MAX);
    w.second += 1;
    assert!(urgently(w).is_none(), "it was done");
    let after = w.look();
    assert!(
        !after.effects.iter().any(|e| matches!(e, Effect::Event { .. } | Effect::Commit(_))),
        "{:?}",
        after.effects
    );
}

#[test]
fn nothing_is_urgent_of_a_calm_rollout() {
    let mut w = World::in_stage_one();
    assert!(urgently(&w).is_none());
    w.second += 1_000;
    assert!(urgently(&w).is_none(), "a stage that is over waits for the packages");
    assert!(urgently(&World::new()).is_none());
}

#[test]
fn a_breach_waits_for_no_package() {
    let mut w = World::in_stage_one();
    w.window.shadow[0].critical = 1;
    w.window.worst = vec![example(Severity::Critical, Cause::AccessExpanded)];
    let next = urgently(&w).expect("a breach is urgent");
    assert!(next.taken_back);
    assert_eq!((next.status.candidate.as_ref(), next.status.percent), (None, None));
    assert_eq!(
        (next.status.phase, next.status.stable.as_ref().unwrap().version.as_str()),
        (RolloutPhase::Degraded, "1.0.0")
    );
    followed_by_nothing(&mut w, &next);
    assert_eq!(w.reason(), "BudgetExceeded");
}

#[test]
fn what_people_ask_for_waits_for_no_package() {
    for (action, phase, reason) in [
        ("abort", RolloutPhase::Degraded, "Aborted"),
        ("pause", RolloutPhase::Paused, "Paused"),
        ("promote", RolloutPhase::Progressing, "Canary"),
    ] {
        let mut w = World::in_stage_one();
        w.status.actions = vec![ask(action)];
        let next = urgently(&w).unwrap_or_else(|| panic!("{action} is urgent"));
        assert!(next.effects.contains(&Effect::RemoveActions(vec![ask(action)])), "{:?}", next.effects);
        assert_eq!(next.status.phase, phase, "{action}");
        followed_by_nothing(&mut w, &next);
        assert_eq!(w.reason(), reason, "{action}");
        assert_eq!(
            w.status.percent,
            match action {
                "abort" => None,
                "pause" => Some(5),
                _ => Some(25),
            }
        );
    }
}

/// A list that could not be cleared keeps nobody from judging the packages.
#[test]
fn what_was_handled_is_not_urgent() {
    let mut w = World::in_stage_one();
    w.status.actions = vec![ask("pause")];
    let next = urgently(&w).unwrap();
    w.carry_out(&next, next.effects.len());
    w.status.actions = vec![ask("pause")];
    assert!(urgently(&w).is_none());
    assert!(w.look().effects.iter().any(|e| matches!(e, Effect::RemoveActions(_))), "the pass that follows clears it");
}

#[test]
fn what_a_compromised_key_signed_waits_for_no_package() {
    let mut w = World::in_stage_one();
    w.stored.as_mut().unwrap().state.stable.as_mut().unwrap().key_fingerprint = Some("key".into());
    w.status.stable.as_mut().unwrap().key_fingerprint = Some("key".into());
    w.keys.compromised.insert("key".into());
    let next = urgently(&w).expect("a compromised key is urgent");
    assert!(next.status.stable.is_none_or(|s| s.key_fingerprint.is_none()));
}

/// Without what the records say no stage is left, whatever the spec says of too few decisions; and people still have their say.
#[test]
fn what_cannot_be_read_holds_the_stage_and_nothing_else() {
    let mut w = World::in_stage_one();
    w.spec.stages = Some(vec![at_once(5), at_once(100)]);
    w.spec.on_inconclusive = Some(OnInconclusive::Proceed);
    w.status.spec_hash = Some(spec_hash(&w.spec));
    w.stored.as_mut().unwrap().state.spec_hash = Some(spec_hash(&w.spec));
    let unread = |w: &World| w.see(None, |o| step(&Observation { window: None, stage_decisions: 0, ..*o }));
    w.second += 1_000;
    let next = unread(&w);
    assert_eq!((next.status.stage, next.status.percent), (Some(0), Some(5)));
    let ready = next.status.conditions.iter().find(|c| c.type_ == crate::api::READY).unwrap();
    assert!(ready.message.contains("what the records say of it can't be read"), "{}", ready.message);
    w.status.actions = vec![ask("abort")];
    let next = unread(&w);
    assert_eq!((next.status.candidate, next.status.stage), (None, None));
    w.status.actions.clear();
    assert_eq!(w.look().status.stage, Some(1), "read again, it goes on");
}
