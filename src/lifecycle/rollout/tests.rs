use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::policy::RefusalCode;

const UID: &str = "uid-1";

/// A namespace over simulated time: the status and the store as the passes leave them.
struct World {
    spec: TenantRolloutSpec,
    status: TenantRolloutStatus,
    recorded: Vec<InForceRow>,
    candidates: Vec<Candidate>,
    keys: Keys,
    kept: BTreeSet<String>,
    uid: String,
    second: i64,
}

impl World {
    fn new() -> Self {
        Self {
            spec: TenantRolloutSpec::default(),
            status: TenantRolloutStatus::default(),
            recorded: Vec::new(),
            candidates: Vec::new(),
            keys: Keys::default(),
            kept: BTreeSet::new(),
            uid: UID.into(),
            second: 1_000,
        }
    }

    fn look(&self) -> Next {
        step(&Observation {
            spec: &self.spec,
            status: &self.status,
            generation: 1,
            tenant: "acme",
            tenant_uid: &self.uid,
            candidates: &self.candidates,
            recorded: &self.recorded,
            keys: &self.keys,
            kept: &self.kept,
            load_error: None,
            now: Timestamp::from_second(self.second).unwrap(),
        })
    }

    fn pass(&mut self) -> Vec<Effect> {
        self.second += 1;
        let next = self.look();
        for effect in &next.effects {
            match effect {
                Effect::KeepBytes { digest } => {
                    self.kept.insert(digest.clone());
                }
                Effect::PutInForce(row) => self.recorded.insert(0, row.clone()),
                Effect::Event { .. } => {}
            }
        }
        self.status = next.status;
        next.effects
    }

    fn add(&mut self, package: &str, version: &str, key: Option<&str>) -> &mut Candidate {
        self.candidates.push(Candidate {
            object: format!("{package}-{version}"),
            package: package.into(),
            version: Version::parse(version).ok(),
            digest: format!("sha256:{package}{version}{}", key.unwrap_or("")),
            verdict: Ok(key.map(str::to_owned)),
        });
        self.candidates.last_mut().unwrap()
    }

    fn version(&self) -> Option<&str> {
        self.status.stable.as_ref().map(|s| s.version.as_str())
    }

    fn reason(&self) -> &str {
        &self.status.conditions.iter().find(|c| c.type_ == READY).unwrap().reason
    }
}

fn refused(code: RefusalCode) -> Result<Option<String>, Refusal> {
    Err(Refusal::new(code, "why"))
}

#[test]
fn first_package_comes_into_force_at_once_and_a_second_pass_is_quiet() {
    let mut w = World::new();
    w.pass();
    assert_eq!((w.version(), w.reason()), (None, "NoPackage"));
    w.add("p", "1.0.0", None);
    let effects = w.pass();
    assert_eq!(w.version(), Some("1.0.0"));
    assert_eq!(w.status.phase, RolloutPhase::Healthy);
    assert_eq!(w.status.history[0].cause, "FirstPackage");
    assert!(effects.iter().any(|e| matches!(e, Effect::PutInForce(r) if r.revision == 1)));
    let before = w.status.clone();
    assert_eq!(w.pass(), vec![]);
    assert_eq!(w.status, before);
}

#[test]
fn refused_new_version_leaves_the_old_one_and_says_why() {
    let mut w = World::new();
    w.add("p", "1.0.0", None);
    w.pass();
    w.add("p", "1.1.0", None).verdict = refused(RefusalCode::Unsigned);
    w.pass();
    assert_eq!(w.version(), Some("1.0.0"));
    assert_eq!((w.status.phase, w.reason()), (RolloutPhase::Degraded, "Unsigned"));
    assert!(crate::api::is_true(&w.status.conditions, STALLED));
    // Its own object being refused afterwards (the signer expired) changes nothing.
    w.candidates.retain(|c| c.object == "p-1.0.0");
    w.candidates[0].verdict = refused(RefusalCode::SignerExpired);
    w.pass();
    assert_eq!((w.status.phase, w.version()), (RolloutPhase::Healthy, Some("1.0.0")));
    assert!(!crate::api::is_true(&w.status.conditions, STALLED));
}

#[test]
fn highest_ready_version_is_taken_and_pruning_its_object_changes_nothing() {
    let mut w = World::new();
    w.add("p", "1.9.0", None);
    w.add("p", "1.10.0", None);
    w.pass();
    assert_eq!(w.version(), Some("1.10.0"));
    w.candidates.retain(|c| c.object == "p-1.9.0");
    w.pass();
    assert_eq!((w.version(), w.status.phase), (Some("1.10.0"), RolloutPhase::Healthy));
    w.candidates.clear();
    w.pass();
    assert_eq!((w.version(), w.status.phase), (Some("1.10.0"), RolloutPhase::Healthy));
}

#[test]
fn two_package_names_are_ambiguous_until_one_is_named() {
    let mut w = World::new();
    w.add("p", "1.0.0", None);
    w.pass();
    w.add("q", "3.0.0", None);
    w.pass();
    assert_eq!((w.version(), w.reason()), (Some("1.0.0"), "AmbiguousPackage"));
    w.spec.package = Some(PackageSelector { name: Some("q".into()), ..Default::default() });
    w.pass();
    assert_eq!((w.version(), w.status.phase), (Some("3.0.0"), RolloutPhase::Healthy));
}

#[test]
fn a_range_that_cannot_be_read_or_matches_nothing_changes_nothing() {
    let mut w = World::new();
    w.add("p", "1.0.0", None);
    w.pass();
    w.spec.package = Some(PackageSelector { version: Some("banana".into()), ..Default::default() });
    w.pass();
    assert_eq!((w.version(), w.reason()), (Some("1.0.0"), "InvalidSelector"));
    w.spec.package = Some(PackageSelector { version: Some("^7".into()), ..Default::default() });
    w.pass();
    assert_eq!((w.version(), w.reason()), (Some("1.0.0"), "PackageNotFound"));
    w.spec.package = Some(PackageSelector { digest: Some("sha256:p1.0.0".into()), ..Default::default() });
    w.pass();
    assert_eq!(w.status.phase, RolloutPhase::Healthy);
}

#[test]
fn compromised_key_goes_back_to_the_newest_good_one_even_while_paused() {
    let mut w = World::new();
    w.keys.good = ["a".to_owned(), "b".to_owned()].into();
    for (version, key) in [("1.0.0", "a"), ("1.1.0", "b"), ("1.2.0", "b")] {
        w.add("p", version, Some(key));
        w.pass();
    }
    w.spec.paused = true;
    w.keys.good.remove("b");
    w.keys.compromised.insert("b".into());
    for c in &mut w.candidates {
        if c.verdict.as_ref().is_ok_and(|k| k.as_deref() == Some("b")) {
            c.verdict = refused(RefusalCode::RevokedSigner);
        }
    }
    w.pass();
    assert_eq!(w.version(), Some("1.0.0"));
    assert_eq!(w.status.stable.as_ref().unwrap().revision, 4);
    assert_eq!(w.status.history[0].cause, "SignerCompromised");
    // With the signer's object gone nothing remembers the key but the history: it must not come back.
    w.spec.paused = false;
    w.keys.compromised.clear();
    w.pass();
    assert_eq!(w.version(), Some("1.0.0"));
}

#[test]
fn compromised_key_without_a_good_predecessor_leaves_nothing_also_after_recreation() {
    let mut w = World::new();
    w.add("p", "1.0.0", None);
    w.pass();
    w.keys.good.insert("b".into());
    w.add("p", "1.1.0", Some("b"));
    w.pass();
    w.keys = Keys { compromised: ["b".to_owned()].into(), ..Keys::default() };
    w.candidates.clear();
    w.pass();
    assert_eq!(w.version(), None, "an unsigned predecessor is not by a good signer");
    w.status = TenantRolloutStatus::default();
    w.keys = Keys::default();
    w.pass();
    assert_eq!(w.version(), None);
}

#[test]
fn recreated_rollout_recovers_and_recreated_namespace_does_not() {
    let mut w = World::new();
    w.add("p", "1.0.0", None);
    w.pass();
    w.add("p", "1.1.0", None);
    w.pass();
    let before = w.status.stable.clone();
    w.candidates.clear();
    w.status = TenantRolloutStatus::default();
    w.pass();
    assert_eq!(w.status.stable, before);
    w.uid = "uid-2".into();
    w.recorded.clear();
    w.pass();
    assert_eq!(w.version(), None, "a restored status of another namespace is not a fact");
    assert!(w.status.history.is_empty());
}

#[test]
fn cut_off_between_store_and_status_takes_the_same_revision_again() {
    let mut w = World::new();
    w.add("p", "1.0.0", None);
    let status = w.status.clone();
    w.pass();
    w.status = status;
    w.candidates.clear();
    w.pass();
    assert_eq!(w.status.stable.as_ref().map(|s| s.revision), Some(1));
}

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
            w.pass();
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
                if a.package == b.package && !fallback {
                    prop_assert!(Version::parse(&a.version).unwrap() > Version::parse(&b.version).unwrap());
                }
                prop_assert!(fallback || !w.spec.paused);
            }
            if let (Some(r), None) = (&recorded, &before) && !r.digest.is_empty() && after.is_none() {
                prop_assert!(r.key_fingerprint.as_ref().is_some_and(|k| w.keys.compromised.contains(k)));
            }
            prop_assert!(w.status.history.len() as i64 <= limit + 1);
            let settled = w.status.clone();
            prop_assert_eq!(w.pass(), vec![]);
            prop_assert_eq!(&w.status, &settled);
        }
    }
}
