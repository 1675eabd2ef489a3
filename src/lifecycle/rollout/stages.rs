//! The way of a candidate: replay and proof, stage by stage, to everybody or back.
//!
//! It takes a stage only on evidence of exactly this baseline, candidate and platform; a breach at any stage takes it back at once,
//! whatever else it waits for; and what waits for a person is never timed out.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::budgets::{Limits, deadline, is_manual, min_decisions, min_replayed, min_seconds, needed, stage_of, stages};
use super::rates::replayed_that_count;
use super::verdict::{self, PREFLIGHT};
use super::words::{clip_to, named, short};
use super::{Evidence, Pass, question};
use crate::api::{
    BudgetCheck, CheckResult, HoldReason, OnInconclusive, RevisionStatus, RolloutHold, RolloutVerdict, Stage,
};
use crate::lifecycle::evidence::Progress;
use crate::store::RolloutFailure;

/// Whether the candidate may take its next step.
pub(super) enum Standing {
    /// Not yet; why, in words.
    Waits(String),
    /// Only with a person: what for, the condition's reason, and its message.
    Holds(HoldReason, &'static str, String),
    /// Never.
    Fails(String),
    /// Now.
    Passes,
}

impl Pass<'_> {
    /// Takes the candidate back where the records say so. Nothing comes before it.
    pub(super) fn breach(&mut self) {
        let (Some(candidate), Some(stage)) = (self.status.candidate.clone(), self.stage()) else { return };
        if let Some(why) = self.o.candidate_error {
            return self.fail("CandidateUnloadable", format!("it can't be loaded, and its sessions are denied: {why}"));
        }
        let Some(window) = self.o.window else { return };
        let spec = self.o.spec;
        let now = verdict::of_window(spec, &candidate.digest, needed(&Limits::from(spec), &stage), window).checks;
        let bad = now.iter().find(|c| c.result == CheckResult::Fail).map(sentence);
        let mut checks = self.preflight_checks();
        checks.push(verdict::samples(self.o.stage_decisions, min_decisions(&stage)));
        checks.extend(now);
        self.status.verdict = Some(verdict::overall(checks));
        if let Some(why) = bad {
            self.fail("BudgetExceeded", why);
        }
    }

    /// With a candidate its next step; without one what the spec asks for.
    pub(super) fn go_on(&mut self) {
        let Some(candidate) = self.status.candidate.clone() else { return self.select() };
        if !self.o.spec.paused && !self.is_held() && self.is_superseded(&candidate) {
            let note = format!("{} is taken back: a newer package is there.", named(&candidate));
            self.drop_candidate("Superseded", None, note.clone());
            self.event(false, "Superseded", note);
            return self.select();
        }
        if self.advanced() {
            return self.describe("");
        }
        let standing = self.standing();
        if let Standing::Fails(why) = standing {
            self.fail("BudgetExceeded", why);
            return self.select();
        }
        if self.o.spec.paused {
            self.hold(HoldReason::Spec, None);
            let message = format!("{} waits while spec.paused is true; {}", named(&candidate), self.share());
            return self.waiting("Paused", message);
        }
        if self.status.hold.as_ref().is_some_and(|h| h.reason == HoldReason::Person) {
            let message = format!("{}: {}; {}", named(&candidate), self.paused_by(), self.share());
            return self.waiting("Paused", message);
        }
        match standing {
            Standing::Waits(why) => {
                self.unhold();
                if self.is_overdue() {
                    let seconds = deadline(self.o.spec);
                    self.fail("ProgressDeadlineExceeded", format!("no progress for {seconds} s: {why}"));
                    return self.select();
                }
                self.describe(&why);
            }
            Standing::Holds(reason, word, message) => {
                self.hold(reason, None);
                self.waiting(word, message);
            }
            Standing::Passes | Standing::Fails(_) => {
                self.unhold();
                self.advance(None);
                match self.status.candidate {
                    Some(_) => self.describe(""),
                    None => self.select(),
                }
            }
        }
    }

    /// Whether the candidate may go on by itself: evidence first, then the stage.
    pub(super) fn standing(&mut self) -> Standing {
        if let Some(why) = self.nothing_in_force() {
            return Standing::Holds(HoldReason::Gate, "NothingInForce", why);
        }
        let asked = question(&self.status, self.o.tenant, self.o.tenant_uid, self.o.platform);
        match asked {
            None if self.o.platform.is_empty() => Standing::Waits("the platform's packages can't be loaded".into()),
            None => self.of_stage(),
            Some(asked) => {
                // Evidence of another question is no evidence.
                let evidence = self.o.evidence.filter(|e| *e.question == asked);
                let standing = self.of_evidence(evidence);
                let accepted = matches!(standing, Standing::Passes);
                if accepted && self.status.stage.is_some() {
                    self.status.evidence_platform = asked.platform;
                    return self.of_stage();
                }
                standing
            }
        }
    }

    fn of_evidence(&mut self, evidence: Option<Evidence<'_>>) -> Standing {
        let Some(candidate) = self.status.candidate.clone() else { return Standing::Waits(String::new()) };
        let Some(Evidence { replay, proof, .. }) = evidence else {
            return Standing::Waits("replay and proof begin".into());
        };
        let (spec, mut checks, mut waits) = (self.o.spec, Vec::new(), None);
        match replay {
            Progress::Running { done, total } => {
                self.status.replay = Some(format!("{done} of {total} decisions are replayed"));
                waits = Some("its replay is under way".to_owned());
            }
            Progress::Failed(why) => {
                self.status.replay = Some(clip_to(&format!("failed: {why}"), 1024));
                waits = Some(format!("its replay failed and is tried again: {why}"));
            }
            Progress::Done(s) => {
                self.status.replay = Some(format!(
                    "{} of {} decisions replayed ({} not replayable): {} critical, {} high, {} medium, {} low; {} expansions, {} restrictions; run {}",
                    s.replayed,
                    s.selected,
                    s.not_replayable,
                    s.critical,
                    s.high,
                    s.medium,
                    s.low,
                    s.expansions,
                    s.restrictions,
                    s.run
                ));
                checks.extend(verdict::of_replay(spec, &candidate.digest, s));
            }
        }
        match proof {
            Progress::Running { .. } => {
                self.status.proof = Some("under way".into());
                waits.get_or_insert("its proof is under way".to_owned());
            }
            Progress::Failed(why) => {
                self.status.proof = Some(clip_to(&format!("failed: {why}"), 1024));
                if Limits::from(spec).proof != crate::api::ProofBudget::NotRequired {
                    waits.get_or_insert(format!("its proof failed and is tried again: {why}"));
                }
            }
            Progress::Done(s) => {
                let more = s.counter_examples.first().or(s.unknown_because.as_ref());
                let more = more.map(|m| format!(": {m}")).unwrap_or_default();
                let text = format!(
                    "{}; with a human {}; {} ms in the solver{more}",
                    s.alone.as_str(),
                    s.with_approval.as_str(),
                    s.solver_millis
                );
                self.status.proof = Some(clip_to(&text, 1024));
                checks.extend(verdict::of_proof(spec, s));
            }
        }
        let bad = checks.iter().find(|c| c.result == CheckResult::Fail).map(sentence);
        let unsure = |name: &str| {
            checks.iter().find(|c| c.name.starts_with(name) && c.result == CheckResult::Inconclusive).cloned()
        };
        let (unproved, unreplayed) = (unsure("proof"), unsure("replay"));
        let mut all = checks;
        // In a stage what its records say stands beside it.
        let verdict = self.status.verdict.take().unwrap_or_default();
        all.extend(verdict.checks.into_iter().filter(|c| !PREFLIGHT.contains(&c.name.as_str())));
        self.status.verdict = Some(verdict::overall(all));
        if let Some(why) = bad {
            return Standing::Fails(why);
        }
        if let Some(why) = waits {
            return Standing::Waits(why);
        }
        let (name, tenant) = (named(&candidate), self.o.tenant);
        if let Some(c) = unproved {
            let why = c.reason.unwrap_or(c.value);
            let message = format!("{name} needs a proof, which is {why}");
            return Standing::Holds(HoldReason::Proof, "ProofRequired", message);
        }
        if unreplayed.is_some() && spec.on_inconclusive != Some(OnInconclusive::Proceed) {
            let needed = min_replayed(spec).max(1);
            let made = match replay {
                Progress::Done(s) => replayed_that_count(s, needed).min(needed),
                _ => 0,
            };
            let message = format!(
                "{} of {needed} decisions are missing to judge {name} by replay; to go on: kubectl remit rollout promote -n {tenant}",
                needed - made
            );
            return Standing::Holds(HoldReason::Inconclusive, "Inconclusive", message);
        }
        Standing::Passes
    }

    /// The stage: its time, its decisions, what they say, its gate.
    fn of_stage(&mut self) -> Standing {
        let (Some(candidate), Some(stage)) = (self.status.candidate.clone(), self.stage()) else {
            return Standing::Passes;
        };
        // What can't be read may be a breach: no stage is left on it.
        let Some(window) = self.o.window else {
            return Standing::Waits("what the records say of it can't be read".into());
        };
        let started = self.status.stage_started.as_ref().map_or(self.now, |t| t.0);
        if self.now.as_second() < started.as_second().saturating_add(min_seconds(&stage)) {
            return Standing::Waits(String::new());
        }
        let (name, tenant, nth) = (named(&candidate), self.o.tenant, self.nth());
        if self.o.spec.on_inconclusive != Some(OnInconclusive::Proceed) {
            let least = min_decisions(&stage);
            let missing = least.saturating_sub(self.o.stage_decisions);
            let lacks = if missing > 0 {
                Some(format!("{missing} of {least} decisions are missing to judge {name} in {nth}"))
            } else {
                let enough = needed(&Limits::from(self.o.spec), &stage);
                let weighed = verdict::of_window(self.o.spec, &candidate.digest, enough, window);
                weighed.holds.map(|c| format!("{name} can't be judged in {nth}: {}", sentence(&c)))
            };
            if let Some(lacks) = lacks {
                let message = format!("{lacks}; to go on: kubectl remit rollout promote -n {tenant}");
                return Standing::Holds(HoldReason::Inconclusive, "Inconclusive", message);
            }
        }
        if is_manual(&stage) {
            let message = format!("{name}: {nth} is over; to go on: kubectl remit rollout promote -n {tenant}");
            return Standing::Holds(HoldReason::Gate, "WaitsForPromotion", message);
        }
        Standing::Passes
    }

    /// The next stage, or force.
    pub(super) fn advance(&mut self, by: Option<&str>) {
        let Some(candidate) = self.status.candidate.clone() else { return };
        let stages = stages(self.o.spec);
        let next = self.status.stage.map_or(0, |i| i.saturating_add(1));
        let Some(stage) = usize::try_from(next).ok().and_then(|i| stages.get(i)) else {
            let cause = self.cause_of(&candidate);
            return self.complete(&cause, by, None);
        };
        let last = usize::try_from(next).is_ok_and(|i| i + 1 == stages.len());
        let s = &mut self.status;
        s.stage = Some(next);
        s.percent = Some(stage.percent.clamp(1, 100));
        s.shadow_percent = Some(Limits::from(self.o.spec).shadow_percent);
        s.stage_started = Some(Time(self.now));
        s.progressed_at = Some(Time(self.now));
        s.evidence_platform = self.o.platform.to_vec();
        s.hold = None;
        let phase = if last { "promoting" } else { "canary" };
        s.progress = Some(phase.into());
        let cause = self.cause_of(&candidate);
        self.entry(&candidate, phase, &cause, None);
        self.record(&candidate, phase, "StageReached", by, None);
        let note = format!("{} {}.", named(&candidate), self.share());
        self.event(false, "StageReached", note);
    }

    /// It is taken back and does not start again under this spec.
    pub(super) fn fail(&mut self, cause: &'static str, why: String) {
        let Some(candidate) = self.status.candidate.clone() else { return };
        let message = format!("{} ({}) was taken back: {why}", named(&candidate), short(&candidate.digest));
        self.remember(&candidate.digest, cause, &message);
        self.drop_candidate(cause, None, message.clone());
        self.event(true, "RolledBack", message);
        self.failed_now = true;
        self.taken_back = true;
    }

    /// This pair of spec and package does not start again by itself.
    pub(super) fn remember(&mut self, digest: &str, cause: &str, message: &str) {
        self.failures.push(RolloutFailure {
            spec_hash: self.spec_hash.clone(),
            digest: digest.to_owned(),
            cause: cause.to_owned(),
            message: clip_to(message, 1024),
            at: self.now,
        });
    }

    /// Where it stands, without numbers that change.
    pub(super) fn describe(&mut self, why: &str) {
        let Some(c) = self.status.candidate.clone() else { return };
        let name = format!("{} ({})", named(&c), short(&c.digest));
        let (reason, mut message) = match self.status.progress.as_deref() {
            Some("canary") => ("Canary", format!("{name} {}", self.share())),
            Some("promoting") => ("Promoting", format!("{name} {}", self.share())),
            _ => return self.progressing("Queued", format!("{name} waits: {why}")),
        };
        if !why.is_empty() {
            message = format!("{message}; {why}");
        }
        self.progressing(reason, message);
    }

    /// Where it stands after what was urgent, until the packages are judged.
    pub(super) fn tell_meanwhile(&mut self) {
        if let Some(c) = self.status.candidate.clone() {
            let paused = self.status.hold.as_ref().is_some_and(|h| h.reason == HoldReason::Person);
            let message = || format!("{}: {}; {}", named(&c), self.paused_by(), self.share());
            return match paused {
                true => self.waiting("Paused", message()),
                false => self.describe(""),
            };
        }
        if let Some(failure) = self.failures.last().cloned() {
            self.degraded(&failure.cause, failure.message);
        }
    }

    /// The share of sessions, in words.
    pub(super) fn share(&self) -> String {
        match self.status.percent {
            Some(100) => format!("decides for all sessions, {}", self.nth()),
            Some(percent) => format!("decides for {percent} % of sessions, {}", self.nth()),
            None => "no session is decided by it yet".to_owned(),
        }
    }

    fn nth(&self) -> String {
        format!("stage {} of {}", self.status.stage.unwrap_or(0) + 1, stages(self.o.spec).len())
    }

    /// The stage as entries of people name it: from 1, and 0 before stage one.
    pub(super) fn stage_number(&self) -> i64 {
        self.status.stage.map_or(0, |i| i.saturating_add(1))
    }

    /// The stage that it is in.
    fn stage(&self) -> Option<Stage> {
        stage_of(self.o.spec, &self.status)
    }

    /// Whether a person moved it in this pass: what was counted belongs to the stage before.
    pub(super) fn advanced(&self) -> bool {
        self.records.iter().any(|r| r.cause == "StageReached")
    }

    fn cause_of(&self, candidate: &RevisionStatus) -> String {
        let entry = self.status.history.iter().find(|h| h.revision.revision == candidate.revision);
        entry.map_or("NewVersion".to_owned(), |h| h.cause.clone())
    }

    /// What replay and proof said when they were accepted.
    fn preflight_checks(&self) -> Vec<BudgetCheck> {
        let RolloutVerdict { checks, .. } = self.status.verdict.clone().unwrap_or_default();
        checks.into_iter().filter(|c| PREFLIGHT.contains(&c.name.as_str()) && c.result != CheckResult::Fail).collect()
    }

    pub(super) fn hold(&mut self, reason: HoldReason, by: Option<&str>) {
        if self.status.hold.as_ref().is_none_or(|h| h.reason != reason) {
            let since = self.time();
            self.status.hold = Some(RolloutHold { reason, by: by.map(str::to_owned), since });
        }
    }

    /// It does not wait for a person any more: from here the deadline counts.
    pub(super) fn unhold(&mut self) {
        if self.status.hold.take().is_some() {
            self.status.progressed_at = self.time();
        }
    }

    fn is_overdue(&self) -> bool {
        let Some(since) = &self.status.progressed_at else { return false };
        let stage = self.stage().map_or(0, |s| min_seconds(&s));
        let until = since.0.as_second().saturating_add(stage).saturating_add(deadline(self.o.spec));
        self.now.as_second() > until
    }
}

/// A check, for people: what, how much, the threshold, and by which decision and policy.
fn sentence(c: &BudgetCheck) -> String {
    let why = c.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
    format!("{} is {}, budget {}{why}", c.name, c.value, c.threshold)
}
