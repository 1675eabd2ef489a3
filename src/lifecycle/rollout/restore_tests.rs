//! A store that was put back from a backup, under an object that has seen what came after.

use super::tests::{World, calm, example};
use super::*;
use crate::api::{RolloutHold, RolloutPhase};
use crate::lifecycle::drift::{Cause, Severity};

/// What the store has, as a backup takes it and puts it back.
fn put_back(w: &mut World, backup: &World) {
    w.stored.clone_from(&backup.stored);
    w.recorded.clone_from(&backup.recorded);
    w.failed.clone_from(&backup.failed);
}

/// Nothing is on its way, everybody is answered by this version, and it stays so until a person resumes.
#[track_caller]
fn waits_with(w: &mut World, version: &str) {
    let (epoch, numbers) = (w.status.epoch, w.status.history.iter().map(|h| h.revision.revision).max().unwrap());
    let effects = w.pass();
    let told = |e: &Effect| matches!(e, Effect::Event { warning: true, reason: "StoreRestored", .. });
    assert_eq!(effects.iter().filter(|e| told(e)).count(), 1, "{effects:?}");
    assert!(w.status.epoch > epoch, "replicas take it for newer than what they have");
    w.settle();
    let stands = |w: &World| (w.version().map(str::to_owned), w.candidate().is_some(), w.status.percent);
    assert_eq!(stands(w), (Some(version.to_owned()), false, None));
    assert_eq!((w.status.phase, w.reason()), (RolloutPhase::Degraded, "StoreRestored"));
    assert!(w.message().contains("rollout resume"), "{}", w.message());
    w.wait(100_000);
    w.settle();
    assert_eq!(stands(w), (Some(version.to_owned()), false, None), "not by itself");
    assert_eq!(w.look().effects, [], "told once");
    assert!(w.asked("resume", |_| ()).starts_with("done"));
    assert_eq!(w.status.hold, None);
    w.settle();
    if let Some(again) = &w.status.candidate {
        assert!(again.revision > numbers, "revision {} was given before", again.revision);
    }
}

#[test]
fn a_breach_is_not_undone() {
    let mut w = World::in_stage_one();
    w.wait(301);
    assert_eq!(w.status.percent, Some(25));
    let backup = w.clone();
    w.window.shadow[0].critical = 1;
    w.window.worst = vec![example(Severity::Critical, Cause::AccessExpanded)];
    w.pass();
    assert_eq!((w.candidate(), w.failed.len()), (None, 1));
    w.window = calm("coder", 100);
    put_back(&mut w, &backup);
    waits_with(&mut w, "1.0.0");
}

#[test]
fn a_rollback_is_not_undone() {
    let mut w = World::new();
    for version in ["1.0.0", "1.1.0"] {
        w.add("p", version, None);
        w.settle();
    }
    let backup = w.clone();
    assert!(w.asked("rollback", |_| ()).starts_with("done"));
    assert_eq!(w.version(), Some("1.0.0"));
    put_back(&mut w, &backup);
    waits_with(&mut w, "1.0.0");
}

/// What came into force since is nothing that the store knows to be good: what was before answers.
#[test]
fn a_promotion_is_not_half_there() {
    let mut w = World::in_stage_one();
    let backup = w.clone();
    assert!(w.asked("promote-full", |_| ()).starts_with("done"));
    assert_eq!(w.version(), Some("1.1.0"));
    put_back(&mut w, &backup);
    waits_with(&mut w, "1.0.0");
}

/// The object shows nothing else than the store has, but for the number of the step: something happened in between.
#[test]
fn the_number_of_the_step_is_enough() {
    let mut w = World::in_stage_one();
    w.status.epoch += 1;
    w.status.hold = Some(RolloutHold::default());
    waits_with(&mut w, "1.0.0");
}
