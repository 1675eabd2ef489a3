//! Which package is in force in a tenant: one pass from what is seen to the next status and what has to be done for it.
//!
//! Pure. It never puts a package in force whose verdict is a refusal, never goes below a version that was in force except away from a
//! compromised key, and says the same thing again when nothing changed. It must never fall back to "something" when it is in doubt:
//! what was in force stays, or nothing is.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use semver::{Version, VersionReq};

use crate::api::{
    HistoryEntry, PackageSelector, READY, RECONCILING, RevisionStatus, RolloutPhase, STALLED, TenantRolloutSpec,
    TenantRolloutStatus, clear_condition, set_condition,
};
use crate::policy::Refusal;
use crate::store::InForceRow;

/// Revisions kept besides the one in force, where `spec.revisionHistoryLimit` is not set.
pub const DEFAULT_HISTORY: usize = 10;
/// Longest history that the status holds.
const MAX_HISTORY: usize = 100;
/// Longest text of a condition.
const MAX_MESSAGE: usize = 200;

/// A PolicyPackage of the namespace, with what verification says of it now.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Name of the object.
    pub object: String,
    /// Name of the package.
    pub package: String,
    /// Its version; None where it is not a semantic version (the verdict says so too).
    pub version: Option<Version>,
    /// Digest that Remit computed.
    pub digest: String,
    /// Fingerprint of the key of its signature (None: unsigned), or why it may not come into force.
    pub verdict: Result<Option<String>, Refusal>,
}

/// Keys of the PolicySigners that cover the tenant, by fingerprint.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// Held by a signer that is not compromised.
    pub good: BTreeSet<String>,
    /// Held by a signer that is.
    pub compromised: BTreeSet<String>,
}

/// Everything that a pass looks at.
pub struct Observation<'a> {
    /// What the user asks for.
    pub spec: &'a TenantRolloutSpec,
    /// What the last pass left; the default where there was none.
    pub status: &'a TenantRolloutStatus,
    /// Generation of the spec.
    pub generation: i64,
    /// Namespace.
    pub tenant: &'a str,
    /// Its UID: facts of another one are not facts.
    pub tenant_uid: &'a str,
    /// The packages of the namespace.
    pub candidates: &'a [Candidate],
    /// What the store says was in force here, newest first. A row with an empty digest says that nothing was, from then on.
    pub recorded: &'a [InForceRow],
    /// Keys of the tenant's signers.
    pub keys: &'a Keys,
    /// Digests whose bytes are at hand.
    pub kept: &'a BTreeSet<String>,
    /// Why what is in force can't be loaded, if it can't.
    pub load_error: Option<&'a str>,
    /// Remit's clock.
    pub now: Timestamp,
}

/// What a pass wants done, in this order, before the status is written.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Keep the package's bytes as a ControllerRevision.
    KeepBytes { digest: String },
    /// Record in the store what is in force from now on.
    PutInForce(InForceRow),
    /// Tell people, once, what happened.
    Event { warning: bool, reason: &'static str, note: String },
}

/// The outcome of a pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Next {
    /// Status to write, `actions` as they were.
    pub status: TenantRolloutStatus,
    /// What to do first.
    pub effects: Vec<Effect>,
}

/// What the selector comes to.
enum Asked<'a> {
    /// The selector can't be read.
    Invalid(String),
    /// No name is given and there are several.
    Ambiguous(BTreeSet<&'a str>),
    /// Matching packages, best first.
    Matching(Vec<&'a Candidate>),
}

/// One pass.
pub fn step(o: &Observation<'_>) -> Next {
    let mut pass = Pass { o, status: o.status.clone(), effects: Vec::new() };
    pass.drop_foreign_facts();
    pass.recover();
    pass.leave_compromised();
    pass.follow_the_selector();
    pass.trim_history();
    pass.status.observed_generation = o.generation;
    // Staged rollouts use these; in one step nothing is ever on its way.
    pass.status.candidate = None;
    pass.status.stage = None;
    pass.status.verdict = None;
    Next { status: pass.status, effects: pass.effects }
}

struct Pass<'a> {
    o: &'a Observation<'a>,
    status: TenantRolloutStatus,
    effects: Vec<Effect>,
}

impl<'a> Pass<'a> {
    /// A re-created namespace inherits nothing, also where somebody restored an old status into it.
    fn drop_foreign_facts(&mut self) {
        let uid = self.o.tenant_uid;
        if self.status.stable.as_ref().is_some_and(|s| s.tenant_uid != uid) {
            self.status.stable = None;
        }
        self.status.history.retain(|h| h.revision.tenant_uid == uid);
    }

    /// A rollout that was deleted and made again in the same namespace goes on where it was: what is in force is a fact of the store.
    fn recover(&mut self) {
        if self.status.stable.is_some() || !self.status.history.is_empty() {
            return;
        }
        let Some(newest) = self.o.recorded.first().filter(|r| !r.digest.is_empty()) else { return };
        self.status.stable = Some(revision(newest));
        self.status.history = self
            .o
            .recorded
            .iter()
            .filter(|r| !r.digest.is_empty())
            .map(|r| HistoryEntry {
                revision: revision(r),
                phase: "completed".into(),
                cause: "Recovered".into(),
                at: Some(Time(r.first_verified)),
            })
            .collect();
        let note = format!("{} {} is in force again, as it was recorded.", newest.package, newest.version);
        self.effects.push(Effect::Event { warning: false, reason: "Recovered", note });
    }

    /// A compromised signer's package leaves force at once, back to the newest one by a good signer, else to nothing.
    fn leave_compromised(&mut self) {
        let Some(stable) = self.status.stable.clone() else { return };
        if !stable.key_fingerprint.as_ref().is_some_and(|k| self.o.keys.compromised.contains(k)) {
            return;
        }
        for entry in &mut self.status.history {
            if entry.revision.key_fingerprint.as_ref().is_some_and(|k| self.o.keys.compromised.contains(k)) {
                entry.phase = "rolled_back".into();
                entry.cause = "SignerCompromised".into();
            }
        }
        let fallback = self
            .status
            .history
            .iter()
            .filter(|h| h.phase != "rolled_back" && self.o.kept.contains(&h.revision.digest))
            .find(|h| h.revision.key_fingerprint.as_ref().is_some_and(|k| self.o.keys.good.contains(k)))
            .map(|h| h.revision.clone());
        let left = format!("{} {} left force: its signer is compromised", stable.package, stable.version);
        match fallback {
            Some(back) => {
                let note = format!("{left}; {} {} is in force.", back.package, back.version);
                self.effects.push(Effect::Event { warning: true, reason: "SignerCompromised", note });
                let first_verified = back.first_verified.as_ref().map_or(self.o.now, |t| t.0);
                self.put(
                    back.package,
                    back.version,
                    back.digest,
                    back.key_fingerprint,
                    first_verified,
                    "SignerCompromised",
                );
            }
            None => {
                let note = format!("{left}; nothing is in force and everything is denied.");
                self.effects.push(Effect::Event { warning: true, reason: "SignerCompromised", note });
                self.status.stable = None;
                // Recorded, so that a rollout made anew does not bring the compromised package back.
                let row = InForceRow {
                    tenant_uid: self.o.tenant_uid.into(),
                    tenant: self.o.tenant.into(),
                    package: String::new(),
                    version: "0.0.0".into(),
                    digest: String::new(),
                    key_fingerprint: None,
                    first_verified: self.o.now,
                    revision: self.next_revision(""),
                };
                self.effects.push(Effect::PutInForce(row));
            }
        }
    }

    fn follow_the_selector(&mut self) {
        let o = self.o;
        let asked = asked(o.spec.package.as_ref(), o.candidates, self.status.stable.as_ref());
        let matching = match asked {
            Asked::Invalid(why) => return self.degraded("InvalidSelector", why),
            Asked::Ambiguous(names) => {
                let names = names.into_iter().collect::<Vec<_>>().join(", ");
                let why = format!("several packages ({names}): name one in spec.package.name");
                return self.degraded("AmbiguousPackage", why);
            }
            Asked::Matching(m) => m,
        };
        let best = matching.iter().find(|c| c.verdict.is_ok() && self.may_follow(c)).copied();
        if o.spec.paused {
            return self.paused(best);
        }
        if let Some(best) = best {
            let first = self.status.stable.is_none() && self.status.history.is_empty();
            let cause = if first { "FirstPackage" } else { "NewVersion" };
            let key = best.verdict.as_ref().ok().cloned().flatten();
            let version = best.version.as_ref().map(Version::to_string).unwrap_or_default();
            let note = format!("{} {version} ({}) is in force.", best.package, short(&best.digest));
            self.put(best.package.clone(), version, best.digest.clone(), key, o.now, cause);
            self.effects.push(Effect::Event { warning: false, reason: cause, note });
        }
        self.conclude(&matching);
    }

    /// Whether the candidate is a step forward from what is in force. Going back is never a matter of what happens to lie around.
    fn may_follow(&self, c: &Candidate) -> bool {
        match &self.status.stable {
            None => c.version.is_some(),
            Some(s) if s.digest == c.digest => false,
            Some(s) if s.package != c.package => c.version.is_some(),
            Some(s) => match (&c.version, Version::parse(&s.version)) {
                (Some(new), Ok(old)) => *new > old,
                _ => false,
            },
        }
    }

    fn conclude(&mut self, matching: &[&Candidate]) {
        let stable = self.status.stable.clone();
        let satisfied = stable.as_ref().is_some_and(|s| selects(self.o.spec.package.as_ref(), s));
        let refused = matching.iter().find_map(|c| match &c.verdict {
            // What is refused below what is in force changes nothing for anybody.
            Err(refusal) if !satisfied || self.is_above(c) => Some((*c, refusal)),
            _ => None,
        });
        if let Some(why) = self.o.load_error.filter(|_| stable == self.o.status.stable && stable.is_some()) {
            return self
                .degraded("Unloadable", format!("what is in force can't be loaded, everything is denied: {why}"));
        }
        if let Some((c, refusal)) = refused {
            let why = format!("{} is refused: {}", c.object, refusal.message);
            return self.degraded(refusal.code.as_str(), why);
        }
        match stable {
            Some(s) if satisfied => {
                self.status.phase = RolloutPhase::Healthy;
                let message = format!("{} {} ({}) is in force", s.package, s.version, short(&s.digest));
                self.ready(true, "InForce", message);
                self.only(None);
            }
            stable => {
                let asked_for_nothing = self.o.spec.package.is_none() && self.o.candidates.is_empty();
                let (reason, message) = match (&stable, asked_for_nothing) {
                    (None, true) => ("NoPackage", "there is no PolicyPackage yet: everything is denied".to_owned()),
                    (None, false) => ("PackageNotFound", "no PolicyPackage matches spec.package".to_owned()),
                    (Some(s), _) => (
                        "PackageNotFound",
                        format!("no PolicyPackage matches spec.package; {} {} stays", s.package, s.version),
                    ),
                };
                self.status.phase = RolloutPhase::Progressing;
                self.ready(false, reason, message.clone());
                self.only(Some((RECONCILING, reason, message)));
            }
        }
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

    fn paused(&mut self, waiting: Option<&Candidate>) {
        self.status.phase = RolloutPhase::Paused;
        self.only(None);
        match (waiting, self.status.stable.clone()) {
            (Some(c), stays) => {
                let version = c.version.as_ref().map(Version::to_string).unwrap_or_default();
                let stays =
                    stays.map_or("nothing is in force".into(), |s| format!("{} {} stays", s.package, s.version));
                self.ready(
                    false,
                    "Paused",
                    format!("{} {version} waits while spec.paused is true; {stays}", c.package),
                );
            }
            (None, Some(s)) => {
                self.ready(true, "Paused", format!("{} {} stays in force while paused", s.package, s.version))
            }
            (None, None) => self.ready(false, "Paused", "nothing is in force while spec.paused is true".to_owned()),
        }
    }

    fn degraded(&mut self, reason: &'static str, why: String) {
        self.status.phase = RolloutPhase::Degraded;
        let stays = match &self.status.stable {
            Some(s) => format!("{} {} stays in force", s.package, s.version),
            None => "nothing is in force".to_owned(),
        };
        let message = clip(&format!("{stays}; {why}"));
        let news =
            !self.o.status.conditions.iter().any(|c| c.type_ == STALLED && c.reason == reason && c.message == message);
        if news {
            self.effects.push(Effect::Event { warning: true, reason: "Degraded", note: message.clone() });
        }
        self.ready(false, reason, message.clone());
        self.only(Some((STALLED, reason, message)));
    }

    fn ready(&mut self, ready: bool, reason: &str, message: String) {
        let message = clip(&message);
        set_condition(&mut self.status.conditions, READY, ready, reason, message, self.o.generation, self.o.now);
    }

    /// Leaves at most one of `Reconciling` and `Stalled`.
    fn only(&mut self, condition: Option<(&'static str, &str, String)>) {
        for type_ in [RECONCILING, STALLED] {
            if condition.as_ref().is_none_or(|c| c.0 != type_) {
                clear_condition(&mut self.status.conditions, type_);
            }
        }
        if let Some((type_, reason, message)) = condition {
            let message = clip(&message);
            set_condition(&mut self.status.conditions, type_, true, reason, message, self.o.generation, self.o.now);
        }
    }

    fn put(
        &mut self,
        package: String,
        version: String,
        digest: String,
        key: Option<String>,
        first_verified: Timestamp,
        cause: &str,
    ) {
        let row = InForceRow {
            tenant_uid: self.o.tenant_uid.into(),
            tenant: self.o.tenant.into(),
            package,
            version,
            revision: self.next_revision(&digest),
            digest: digest.clone(),
            key_fingerprint: key,
            first_verified,
        };
        let stable = revision(&row);
        let entry = HistoryEntry {
            revision: stable.clone(),
            phase: "completed".into(),
            cause: cause.into(),
            at: Some(Time(self.o.now)),
        };
        self.status.history.insert(0, entry);
        self.status.stable = Some(stable);
        self.effects.push(Effect::KeepBytes { digest });
        self.effects.push(Effect::PutInForce(row));
    }

    /// One more than ever before. A pass that was cut off between the store and the status takes the number that it took then.
    fn next_revision(&self, digest: &str) -> i64 {
        let seen = self.status.history.iter().map(|h| h.revision.revision);
        let seen = seen.chain(self.status.stable.iter().map(|s| s.revision)).max().unwrap_or(0);
        match self.o.recorded.first() {
            Some(r) if r.revision > seen && r.digest == digest => r.revision,
            Some(r) => seen.max(r.revision) + 1,
            None => seen + 1,
        }
    }

    fn trim_history(&mut self) {
        let limit = self.o.spec.revision_history_limit.map_or(DEFAULT_HISTORY, |v| usize::try_from(v).unwrap_or(1));
        // The one in force is the first entry and does not count as a former one.
        self.status.history.truncate(limit.clamp(1, MAX_HISTORY - 1) + 1);
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
                return Asked::Ambiguous(names);
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

/// Name of the ControllerRevision that keeps the bytes of `digest` (`sha256:` and hex).
pub fn revision_name(digest: &str) -> String {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    format!("remit-{}", hex.get(..20).unwrap_or(hex))
}

/// What is recorded, as the status says it.
pub fn revision(row: &InForceRow) -> RevisionStatus {
    RevisionStatus {
        tenant_uid: row.tenant_uid.clone(),
        package: row.package.clone(),
        version: row.version.clone(),
        digest: row.digest.clone(),
        key_fingerprint: row.key_fingerprint.clone(),
        // Times in objects have seconds: what is compared with what was read must have no more.
        first_verified: Some(Time(whole_seconds(row.first_verified))),
        controller_revision: Some(revision_name(&row.digest)),
        revision: row.revision,
    }
}

/// `t` without its fraction of a second.
pub fn whole_seconds(t: Timestamp) -> Timestamp {
    Timestamp::from_second(t.as_second()).unwrap_or(t)
}

/// The first 12 hex digits of a digest, for people.
fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

/// Conditions hold about 100 characters, at most 200; the whole text is in the events and the log.
pub fn clip(message: &str) -> String {
    if message.chars().count() <= MAX_MESSAGE {
        return message.to_owned();
    }
    let mut out: String = message.chars().take(MAX_MESSAGE - 1).collect();
    out.push('…');
    out
}

#[cfg(test)]
#[path = "rollout_tests.rs"]
mod tests;
