//! Any way through the edges, legal and illegal, with crashes at every point, and what must hold on all of them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::{World, at_once, calm, example, proved, refused, replayed};
use super::*;
use crate::api::{OnInconclusive, PackageSelector, Stage, StageGate};
use crate::lifecycle::drift::{Cause, Severity};
use crate::lifecycle::evidence::ProofVerdict;
use crate::policy::RefusalCode;

#[derive(Clone, Debug)]
enum Move {
    Add { package: usize, minor: u64, key: usize, ok: bool },
    Prune(usize),
    Compromise(usize),
    ForgetSigners,
    Pause(bool),
    Select(usize),
    Recreate,
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        6 => (0..2usize, 0..8u64, 0..4usize, proptest::bool::weighted(0.7))
            .prop_map(|(package, minor, key, ok)| Move::Add { package, minor, key, ok }),
        2 => (0..8usize).prop_map(Move::Prune),
        1 => (0..3usize).prop_map(Move::Compromise),
        1 => Just(Move::ForgetSigners),
        1 => any::<bool>().prop_map(Move::Pause),
        2 => (0..5usize).prop_map(Move::Select),
        1 => Just(Move::Recreate),
    ]
}

proptest! {
    /// Over any way through the edges: only what was verified comes into force, nothing compromised stays, numbers only rise, what
    /// is in force never falls below itself, and a pass that sees nothing new does nothing.
    #[test]
    fn every_way_keeps_the_invariants(moves in proptest::collection::vec(moves(), 1..60), limit in 1..5i64) {
        let mut w = World::new();
        w.spec.revision_history_limit = Some(limit);
        w.keys.good = ["k0".to_owned(), "k1".into(), "k2".into()].into();
        let mut revisions: BTreeMap<i64, String> = BTreeMap::new();
        for m in moves {
            match m {
                Move::Add { package, minor, key, ok } => {
                    let version = format!("1.{minor}.0");
                    let key = (key < 3).then(|| format!("k{key}"));
                    let ok = ok && key.as_ref().is_none_or(|k| w.keys.good.contains(k));
                    let c = w.add(["p", "q"][package], &version, key.as_deref());
                    if !ok {
                        c.verdict = refused(RefusalCode::SignatureMismatch);
                        c.digest.push_str("-bad");
                    }
                }
                Move::Prune(i) if i < w.candidates.len() => { w.candidates.remove(i); }
                Move::Prune(_) => {}
                Move::Compromise(i) => {
                    let key = format!("k{i}");
                    w.keys.good.remove(&key);
                    for c in &mut w.candidates {
                        if c.verdict.as_ref().is_ok_and(|k| k.as_ref() == Some(&key)) {
                            c.verdict = refused(RefusalCode::RevokedSigner);
                        }
                    }
                    w.keys.compromised.insert(key);
                }
                Move::ForgetSigners => {
                    w.keys = Keys::default();
                    for c in &mut w.candidates {
                        if c.verdict.as_ref().is_ok_and(Option::is_some) {
                            c.verdict = refused(RefusalCode::UnknownSigner);
                        }
                    }
                }
                Move::Pause(p) => w.spec.paused = p,
                Move::Select(i) => w.spec.package = [
                    None,
                    Some(PackageSelector { name: Some("p".into()), ..Default::default() }),
                    Some(PackageSelector { name: Some("q".into()), version: Some("^1.3".into()), digest: None }),
                    Some(PackageSelector { digest: Some("sha256:p1.2.0k1".into()), ..Default::default() }),
                    Some(PackageSelector { version: Some("nonsense".into()), ..Default::default() }),
                ][i].clone(),
                Move::Recreate => w.status = TenantRolloutStatus::default(),
            }
            let recorded = w.recorded.first().cloned();
            let before = w.status.stable.clone();
            w.settle();
            let after = w.status.stable.clone();
            if let Some(s) = &after {
                prop_assert!(!s.digest.ends_with("-bad"), "refused package in force: {}", s.digest);
                prop_assert!(!s.key_fingerprint.as_ref().is_some_and(|k| w.keys.compromised.contains(k)));
                prop_assert_eq!(&w.recorded[0].digest, &s.digest, "the store and the status agree");
                let known = revisions.entry(s.revision).or_insert_with(|| s.digest.clone());
                prop_assert_eq!(&*known, &s.digest, "a revision number names one digest");
            }
            if let (Some(b), Some(a)) = (&before, &after) && b.digest != a.digest {
                prop_assert!(a.revision > b.revision);
                let fallback = b.key_fingerprint.as_ref().is_some_and(|k| w.keys.compromised.contains(k));
                let reverted = is_exact(&w.spec) && w.recorded.iter().skip(1).any(|r| r.digest == a.digest);
                if a.package == b.package && !fallback && !reverted {
                    prop_assert!(Version::parse(&a.version).unwrap() > Version::parse(&b.version).unwrap());
                }
                prop_assert!(fallback || !w.spec.paused);
            }
            if let (Some(r), None) = (&recorded, &before) && !r.digest.is_empty() && after.is_none() {
                prop_assert!(r.key_fingerprint.as_ref().is_some_and(|k| w.keys.compromised.contains(k)));
            }
            if recorded.as_ref().is_some_and(|r| r.digest.is_empty()) {
                prop_assert!(after.is_none(), "after a compromise nothing comes into force by itself");
            }
            prop_assert!(w.status.history.len() as i64 <= limit + 1);
            let settled = w.status.clone();
            prop_assert_eq!(w.pass(), vec![]);
            prop_assert_eq!(&w.status, &settled);
            prop_assert_eq!(w.stored.as_ref().and_then(|s| s.state.stable.clone()), settled.stable);
        }
    }
}

/// What may happen to a rollout that is under way.
#[derive(Clone, Debug)]
enum Turn {
    Wait(i64),
    Add(u64),
    Prune,
    Calm(u64),
    Breach,
    Replay(usize),
    Proof(usize),
    Platform(usize),
    Spec(usize),
    Pause(bool),
    Ask { actions: Vec<usize>, stale: bool, revision: Option<i64> },
    Restore,
    Recreate,
    Gap(bool),
    Compromise,
}

fn turns() -> impl Strategy<Value = Turn> {
    prop_oneof![
        8 => (0..400i64).prop_map(Turn::Wait),
        2 => (1..6u64).prop_map(Turn::Add),
        1 => Just(Turn::Prune),
        4 => (0..60u64).prop_map(Turn::Calm),
        1 => Just(Turn::Breach),
        2 => (0..5usize).prop_map(Turn::Replay),
        1 => (0..3usize).prop_map(Turn::Proof),
        1 => (0..3usize).prop_map(Turn::Platform),
        1 => (0..4usize).prop_map(Turn::Spec),
        1 => any::<bool>().prop_map(Turn::Pause),
        4 => (proptest::collection::vec(0..7usize, 1..4), proptest::bool::weighted(0.2), proptest::option::of(0..9i64))
            .prop_map(|(actions, stale, revision)| Turn::Ask { actions, stale, revision }),
        1 => Just(Turn::Restore),
        1 => Just(Turn::Recreate),
        1 => any::<bool>().prop_map(Turn::Gap),
        1 => Just(Turn::Compromise),
    ]
}

fn specs() -> [TenantRolloutSpec; 4] {
    let gated = Stage { gate: Some(StageGate::Manual), ..at_once(10) };
    let proceed = Some(OnInconclusive::Proceed);
    let (stages, deadline) = (Some(vec![gated, at_once(100)]), Some(1_000));
    [
        TenantRolloutSpec::default(),
        TenantRolloutSpec { on_inconclusive: proceed, progress_deadline_seconds: deadline, ..Default::default() },
        TenantRolloutSpec { stages, ..Default::default() },
        TenantRolloutSpec { stages: Some(vec![at_once(100)]), on_inconclusive: proceed, ..Default::default() },
    ]
}

fn turn(w: &mut World, turn: &Turn) {
    match turn {
        Turn::Wait(n) => w.second += n,
        Turn::Add(minor) => {
            let version = format!("1.{minor}.0");
            if !w.candidates.iter().any(|c| c.object == format!("p-{version}")) {
                w.add("p", &version, (minor % 2 == 0).then_some("k"));
            }
        }
        Turn::Prune => w.candidates.clear(),
        Turn::Calm(n) => w.window = calm("coder", *n),
        Turn::Breach => {
            w.window = calm("coder", 30);
            w.window.shadow[0].critical = 1;
            w.window.worst = vec![example(Severity::Critical, Cause::AccessExpanded)];
        }
        Turn::Replay(i) => {
            w.replay = [
                Progress::Done(replayed()),
                Progress::Running { done: 1, total: 2 },
                Progress::Failed("x".into()),
                Progress::Done(ReplaySummary::default()),
                Progress::Done(ReplaySummary { critical: 1, ..replayed() }),
            ][*i]
                .clone();
        }
        Turn::Proof(i) => {
            let running = Progress::Running { done: 0, total: 1 };
            let unknown = Progress::Done(proved(ProofVerdict::Unknown));
            w.proof = [Progress::Done(proved(ProofVerdict::Restricts)), running, unknown][*i].clone();
        }
        Turn::Platform(i) => w.platform = [vec!["base".into()], vec!["base2".into()], vec![]][*i].clone(),
        Turn::Spec(i) => w.spec = TenantRolloutSpec { paused: w.spec.paused, ..specs()[*i].clone() },
        Turn::Pause(p) => w.spec.paused = *p,
        Turn::Ask { actions, stale, revision } => {
            let names = ["pause", "resume", "promote", "promote-full", "abort", "rollback", "nonsense"];
            for action in actions {
                let id = format!("{}-{}", w.second, w.status.actions.len());
                w.ask(names[*action], |a| {
                    (a.id, a.revision) = (id, *revision);
                    if *stale {
                        a.digest = Some("sha256:other".into());
                    }
                });
            }
        }
        // The object as a backup of it had it: another epoch, the same way.
        Turn::Restore => w.status.epoch = w.status.epoch.saturating_add(40),
        Turn::Recreate => w.status = TenantRolloutStatus::default(),
        Turn::Gap(gap) => w.gap = gap.then(|| "spec.stages".into()),
        Turn::Compromise => {
            w.keys.good.remove("k");
            w.keys.compromised.insert("k".into());
            for c in &mut w.candidates {
                if c.verdict.as_ref().is_ok_and(Option::is_some) {
                    c.verdict = refused(RefusalCode::RevokedSigner);
                }
            }
        }
    }
}

/// Digest and number of a revision.
type Named = Option<(String, i64)>;

/// What decides by what anybody is answered.
fn routes(s: &TenantRolloutStatus) -> (Named, Named, Option<i64>) {
    let of = |r: &Option<RevisionStatus>| r.as_ref().map(|r| (r.digest.clone(), r.revision));
    (of(&s.stable), of(&s.candidate), s.percent)
}

/// The way of every revision, as the record has it: queued, stages that grow, one end, and nothing after it.
fn ways_are_ways(records: &[RolloutRecord]) -> Result<(), TestCaseError> {
    let mut ways: BTreeMap<i64, Vec<&RolloutRecord>> = BTreeMap::new();
    for r in records.iter().filter(|r| !matches!(r.cause.as_str(), "Paused" | "Resumed")) {
        ways.entry(r.revision).or_default().push(r);
    }
    for way in ways.values() {
        let digests: std::collections::BTreeSet<_> = way.iter().map(|r| &r.digest).collect();
        prop_assert_eq!(digests.len(), 1, "a number names one package");
        // Once in force it may leave force again; no other way goes on after its end.
        let ends: Vec<_> = way.iter().filter(|r| matches!(r.phase.as_str(), "completed" | "rolled_back")).collect();
        prop_assert!(ends.len() <= 2 && (ends.len() < 2 || ends[0].phase == "completed"), "{:?}", way);
        let stages: Vec<i64> = way.iter().filter(|r| r.cause == "StageReached").filter_map(|r| r.percent).collect();
        prop_assert!(stages.windows(2).all(|p| p[0] < p[1]), "stages grow: {:?}", stages);
        if way[0].phase != "completed" {
            prop_assert_eq!(&way[0].phase, "queued");
        }
    }
    prop_assert!(records.windows(2).all(|p| p[0].epoch <= p[1].epoch));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Any turns, any crash: the pass that is cut off after any of its effects, and the next leader's, end where the whole pass ends;
    /// and on every way nobody is answered by what has not earned it.
    #[test]
    fn crashes_anywhere_end_in_one_declared_state(
        turns in proptest::collection::vec((turns(), 0..9usize), 1..50)
    ) {
        let mut w = World::staged();
        w.keys.good.insert("k".into());
        w.settle();
        for (t, cut) in turns {
            turn(&mut w, &t);
            w.second += 1;
            let before = w.clone();
            let next = w.look();
            let mut crashed = w.clone();
            crashed.carry_out(&next, cut);
            w.carry_out(&next, usize::MAX);

            // Nobody is answered by what has not earned it.
            let (old, new) = (routes(&before.stored.as_ref().unwrap().state), routes(&w.status));
            let full = next.status.handled.iter().take(next.status.handled.len() - before.status.handled.len().min(next.status.handled.len()))
                .any(|h| h.action.action == "promote-full" && h.result.starts_with("done"));
            let entered = w.records[before.records.len()..].iter().filter(|r| r.cause == "StageReached").collect::<Vec<_>>();
            if let Some(first) = entered.iter().find(|r| r.stage == Some(0)) {
                prop_assert!(matches!(&before.replay, Progress::Done(s) if s.critical == 0), "{:?}", first);
                prop_assert!(!before.platform.is_empty());
                // Unless what was asked after it, in the same pass, has ended it.
                if w.status.stage.is_some() {
                    prop_assert_eq!(&w.status.evidence_platform, &before.platform);
                }
            }
            prop_assert!(entered.len() <= 1, "one step a pass");
            let critical = before.window.shadow.iter().any(|a| a.critical > 0);
            if critical && before.stored.as_ref().is_some_and(|s| s.state.stage.is_some()) {
                prop_assert!(new.1.is_none() || new.1 != old.1, "a breach takes it back whatever else is asked");
                prop_assert!(full || new.0.as_ref().map(|s| &s.0) != old.1.as_ref().map(|c| &c.0) || new.0 == old.0);
            }
            prop_assert_eq!(w.status.stage.is_some(), w.status.percent.is_some());
            prop_assert!(w.status.percent.is_none() || w.status.candidate.is_some());
            if let (Some(c), Some(i)) = (&w.status.candidate, w.status.stage) {
                let stages = stages(&w.spec);
                prop_assert_eq!(w.status.percent, stages.get(i as usize).map(|s| s.percent));
                let failed = w.failed.iter().any(|f| f.digest == c.digest && f.spec_hash == spec_hash(&w.spec));
                prop_assert!(!failed, "a pair that failed is on its way");
                prop_assert!(!c.key_fingerprint.as_ref().is_some_and(|k| w.keys.compromised.contains(k)));
            }
            if old != new {
                prop_assert!(w.status.epoch > before.stored.as_ref().unwrap().state.epoch);
            }
            let stable = w.status.stable.as_ref().map_or("", |s| &s.digest);
            prop_assert_eq!(&w.recorded[0].digest, stable, "the store and the status agree");
            prop_assert!(w.status.actions.is_empty(), "handled at once");
            ways_are_ways(&w.records)?;

            // The same pass cut off anywhere, and gone on with by another leader.
            w.settle();
            crashed.settle();
            prop_assert_eq!(&w.stored, &crashed.stored, "cut after {} of {:?}", cut, next.effects);
            prop_assert_eq!(&w.recorded, &crashed.recorded);
            prop_assert_eq!(&w.failed, &crashed.failed);
            // The verdict's texts are the object's: what a crash kept from it is said again, not recorded again.
            let bare = |w: &World| w.records.iter().map(|r| RolloutRecord { verdict: None, ..r.clone() }).collect::<Vec<_>>();
            prop_assert_eq!(bare(&w), bare(&crashed));
            prop_assert_eq!(&w.kept, &crashed.kept);
            prop_assert_eq!(routes(&w.status), routes(&crashed.status));
            prop_assert_eq!(w.status.epoch, crashed.status.epoch);
            prop_assert_eq!(&w.status.handled, &crashed.status.handled);
        }
    }

    /// An obviously right twin: with nothing but time and enough calm decisions, the stage is what the minimum times add up to.
    #[test]
    fn calm_time_alone_leads_through_the_stages(
        times in proptest::collection::vec(0..500i64, 1..6), waits in proptest::collection::vec(1..300i64, 1..40)
    ) {
        let mut w = World::staged();
        let n = times.len() as i64;
        let percent = |i: i64| (i + 1) * 100 / n;
        let stage = |(i, seconds): (usize, &i64)| Stage { min_seconds: Some(*seconds), ..at_once(percent(i as i64)) };
        w.spec.stages = Some(times.iter().enumerate().map(stage).collect());
        w.window = calm("coder", 100);
        w.settle();
        let mut started = w.second;
        let mut at = 0;
        for wait in std::iter::once(0).chain(waits) {
            w.second += wait;
            w.settle();
            while at < times.len() && w.second >= started + times[at] {
                at += 1;
                started = w.second;
            }
            prop_assert_eq!(w.status.stage, (at < times.len()).then_some(at as i64));
            prop_assert_eq!(w.version(), Some(if at < times.len() { "1.0.0" } else { "1.1.0" }));
        }
    }
}
