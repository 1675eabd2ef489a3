//! What was in force and what comes into force: the one place that changes `stable`.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::words::{named, short};
use super::{Candidate, Pass};
use crate::api::{HistoryEntry, HoldReason, RevisionStatus, TenantRolloutStatus};
use crate::store::InForceRow;

/// Revisions kept besides the one in force, where `spec.revisionHistoryLimit` is not set.
pub const DEFAULT_HISTORY: usize = 10;
/// Cause of what follows where the store was put back from a backup; also who holds the rollout then.
pub(super) const STORE_RESTORED: &str = "StoreRestored";
/// Longest history that the status holds.
const MAX_HISTORY: usize = 100;

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

/// Whether the revision left force because its signer was compromised. (What came into force in its place has that cause too.)
pub fn left_compromised(h: &HistoryEntry) -> bool {
    h.phase == "rolled_back" && h.cause == "SignerCompromised"
}

impl Pass<'_> {
    /// Fingerprints that are compromised for this namespace: those that were ever declared so, and those of what left for that.
    pub(super) fn compromised_here(&self) -> BTreeSet<String> {
        let left = self.status.history.iter().filter(|h| left_compromised(h));
        let left = left.filter_map(|h| h.revision.key_fingerprint.clone());
        left.chain(self.o.keys.compromised.iter().cloned()).collect()
    }

    /// Whether nothing was ever in force in this namespace, as far as the store or the history knows.
    pub(super) fn is_first(&self) -> bool {
        self.o.recorded.is_empty() && self.status.history.is_empty() && self.status.stable.is_none()
    }

    /// What is in force is a fact of the store, also for a rollout that was deleted and made again in the same namespace; and a
    /// re-created namespace inherits nothing, also where somebody restored an old status into it.
    pub(super) fn recover(&mut self) {
        let o = self.o;
        self.status.history.retain(|h| h.revision.tenant_uid == o.tenant_uid);
        self.status.stable.take_if(|s| s.tenant_uid != o.tenant_uid);
        if o.stored.is_none() {
            self.recover_from_rows();
        }
        let fresh = *o.status == TenantRolloutStatus { actions: o.status.actions.clone(), ..Default::default() }
            || o.status.observed_generation < 0;
        if let Some(s) = self.status.stable.clone().filter(|_| fresh && o.status.stable.is_none()) {
            self.event(false, "Recovered", format!("{} is in force again, as it was recorded.", named(&s)));
        }
    }

    /// Whether the store was put back: the object, which only Remit writes, has seen steps that it does not know.
    fn is_put_back(&self) -> bool {
        self.o.stored.is_some_and(|s| self.o.status.epoch > s.state.epoch)
    }

    /// What such a store says is on its way may have been taken back since for what it did, and what it says is in force may have been left:
    /// nobody is answered by a candidate, and nothing goes on until a person says so.
    pub(super) fn store_put_back(&mut self) {
        if !self.is_put_back() {
            return;
        }
        let why = "the store was put back: it has not the last steps that this object shows".to_owned();
        self.drop_candidate(STORE_RESTORED, None, why.clone());
        // What the object shows may be gone back to where it was in force before, and no key speaks against it; else the store is right.
        let shown = self.o.status.stable.as_ref().filter(|s| {
            let recorded =
                self.o.recorded.iter().any(|r| r.digest == s.digest && r.key_fingerprint == s.key_fingerprint);
            let bad = s.key_fingerprint.as_ref().is_some_and(|k| self.o.keys.compromised.contains(k));
            s.tenant_uid == self.o.tenant_uid && recorded && !bad && self.o.kept.contains(&s.digest)
        });
        if let Some(shown) = shown.filter(|s| self.status.stable.as_ref().is_none_or(|own| own.digest != s.digest)) {
            self.put(&shown.clone(), STORE_RESTORED, None, Some(why.clone()));
        }
        self.status.hold = None;
        self.hold(HoldReason::Person, Some(STORE_RESTORED));
        self.event(true, STORE_RESTORED, format!("{why}; {}, until somebody resumes.", self.stays()));
    }

    /// Whether the rollout waits for a person because its store was put back.
    pub(super) fn waits_after_restore(&self) -> bool {
        self.status.hold.as_ref().is_some_and(|h| h.by.as_deref() == Some(STORE_RESTORED))
    }

    /// For a store of before there were steps: the rows say what is in force, whatever the object says.
    fn recover_from_rows(&mut self) {
        let Some(newest) = self.o.recorded.first() else { return };
        if newest.digest.is_empty() {
            self.status.stable = None;
            return;
        }
        let same = |s: &RevisionStatus| s.digest == newest.digest && s.revision == newest.revision;
        if self.status.stable.as_ref().is_some_and(same) {
            return;
        }
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
                message: None,
                at: Some(Time(whole_seconds(r.first_verified))),
            })
            .collect();
    }

    /// The highest number that a revision of this namespace is known to have had.
    pub(super) fn highest_revision(&self) -> i64 {
        let s = &self.status;
        let seen = s.history.iter().map(|h| h.revision.revision);
        let seen = seen.chain(s.stable.iter().chain(&s.candidate).map(|r| r.revision));
        let seen = seen.chain(self.o.recorded.first().map(|r| r.revision));
        // Numbers that people have seen are not given again.
        let shown = Some(self.o.status).filter(|_| self.is_put_back()).into_iter().flat_map(|s| {
            let history = s.history.iter().map(|h| h.revision.revision);
            history.chain(s.stable.iter().chain(&s.candidate).map(|r| r.revision))
        });
        seen.chain(shown).max().unwrap_or(0)
    }

    /// One more than ever before.
    pub(super) fn next_revision(&mut self) -> i64 {
        self.last_revision = self.last_revision.saturating_add(1);
        self.last_revision
    }

    /// A compromised signer's package leaves at once: from its way, and from force, back to the newest one by a good signer, else to
    /// nothing.
    pub(super) fn leave_compromised(&mut self) {
        let o = self.o;
        let compromised =
            |r: &RevisionStatus| r.key_fingerprint.as_ref().is_some_and(|k| o.keys.compromised.contains(k));
        if let Some(c) = self.status.candidate.clone().filter(compromised) {
            let note = format!("{} is taken back: its signer is compromised.", named(&c));
            self.drop_candidate("SignerCompromised", None, note.clone());
            self.event(true, "SignerCompromised", note);
        }
        let Some(stable) = self.status.stable.clone().filter(compromised) else { return };
        for entry in self.status.history.iter_mut().filter(|h| compromised(&h.revision)) {
            entry.phase = "rolled_back".into();
            entry.cause = "SignerCompromised".into();
        }
        let fallback = self
            .status
            .history
            .iter()
            .filter(|h| h.phase == "completed" && o.kept.contains(&h.revision.digest))
            .filter(|h| !o.obstacles.contains_key(&h.revision.digest))
            .find(|h| h.revision.key_fingerprint.as_ref().is_some_and(|k| o.keys.good.contains(k)))
            .map(|h| h.revision.clone());
        // What was on its way was measured against what leaves now.
        self.drop_candidate("BaselineLeft", None, format!("{} left force.", named(&stable)));
        let left = format!("{} left force: its signer is compromised", named(&stable));
        match fallback {
            Some(back) => {
                self.event(true, "SignerCompromised", format!("{left}; {} is in force.", named(&back)));
                self.put(&back, "SignerCompromised", None, Some(left));
            }
            None => {
                let note = format!("{left}; nothing is in force and everything is denied.");
                self.event(true, "SignerCompromised", note.clone());
                self.status.stable = None;
                self.record(&stable, "rolled_back", "SignerCompromised", None, Some(note));
                // Recorded, so that a rollout made anew does not bring the compromised package back.
                let row = InForceRow {
                    tenant_uid: o.tenant_uid.into(),
                    tenant: o.tenant.into(),
                    package: String::new(),
                    version: "0.0.0".into(),
                    digest: String::new(),
                    key_fingerprint: None,
                    first_verified: o.now,
                    revision: self.next_revision(),
                };
                self.in_force.push(row);
            }
        }
    }

    /// What a package of the namespace is from now on.
    pub(super) fn revision_of(&mut self, c: &Candidate, key: Option<String>) -> RevisionStatus {
        RevisionStatus {
            tenant_uid: self.o.tenant_uid.into(),
            package: c.package.clone(),
            version: c.version.as_ref().map(ToString::to_string).unwrap_or_default(),
            digest: c.digest.clone(),
            key_fingerprint: key,
            first_verified: self.time(),
            controller_revision: Some(revision_name(&c.digest)),
            revision: 0,
        }
    }

    /// Puts a package in force for everyone at once, as a revision of its own.
    pub(super) fn put(&mut self, package: &RevisionStatus, cause: &str, by: Option<&str>, message: Option<String>) {
        let revision = RevisionStatus { revision: self.next_revision(), ..package.clone() };
        let entry = HistoryEntry {
            revision: revision.clone(),
            phase: "completed".into(),
            cause: cause.into(),
            message: message.clone(),
            at: self.time(),
        };
        self.status.history.insert(0, entry);
        self.keep.push(revision.digest.clone());
        self.record(&revision, "completed", cause, by, message);
        self.come_into_force(revision);
    }

    /// The candidate is what is in force from now on.
    pub(super) fn complete(&mut self, cause: &str, by: Option<&str>, message: Option<String>) {
        let Some(candidate) = self.status.candidate.take() else { return };
        self.status.percent = Some(100);
        self.record(&candidate, "completed", cause, by, message.clone());
        self.entry(&candidate, "completed", cause, message);
        let note = format!("{} ({}) is in force.", named(&candidate), short(&candidate.digest));
        let reason = match cause {
            "Reverted" => "Reverted",
            "PromotedUnchecked" => "PromotedUnchecked",
            _ => "NewVersion",
        };
        self.event(false, reason, note);
        self.clear_candidate("completed");
        self.come_into_force(candidate);
    }

    fn come_into_force(&mut self, revision: RevisionStatus) {
        self.in_force.push(InForceRow {
            tenant_uid: self.o.tenant_uid.into(),
            tenant: self.o.tenant.into(),
            package: revision.package.clone(),
            version: revision.version.clone(),
            digest: revision.digest.clone(),
            key_fingerprint: revision.key_fingerprint.clone(),
            first_verified: revision.first_verified.as_ref().map_or(self.now, |t| t.0),
            revision: revision.revision,
        });
        self.status.stable = Some(revision);
        if self.status.candidate.is_none() {
            self.status.progress = Some("completed".into());
        }
    }

    /// What the history says of a revision.
    pub(super) fn entry(&mut self, of: &RevisionStatus, phase: &str, cause: &str, message: Option<String>) {
        let number = of.revision;
        if let Some(entry) = self.status.history.iter_mut().find(|h| h.revision.revision == number) {
            entry.phase = phase.into();
            entry.cause = cause.into();
            entry.message = message.map(|m| super::words::clip_to(&m, 1024));
        }
    }

    /// Stable answers everybody from now on. Says whether there was a candidate.
    pub(super) fn drop_candidate(&mut self, cause: &str, by: Option<&str>, message: String) -> bool {
        let Some(candidate) = self.status.candidate.take() else { return false };
        self.record(&candidate, "rolled_back", cause, by, Some(message.clone()));
        self.entry(&candidate, "rolled_back", cause, Some(message));
        self.clear_candidate("rolled_back");
        true
    }

    fn clear_candidate(&mut self, progress: &str) {
        let s = &mut self.status;
        s.candidate = None;
        s.stage = None;
        s.percent = None;
        s.shadow_percent = None;
        s.stage_started = None;
        s.progressed_at = None;
        s.evidence_platform.clear();
        s.progress = Some(progress.into());
        s.hold.take_if(|h| h.reason != HoldReason::Person);
    }

    /// The revisions of this namespace that were in force for everyone.
    pub(super) fn was_in_force(&self) -> BTreeSet<String> {
        let rows = self.o.recorded.iter().filter(|r| !r.digest.is_empty()).map(|r| r.digest.clone());
        let completed = self.status.history.iter().filter(|h| h.phase == "completed");
        rows.chain(completed.map(|h| h.revision.digest.clone())).collect()
    }

    pub(super) fn trim_history(&mut self) {
        let limit = self.o.spec.revision_history_limit.map_or(DEFAULT_HISTORY, |v| usize::try_from(v).unwrap_or(1));
        // What is in force and what is on its way do not count as former ones.
        let mut left = limit.clamp(1, MAX_HISTORY - 2);
        let s = &mut self.status;
        let current: Vec<i64> = s.stable.iter().chain(&s.candidate).map(|r| r.revision).collect();
        s.history.retain(|h| {
            if current.contains(&h.revision.revision) {
                return true;
            }
            let keeps = left > 0;
            left = left.saturating_sub(1);
            keeps
        });
    }
}
