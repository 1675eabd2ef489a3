//! What the spec asks for, and whether it may start. It never starts a package whose verdict is a refusal, or one that failed under
//! this spec; and goes below what was in force only where the spec names exactly a package of this tenant's own history.

use std::collections::BTreeSet;

use semver::{Op, Version, VersionReq};

use super::history::STORE_RESTORED;
use super::words::{named, short};
use super::{Candidate, Pass};
use crate::api::{HistoryEntry, HoldReason, PackageSelector, RevisionStatus, RolloutPhase, TenantRolloutSpec};
use crate::policy::RefusalCode;
use crate::store::RolloutFailure;

/// What the selector comes to.
enum Asked<'a> {
    /// The selector can't be read.
    Invalid(String),
    /// No name is given and there are several.
    Ambiguous(String),
    /// Matching packages, best first.
    Matching(Vec<&'a Candidate>),
}

/// Whether the spec names exactly one package: by digest, or by `=1.2.3`.
pub fn is_exact(spec: &TenantRolloutSpec) -> bool {
    let Some(s) = &spec.package else { return false };
    let one = |v: &String| {
        VersionReq::parse(v).is_ok_and(
            |r| matches!(r.comparators.as_slice(), [c] if c.op == Op::Exact && c.minor.is_some() && c.patch.is_some()),
        )
    };
    s.digest.is_some() || s.version.as_ref().is_some_and(one)
}

impl Pass<'_> {
    /// Another spec is another rollout, from stable; and without its budgets there is none.
    pub(super) fn follow_the_spec(&mut self) {
        let Some(c) = self.status.candidate.clone() else { return };
        if let Some(gap) = self.o.schema_gap {
            let note = format!("{} is taken back: the installed TenantRollout definition lacks {gap}.", named(&c));
            self.drop_candidate("OutdatedDefinition", None, note.clone());
            self.event(true, "OutdatedDefinition", note);
        } else if self.status.spec_hash.as_ref() != Some(&self.spec_hash) {
            let note = format!("{} is taken back: the spec was changed during its rollout.", named(&c));
            self.drop_candidate("SpecChanged", None, note.clone());
            self.event(false, "SpecChanged", note);
        }
    }

    /// The packages of the namespace, and where the spec is exact those of the history whose objects are gone.
    fn packages(&self) -> Vec<Candidate> {
        let mut all = self.o.candidates.to_vec();
        if !is_exact(self.o.spec) {
            return all;
        }
        for row in self.o.recorded {
            let known = all.iter().any(|c| c.digest == row.digest);
            // Its object would be refused: that it is gone makes it no better.
            let good = match &row.key_fingerprint {
                Some(k) => self.o.keys.good.contains(k),
                None => !self.o.keys.required,
            };
            if !known && good && self.o.kept.contains(&row.digest) {
                all.push(Candidate {
                    object: super::revision_name(&row.digest),
                    package: row.package.clone(),
                    version: Version::parse(&row.version).ok(),
                    digest: row.digest.clone(),
                    verdict: Ok(row.key_fingerprint.clone()),
                });
            }
        }
        all
    }

    /// Key of a package that may start now as far as its verdict goes; None: it may not.
    fn usable(&self, c: &Candidate) -> Option<Option<String>> {
        let refusal = match &c.verdict {
            Ok(Some(key)) if self.o.keys.compromised.contains(key) => return None,
            Ok(key) => return Some(key.clone()),
            Err(refusal) => refusal,
        };
        // `git revert`: what was in force here and is named exactly is below the mark on purpose. Downgrade is the last thing that
        // verification looks at: signature, bytes and tests are right.
        let row = self.o.recorded.iter().find(|r| r.digest == c.digest)?;
        let good = row.key_fingerprint.as_ref().is_none_or(|k| self.o.keys.good.contains(k));
        let allowed = refusal.code == RefusalCode::Downgrade && is_exact(self.o.spec) && good;
        allowed.then(|| row.key_fingerprint.clone())
    }

    /// Whether the candidate is a step forward from what is in force. Going back is never a matter of what happens to lie around.
    fn may_follow(&self, c: &Candidate) -> bool {
        match &self.status.stable {
            None => c.version.is_some(),
            Some(s) if s.digest == c.digest => false,
            Some(_) if is_exact(self.o.spec) && self.was_in_force().contains(&c.digest) => c.version.is_some(),
            Some(s) if s.package != c.package => c.version.is_some(),
            Some(s) => match (&c.version, Version::parse(&s.version)) {
                (Some(new), Ok(old)) => *new > old,
                _ => false,
            },
        }
    }

    /// Why this package does not start under this spec.
    pub(super) fn failure_of(&self, digest: &str) -> Option<RolloutFailure> {
        let here = self.failures.iter().filter(|f| f.spec_hash == self.spec_hash);
        here.chain(self.o.failed.iter().filter(|f| f.spec_hash == self.spec_hash)).find(|f| f.digest == digest).cloned()
    }

    /// Whether a newer package than the one on its way waits. It replaces that one: a fix must not wait for what it fixes.
    pub(super) fn is_superseded(&self, running: &RevisionStatus) -> bool {
        let all = self.packages();
        let Asked::Matching(matching) = asked(self.o.spec.package.as_ref(), &all, self.status.stable.as_ref()) else {
            return false;
        };
        let best = matching.into_iter().find(|c| self.usable(c).is_some() && self.may_follow(c));
        let newer = |c: &Candidate| match (&c.version, Version::parse(&running.version)) {
            (Some(new), Ok(old)) => c.package != running.package || *new > old,
            _ => false,
        };
        best.is_some_and(|c| c.digest != running.digest && newer(c) && self.failure_of(&c.digest).is_none())
    }

    /// Without a candidate: what the selector says.
    pub(super) fn select(&mut self) {
        let o = self.o;
        if self.waits_after_restore() {
            let why = format!(
                "the store was put back and has not the last steps; look what is to be in force, then kubectl remit rollout resume -n {}",
                o.tenant
            );
            return self.degraded(STORE_RESTORED, why);
        }
        let all = self.packages();
        let matching = match asked(o.spec.package.as_ref(), &all, self.status.stable.as_ref()) {
            Asked::Invalid(why) => return self.degraded("InvalidSelector", why),
            Asked::Ambiguous(why) => return self.degraded("AmbiguousPackage", why),
            Asked::Matching(m) => m,
        };
        let best = matching.iter().find_map(|c| Some((*c, self.usable(c)?)).filter(|(c, _)| self.may_follow(c)));
        if o.spec.paused {
            return self.paused(best.map(|(c, _)| c), "spec.paused is true");
        }
        let Some((best, key)) = best else { return self.conclude(&matching, None) };
        let held = self.is_held();
        if self.is_first() && !held {
            let cause = "FirstPackage";
            let package = self.revision_of(best, key);
            self.event(false, cause, format!("{} ({}) is in force.", named(&package), short(&package.digest)));
            self.put(&package, cause, None, None);
            return self.conclude(&matching, None);
        }
        if let Some(failure) = self.failure_of(&best.digest) {
            return self.conclude(&matching, Some(failure));
        }
        if let Some(gap) = o.schema_gap {
            let why = format!(
                "no rollout starts: the installed TenantRollout definition lacks {gap}; apply the chart's CRDs"
            );
            return self.degraded("OutdatedDefinition", why);
        }
        if held {
            return self.paused(Some(best), &self.paused_by());
        }
        let best = best.clone();
        self.start(&best, key);
    }

    /// A new revision begins: replay and proof come first.
    fn start(&mut self, c: &Candidate, key: Option<String>) {
        let cause = if self.was_in_force().contains(&c.digest) { "Reverted" } else { "NewVersion" };
        let package = self.revision_of(c, key);
        let candidate = RevisionStatus { revision: self.next_revision(), ..package };
        let entry = HistoryEntry {
            revision: candidate.clone(),
            phase: "queued".into(),
            cause: cause.into(),
            message: None,
            at: self.time(),
        };
        self.status.history.insert(0, entry);
        self.keep.push(candidate.digest.clone());
        self.status.candidate = Some(candidate.clone());
        self.status.spec_hash = Some(self.spec_hash.clone());
        self.status.progress = Some("queued".into());
        self.status.progressed_at = self.time();
        self.status.evidence_platform.clear();
        (self.status.verdict, self.status.replay, self.status.proof) = (None, None, None);
        self.record(&candidate, "queued", cause, None, None);
        if let Some(why) = self.nothing_in_force() {
            self.event(true, "NothingInForce", why.clone());
            self.hold(HoldReason::Gate, None);
            return self.waiting("NothingInForce", why);
        }
        let note = format!("{} ({}) waits for replay and proof.", named(&candidate), short(&candidate.digest));
        self.event(false, "Queued", note);
        self.describe("replay and proof begin");
    }

    /// Where something was in force once and nothing is now (its key was compromised), nothing comes into force by itself: there is
    /// nothing to compare it with, and nobody knows what else that key has signed. Why, and what helps.
    pub(super) fn nothing_in_force(&self) -> Option<String> {
        let candidate = self.status.candidate.as_ref().filter(|_| self.status.stable.is_none())?;
        Some(format!(
            "nothing is in force, everything is denied; to put {} in force: kubectl remit rollout promote --full -n {} --reason …",
            named(candidate),
            self.o.tenant
        ))
    }

    /// Whether a person has paused it.
    pub(super) fn is_held(&self) -> bool {
        self.status.hold.as_ref().is_some_and(|h| h.reason == HoldReason::Person)
    }

    fn conclude(&mut self, matching: &[&Candidate], failure: Option<RolloutFailure>) {
        let stable = self.status.stable.clone();
        let satisfied = stable.as_ref().is_some_and(|s| selects(self.o.spec.package.as_ref(), s));
        let refused = matching.iter().find_map(|c| match &c.verdict {
            // What is refused below what is in force changes nothing for anybody.
            Err(refusal) if self.usable(c).is_none() && (!satisfied || self.is_above(c)) => Some((*c, refusal)),
            _ => None,
        });
        if let Some(why) = self.o.load_error.filter(|_| stable == self.o.status.stable && stable.is_some()) {
            return self
                .degraded("Unloadable", format!("what is in force can't be loaded, everything is denied: {why}"));
        }
        if let Some(failure) = failure.or_else(|| self.newest_failure()) {
            return self.degraded(&failure.cause, failure.message);
        }
        if let Some((c, refusal)) = refused {
            let why = format!("{} is refused: {}", c.object, refusal.message);
            return self.degraded(refusal.code.as_str(), why);
        }
        match stable {
            Some(s) if satisfied => {
                self.status.phase = RolloutPhase::Healthy;
                self.ready(true, "InForce", format!("{} ({}) is in force", named(&s), short(&s.digest)));
                self.only(None);
            }
            stable => {
                let asked_for_nothing = self.o.spec.package.is_none() && self.o.candidates.is_empty();
                let (reason, message) = match (&stable, asked_for_nothing) {
                    (None, true) => ("NoPackage", "there is no PolicyPackage yet: everything is denied".to_owned()),
                    (None, false) => ("PackageNotFound", "no PolicyPackage matches spec.package".to_owned()),
                    (Some(s), _) => {
                        ("PackageNotFound", format!("no PolicyPackage matches spec.package; {} stays", named(s)))
                    }
                };
                self.progressing(reason, message);
            }
        }
    }

    /// The failure that is the newest thing that happened here, also where its object is gone by now.
    fn newest_failure(&self) -> Option<RolloutFailure> {
        let stable = self.status.stable.as_ref()?.revision;
        let newest =
            self.status.history.iter().filter(|h| h.revision.revision > stable).max_by_key(|h| h.revision.revision)?;
        self.failure_of(&newest.revision.digest).filter(|_| newest.phase == "rolled_back")
    }

    /// Whether the candidate would replace what is in force, were it not refused.
    fn is_above(&self, c: &Candidate) -> bool {
        let Some(stable) = &self.status.stable else { return true };
        if c.digest == stable.digest {
            return false;
        }
        match (&c.version, Version::parse(&stable.version)) {
            (Some(new), Ok(old)) if c.package == stable.package => *new >= old,
            (None, _) => false,
            _ => true,
        }
    }

    /// In words, who paused it.
    pub(super) fn paused_by(&self) -> String {
        let by = self.status.hold.as_ref().and_then(|h| h.by.as_deref()).unwrap_or("somebody");
        format!("{by} paused it (kubectl remit rollout resume -n {})", self.o.tenant)
    }

    fn paused(&mut self, waiting: Option<&Candidate>, why: &str) {
        let version = |c: &Candidate| c.version.as_ref().map(Version::to_string).unwrap_or_default();
        match (waiting, self.status.stable.clone()) {
            (Some(c), _) => {
                let message = format!("{} {} waits while {why}; {}", c.package, version(c), self.stays());
                self.waiting("Paused", message);
            }
            (None, Some(s)) => {
                self.status.phase = RolloutPhase::Paused;
                self.ready(true, "Paused", format!("{} stays in force while paused", named(&s)));
                self.only(None);
            }
            (None, None) => self.waiting("Paused", format!("nothing is in force while {why}")),
        }
    }
}

fn asked<'a>(selector: Option<&PackageSelector>, all: &'a [Candidate], stable: Option<&RevisionStatus>) -> Asked<'a> {
    let mut matching: Vec<&Candidate> = Vec::new();
    match selector {
        Some(PackageSelector { digest: Some(digest), .. }) => {
            matching.extend(all.iter().filter(|c| c.digest == *digest))
        }
        selector => {
            let range = match selector.and_then(|s| s.version.as_deref()).map(VersionReq::parse).transpose() {
                Ok(range) => range,
                Err(e) => return Asked::Invalid(format!("spec.package.version: {e}")),
            };
            let name = selector.and_then(|s| s.name.as_deref());
            let names: BTreeSet<&str> = all.iter().map(|c| c.package.as_str()).collect();
            if name.is_none() && names.len() > 1 {
                let names = names.into_iter().collect::<Vec<_>>().join(", ");
                return Asked::Ambiguous(format!("several packages ({names}): name one in spec.package.name"));
            }
            matching.extend(all.iter().filter(|c| {
                name.is_none_or(|n| n == c.package)
                    && range.as_ref().is_none_or(|r| c.version.as_ref().is_some_and(|v| r.matches(v)))
            }));
        }
    }
    let in_force = stable.map(|s| s.digest.as_str());
    // Of equal versions first what is in force, then what may be: the others are named as refused only where nothing better is there.
    matching.sort_by(|a, b| {
        let rank = |c: &Candidate| (Some(c.digest.as_str()) == in_force, c.verdict.is_ok());
        b.version.cmp(&a.version).then_with(|| rank(b).cmp(&rank(a))).then_with(|| a.digest.cmp(&b.digest))
    });
    Asked::Matching(matching)
}

/// Whether the selector names what is in force.
fn selects(selector: Option<&PackageSelector>, stable: &RevisionStatus) -> bool {
    let Some(s) = selector else { return true };
    s.digest.as_ref().is_none_or(|d| *d == stable.digest)
        && s.name.as_ref().is_none_or(|n| *n == stable.package)
        && s.version.as_ref().is_none_or(|v| match (VersionReq::parse(v), Version::parse(&stable.version)) {
            (Ok(range), Ok(version)) => range.matches(&version),
            _ => false,
        })
}
