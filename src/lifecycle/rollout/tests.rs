//! A namespace over simulated time, and what becomes of packages in it.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::api::{HistoryEntry, PackageSelector, READY, RolloutPhase, STALLED, Stage};
use crate::lifecycle::drift::{Cause, Severity};
use crate::lifecycle::evidence::{AgentCounts, AgentDrift, DriftExample, ProofVerdict};
use crate::policy::RefusalCode;

pub(super) const UID: &str = "uid-1";

/// The status, the object and the store as the passes leave them.
#[derive(Clone)]
pub(super) struct World {
    pub spec: TenantRolloutSpec,
    /// What the object says.
    pub status: TenantRolloutStatus,
    pub stored: Option<RolloutState>,
    pub recorded: Vec<InForceRow>,
    pub failed: Vec<RolloutFailure>,
    pub records: Vec<RolloutRecord>,
    pub candidates: Vec<Candidate>,
    pub keys: Keys,
    pub kept: BTreeSet<String>,
    /// Former revisions that could not come into force today.
    pub obstacles: BTreeMap<String, String>,
    /// The epoch that the leader acts by.
    pub in_use: i64,
    pub platform: Vec<String>,
    /// What replay and proof say, of any question that is asked.
    pub replay: Progress<ReplaySummary>,
    pub proof: Progress<ProofSummary>,
    /// What the records say while a candidate is in a stage.
    pub window: Window,
    /// What the records say can't be read.
    pub unread: bool,
    pub gap: Option<String>,
    /// Why the candidate can't be loaded.
    pub candidate_error: Option<String>,
    pub uid: String,
    pub second: i64,
}

/// A replay of 100 decisions without a difference.
pub(super) fn replayed() -> ReplaySummary {
    ReplaySummary { run: "r-1".into(), selected: 100, replayed: 100, ..ReplaySummary::default() }
}

pub(super) fn proved(verdict: ProofVerdict) -> ProofSummary {
    ProofSummary {
        alone: verdict,
        with_approval: verdict,
        counter_examples: vec!["coder may call files/delete".into()],
        unknown_because: None,
        invariants_failed: Vec::new(),
        invariants_unproved: Vec::new(),
        solver_millis: 7,
    }
}

/// Decisions of one agent on both arms without a difference.
pub(super) fn calm(agent: &str, n: u64) -> Window {
    let of = |decisions| AgentCounts { latency_micros: 300 * decisions, decisions, ..AgentCounts::default() };
    let counts = |decisions| vec![AgentCounts { agent: agent.into(), ..of(decisions) }];
    let compared = AgentDrift { agent: agent.into(), compared: 2 * n, ..AgentDrift::default() };
    Window { stable: counts(n), canary: counts(n), shadow: vec![compared], agents: 1, ..Window::default() }
}

pub(super) fn example(severity: Severity, cause: Cause) -> DriftExample {
    DriftExample {
        decision: "d-17".into(),
        severity,
        cause,
        sentence: "coder may call files/delete now".into(),
        candidate_policies: vec!["tenant/core/deletes".into()],
    }
}

/// A stage without a minimum.
pub(super) fn at_once(percent: i64) -> Stage {
    Stage { percent, min_seconds: Some(0), min_decisions: Some(0), gate: None }
}

impl World {
    pub fn new() -> Self {
        Self {
            spec: TenantRolloutSpec { stages: Some(vec![at_once(100)]), ..TenantRolloutSpec::default() },
            status: TenantRolloutStatus::default(),
            stored: None,
            recorded: Vec::new(),
            failed: Vec::new(),
            records: Vec::new(),
            candidates: Vec::new(),
            keys: Keys::default(),
            kept: BTreeSet::new(),
            obstacles: BTreeMap::new(),
            in_use: 0,
            platform: vec!["sha256:base".into()],
            replay: Progress::Done(replayed()),
            proof: Progress::Done(proved(ProofVerdict::Equivalent)),
            window: Window::default(),
            unread: false,
            gap: None,
            candidate_error: None,
            uid: UID.into(),
            second: 1_000,
        }
    }

    /// `p 1.0.0` in force, `p 1.1.0` there, stages of 5, 25 and 100 percent with their defaults.
    pub fn staged() -> Self {
        let mut w = Self::new();
        w.spec.stages = None;
        w.add("p", "1.0.0", None);
        w.pass();
        w.add("p", "1.1.0", None);
        w
    }

    /// The same in the first stage.
    pub fn in_stage_one() -> Self {
        let mut w = Self::staged();
        w.pass();
        w.pass();
        assert_eq!((w.status.stage, w.status.percent), (Some(0), Some(5)), "{:?}", w.status);
        w.window = calm("coder", 100);
        w
    }

    pub fn look(&self) -> Next {
        self.look_with(None)
    }

    /// With evidence of another question than is asked, if one is given.
    pub fn look_with(&self, other: Option<Question>) -> Next {
        self.see(other, step)
    }

    /// What `by` makes of what a pass would look at.
    pub fn see<T>(&self, other: Option<Question>, by: impl FnOnce(&Observation<'_>) -> T) -> T {
        let failed: Vec<RolloutFailure> =
            self.failed.iter().filter(|f| f.spec_hash == spec_hash(&self.spec)).cloned().collect();
        let mut o = Observation {
            spec: &self.spec,
            status: &self.status,
            stored: self.stored.as_ref(),
            generation: 1,
            tenant: "acme",
            tenant_uid: &self.uid,
            candidates: &self.candidates,
            recorded: &self.recorded,
            failed: &failed,
            keys: &self.keys,
            kept: &self.kept,
            obstacles: &self.obstacles,
            epoch_in_use: self.in_use,
            load_error: None,
            candidate_error: self.candidate_error.as_deref(),
            platform: &self.platform,
            evidence: None,
            window: None,
            stage_decisions: 0,
            schema_gap: self.gap.as_deref(),
            now: Timestamp::from_second(self.second).unwrap(),
        };
        let base = resume(&o);
        let question = question(&base, "acme", &self.uid, &self.platform).map(|q| other.unwrap_or(q));
        o.evidence = question.as_ref().map(|question| Evidence { question, replay: &self.replay, proof: &self.proof });
        if base.stage.is_some() && !self.unread {
            o.window = Some(&self.window);
            o.stage_decisions = decisions_of_candidate(&self.window, stage_minimum(&self.spec, &base));
        }
        by(&o)
    }

    /// Carries out the first `n` effects, as before a crash.
    pub fn carry_out(&mut self, next: &Next, n: usize) {
        for effect in next.effects.iter().take(n) {
            match effect {
                Effect::KeepBytes { digest } => drop(self.kept.insert(digest.clone())),
                Effect::Commit(c) => {
                    assert_eq!(c.expected, self.stored.as_ref().map_or(0, |s| s.version));
                    for row in &c.in_force {
                        assert!(self.recorded.first().is_none_or(|r| r.revision < row.revision), "numbers only rise");
                        self.recorded.insert(0, row.clone());
                    }
                    self.failed.extend(c.failures.clone());
                    self.records.extend(c.records.clone());
                    self.stored = Some(RolloutState { version: c.expected + 1, state: c.state.clone() });
                }
                Effect::WriteStatus { .. } => {
                    let actions = std::mem::take(&mut self.status.actions);
                    self.status = TenantRolloutStatus { actions, ..next.status.clone() };
                }
                Effect::RemoveActions(gone) => self.status.actions.retain(|a| !gone.contains(a)),
                Effect::Event { .. } => {}
            }
        }
    }

    pub fn pass(&mut self) -> Vec<Effect> {
        self.second += 1;
        let next = self.look();
        self.carry_out(&next, usize::MAX);
        next.effects
    }

    /// Passes until nothing happens any more.
    pub fn settle(&mut self) {
        for _ in 0..40 {
            let next = self.look();
            if next.effects.is_empty() {
                return;
            }
            self.carry_out(&next, usize::MAX);
        }
        panic!("it never comes to rest: {:?}", self.status);
    }

    pub fn wait(&mut self, seconds: i64) {
        self.second += seconds;
        self.pass();
    }

    pub fn add(&mut self, package: &str, version: &str, key: Option<&str>) -> &mut Candidate {
        self.candidates.push(Candidate {
            object: format!("{package}-{version}"),
            package: package.into(),
            version: Version::parse(version).ok(),
            digest: format!("sha256:{package}{version}{}", key.unwrap_or("")),
            verdict: Ok(key.map(str::to_owned)),
        });
        self.candidates.last_mut().unwrap()
    }

    pub fn ask(&mut self, action: &str, more: impl FnOnce(&mut HumanAction)) {
        let id = format!("a{}", self.status.actions.len() + self.status.handled.len() + 1);
        let mut a = HumanAction { id, actor: "ann".into(), action: action.into(), ..HumanAction::default() };
        a.reason = Some("because".into());
        // What they looked at is what is there.
        let of = if action == "rollback" { &self.status.stable } else { &self.status.candidate };
        a.digest = of.as_ref().map(|r| r.digest.clone());
        more(&mut a);
        self.status.actions.push(a);
    }

    /// Asks, passes, and gives the result.
    pub fn asked(&mut self, action: &str, more: impl FnOnce(&mut HumanAction)) -> String {
        self.ask(action, more);
        self.pass();
        assert!(self.status.actions.is_empty(), "what is handled leaves the list");
        self.status.handled[0].result.clone()
    }

    pub fn version(&self) -> Option<&str> {
        self.status.stable.as_ref().map(|s| s.version.as_str())
    }

    pub fn candidate(&self) -> Option<&str> {
        self.status.candidate.as_ref().map(|s| s.version.as_str())
    }

    pub fn reason(&self) -> &str {
        &self.status.conditions.iter().find(|c| c.type_ == READY).unwrap().reason
    }

    pub fn message(&self) -> &str {
        &self.status.conditions.iter().find(|c| c.type_ == READY).unwrap().message
    }

    pub fn entry(&self, revision: i64) -> &HistoryEntry {
        self.status.history.iter().find(|h| h.revision.revision == revision).unwrap()
    }
}

pub(super) fn refused(code: RefusalCode) -> Result<Option<String>, Refusal> {
    Err(Refusal::new(code, "why"))
}

#[test]
fn first_package_comes_into_force_at_once_and_a_second_pass_is_quiet() {
    let mut w = World::new();
    w.settle();
    assert_eq!((w.version(), w.reason()), (None, "NoPackage"));
    w.add("p", "1.0.0", None);
    let effects = w.pass();
    assert_eq!(w.version(), Some("1.0.0"));
    assert_eq!(w.status.phase, RolloutPhase::Healthy);
    assert_eq!(w.status.history[0].cause, "FirstPackage");
    let commits = |e: &Effect| matches!(e, Effect::Commit(c) if c.in_force.len() == 1 && c.in_force[0].revision == 1);
    assert!(effects.iter().any(commits), "{effects:?}");
    let before = w.status.clone();
    assert_eq!(w.pass(), vec![]);
    assert_eq!(w.status, before);
}

#[test]
fn refused_new_version_leaves_the_old_one_and_says_why() {
    let mut w = World::new();
    w.add("p", "1.0.0", None);
    w.settle();
    w.add("p", "1.1.0", None).verdict = refused(RefusalCode::Unsigned);
    w.settle();
    assert_eq!(w.version(), Some("1.0.0"));
    assert_eq!((w.status.phase, w.reason()), (RolloutPhase::Degraded, "Unsigned"));
    assert!(crate::api::is_true(&w.status.conditions, STALLED));
    // Its own object being refused afterwards (the signer expired) changes nothing.
    w.candidates.retain(|c| c.object == "p-1.0.0");
    w.candidates[0].verdict = refused(RefusalCode::SignerExpired);
    w.settle();
    assert_eq!((w.status.phase, w.version()), (RolloutPhase::Healthy, Some("1.0.0")));
    assert!(!crate::api::is_true(&w.status.conditions, STALLED));
}

#[test]
fn highest_ready_version_is_taken_and_pruning_its_object_changes_nothing() {
    let mut w = World::new();
    w.add("p", "1.9.0", None);
    w.add("p", "1.10.0", None);
    w.settle();
    assert_eq!(w.version(), Some("1.10.0"));
    w.candidates.retain(|c| c.object == "p-1.9.0");
    w.settle();
    assert_eq!((w.version(), w.status.phase), (Some("1.10.0"), RolloutPhase::Healthy));
    w.candidates.clear();
    w.settle();
    assert_eq!((w.version(), w.status.phase), (Some("1.10.0"), RolloutPhase::Healthy));
}

#[test]
fn two_package_names_are_ambiguous_until_one_is_named() {
    let mut w = World::new();
    w.add("p", "1.0.0", None);
    w.settle();
    w.add("q", "3.0.0", None);
    w.settle();
    assert_eq!((w.version(), w.reason()), (Some("1.0.0"), "AmbiguousPackage"));
    w.spec.package = Some(PackageSelector { name: Some("q".into()), ..Default::default() });
    w.settle();
    assert_eq!((w.version(), w.status.phase), (Some("3.0.0"), RolloutPhase::Healthy));
}

#[test]
fn a_range_that_cannot_be_read_or_matches_nothing_changes_nothing() {
    let mut w = World::new();
    w.add("p", "1.0.0", None);
    w.settle();
    w.spec.package = Some(PackageSelector { version: Some("banana".into()), ..Default::default() });
    w.settle();
    assert_eq!((w.version(), w.reason()), (Some("1.0.0"), "InvalidSelector"));
    w.spec.package = Some(PackageSelector { version: Some("^7".into()), ..Default::default() });
    w.settle();
    assert_eq!((w.version(), w.reason()), (Some("1.0.0"), "PackageNotFound"));
    w.spec.package = Some(PackageSelector { digest: Some("sha256:p1.0.0".into()), ..Default::default() });
    w.settle();
    assert_eq!(w.status.phase, RolloutPhase::Healthy);
}

#[test]
fn compromised_key_goes_back_to_the_newest_good_one_even_while_paused() {
    let mut w = World::new();
    w.keys.good = ["a".to_owned(), "b".to_owned()].into();
    for (version, key) in [("1.0.0", "a"), ("1.1.0", "b"), ("1.2.0", "b")] {
        w.add("p", version, Some(key));
        w.settle();
    }
    w.spec.paused = true;
    w.keys.good.remove("b");
    w.keys.compromised.insert("b".into());
    for c in &mut w.candidates {
        if c.verdict.as_ref().is_ok_and(|k| k.as_deref() == Some("b")) {
            c.verdict = refused(RefusalCode::RevokedSigner);
        }
    }
    w.settle();
    assert_eq!(w.version(), Some("1.0.0"));
    assert_eq!(w.status.stable.as_ref().unwrap().revision, 4);
    assert_eq!(w.status.history[0].cause, "SignerCompromised");
    // With the signer's object gone nothing remembers the key but the history: it must not come back.
    w.spec.paused = false;
    w.keys.compromised.clear();
    w.settle();
    assert_eq!(w.version(), Some("1.0.0"));
}

#[test]
fn compromised_key_without_a_good_predecessor_leaves_nothing_also_after_recreation() {
    let mut w = World::new();
    w.add("p", "1.0.0", None);
    w.settle();
    w.keys.good.insert("b".into());
    w.add("p", "1.1.0", Some("b"));
    w.settle();
    w.keys = Keys { compromised: ["b".to_owned()].into(), ..Keys::default() };
    w.candidates.clear();
    w.settle();
    assert_eq!(w.version(), None, "an unsigned predecessor is not by a good signer");
    w.status = TenantRolloutStatus::default();
    w.keys = Keys::default();
    w.settle();
    assert_eq!(w.version(), None);
}

#[test]
fn recreated_rollout_recovers_and_recreated_namespace_does_not() {
    let mut w = World::new();
    w.add("p", "1.0.0", None);
    w.settle();
    w.add("p", "1.1.0", None);
    w.settle();
    let before = w.status.stable.clone();
    w.candidates.clear();
    w.status = TenantRolloutStatus::default();
    w.settle();
    assert_eq!(w.status.stable, before);
    w.uid = "uid-2".into();
    w.recorded.clear();
    w.stored = None;
    w.settle();
    assert_eq!(w.version(), None, "a restored status of another namespace is not a fact");
    assert!(w.status.history.is_empty());
}

#[test]
fn cut_off_between_store_and_status_takes_the_same_revision_again() {
    let mut w = World::new();
    w.add("p", "1.0.0", None);
    let status = w.status.clone();
    w.settle();
    w.status = status;
    w.candidates.clear();
    w.settle();
    assert_eq!(w.status.stable.as_ref().map(|s| s.revision), Some(1));
}
