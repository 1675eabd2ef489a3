//! What people ask for: each entry is handled exactly once, also what makes no sense, with what came of it.
//!
//! Who may was checked when the entry was written; here it is about whether it can be done. All entries are handled in one pass, so
//! that a list that is filled up holds back nobody.

use super::Pass;
use super::history::left_compromised;
use super::stages::Standing;
use super::words::{clip_to, named};
use crate::api::{HandledAction, HistoryEntry, HoldReason, HumanAction, RevisionStatus};

/// Handled actions that the status keeps, besides those that are still in the list.
const HANDLED: usize = 32;
/// Longest result.
const MAX_RESULT: usize = 512;

impl Pass<'_> {
    /// Handles what is in the list.
    pub(super) fn act(&mut self) {
        for action in &self.o.status.actions {
            self.handled.push(action.clone());
            // It was handled, and the list could not be cleared then.
            if self.status.handled.iter().any(|h| h.action == *action) {
                continue;
            }
            let result = match self.carry_out(action) {
                Ok(done) => {
                    let note = format!("{} by {}: {done}", action.action, action.actor);
                    self.event(false, "ActionDone", clip_to(&note, 900));
                    format!("done: {done}")
                }
                Err(why) => {
                    let note = format!("{} by {} is refused: {why}", clip_to(&action.action, 32), action.actor);
                    self.event(true, "ActionRefused", clip_to(&note, 900));
                    format!("refused: {why}")
                }
            };
            let entry = HandledAction { action: action.clone(), result: clip_to(&result, MAX_RESULT), at: self.time() };
            self.status.handled.insert(0, entry);
        }
        let open = &self.o.status.actions;
        let mut left = HANDLED;
        self.status.handled.retain(|h| {
            let keeps = left > 0 || open.contains(&h.action);
            left = left.saturating_sub(1);
            keeps
        });
    }

    fn carry_out(&mut self, a: &HumanAction) -> Result<String, String> {
        // What can't be kept would hold up everybody's entries.
        if let Some(field) = field_with_nul(a) {
            return Err(format!("its {field} holds the character U+0000"));
        }
        match a.action.as_str() {
            "pause" => self.pause(a),
            "resume" => self.resume(a),
            "promote" => self.promote(a),
            "promote-full" => self.promote_full(a),
            "abort" => self.abort(a),
            "rollback" => self.rollback(a),
            other => Err(format!(
                "action {:?} is none of pause, resume, promote, promote-full, abort, rollback",
                clip_to(other, 32)
            )),
        }
    }

    /// The candidate that the action is about.
    fn candidate_of(&self, a: &HumanAction) -> Result<RevisionStatus, String> {
        let Some(candidate) = self.status.candidate.clone() else { return Err("no rollout is under way".into()) };
        match &a.digest {
            Some(digest) if *digest != candidate.digest => {
                Err(format!("the candidate is {} ({}) by now", named(&candidate), candidate.digest))
            }
            _ => Ok(candidate),
        }
    }

    fn pause(&mut self, a: &HumanAction) -> Result<String, String> {
        if a.digest.is_some() {
            self.candidate_of(a)?;
        }
        if let Some(h) = self.status.hold.as_ref().filter(|h| h.reason == HoldReason::Person) {
            return Err(format!("{} paused it already", h.by.as_deref().unwrap_or("somebody")));
        }
        self.hold(HoldReason::Person, Some(&a.actor));
        self.note(a, "Paused");
        Ok("nothing goes on until somebody resumes; a breach still takes it back".into())
    }

    fn resume(&mut self, a: &HumanAction) -> Result<String, String> {
        if a.digest.is_some() {
            self.candidate_of(a)?;
        }
        if self.status.hold.as_ref().is_some_and(|h| h.reason == HoldReason::Person) {
            self.unhold();
            self.note(a, "Resumed");
            return Ok("it goes on".into());
        }
        match self.o.spec.paused {
            true => Err("spec.paused is true: that is for the spec to change".into()),
            false => Err("nobody paused it; promote leads past what it waits for".into()),
        }
    }

    /// Nothing may pass while somebody else said stop.
    fn not_paused(&self) -> Result<(), String> {
        if self.o.spec.paused {
            return Err("spec.paused is true: that is for the spec to change".into());
        }
        match self.status.hold.as_ref().filter(|h| h.reason == HoldReason::Person) {
            Some(_) => Err(format!("{}: resume it first", self.paused_by())),
            None => Ok(()),
        }
    }

    fn promote(&mut self, a: &HumanAction) -> Result<String, String> {
        looked_at(a)?;
        let candidate = self.candidate_of(a)?;
        // One entry moves it by one stage. Who asked beside another one has not seen this stage.
        if self.advanced() || a.stage.is_some_and(|stage| stage != self.stage_number()) {
            return Err(format!("{} {} by now: this asks for a stage that is past", named(&candidate), self.share()));
        }
        self.not_paused()?;
        if self.status.stable.is_none() {
            return Err("nothing is in force that it could be compared with; promote --full puts it in force".into());
        }
        let evidence = self.status.stage.is_none() || self.status.evidence_platform != self.o.platform;
        match self.standing() {
            Standing::Fails(why) => return Err(why),
            Standing::Waits(why) if evidence => {
                return Err(format!("{why}; promote --full goes on without"));
            }
            Standing::Holds(HoldReason::Proof, _, why) => {
                return Err(format!("{why}; promote --full goes on without"));
            }
            Standing::Waits(_) | Standing::Holds(..) | Standing::Passes => {}
        }
        self.unhold();
        self.advance(Some(&a.actor));
        Ok(match self.status.percent {
            Some(percent) => format!("{} decides for {percent} % of sessions", named(&candidate)),
            None => format!("{} is in force", named(&candidate)),
        })
    }

    fn promote_full(&mut self, a: &HumanAction) -> Result<String, String> {
        let reason = reason_of(a)?;
        looked_at(a)?;
        let candidate = self.candidate_of(a)?;
        self.not_paused()?;
        self.complete("PromotedUnchecked", Some(&a.actor), Some(format!("{}: {reason}", a.actor)));
        Ok(format!("{} is in force, whatever was left to check", named(&candidate)))
    }

    fn abort(&mut self, a: &HumanAction) -> Result<String, String> {
        let reason = reason_of(a)?;
        let candidate = self.candidate_of(a)?;
        self.abandon(&candidate, "Aborted", a, &reason);
        Ok(match &self.status.stable {
            Some(stable) => format!("{} answers everybody", named(stable)),
            None => "nothing is in force, and everything is denied".into(),
        })
    }

    fn abandon(&mut self, candidate: &RevisionStatus, cause: &'static str, a: &HumanAction, reason: &str) {
        let message = format!("{} was taken back by {}: {reason}", named(candidate), a.actor);
        self.remember(&candidate.digest, cause, &message);
        self.drop_candidate(cause, Some(&a.actor), message);
        self.failed_now = true;
    }

    fn rollback(&mut self, a: &HumanAction) -> Result<String, String> {
        let reason = reason_of(a)?;
        let Some(stable) = self.status.stable.clone() else { return Err("nothing is in force".into()) };
        looked_at(a)?;
        if a.digest.as_ref().is_some_and(|d| *d != stable.digest) {
            return Err(format!("{} ({}) is in force by now", named(&stable), stable.digest));
        }
        let target = self.target(a.revision, &stable)?;
        if let Some(candidate) = self.status.candidate.clone() {
            self.abandon(&candidate, "RolledBack", a, &reason);
        }
        let message = format!("{} was rolled back by {}: {reason}", named(&stable), a.actor);
        // So that a tool that keeps applying the same manifest undoes nothing.
        self.remember(&stable.digest, "RolledBack", &message);
        self.entry(&stable, "rolled_back", "RolledBack", Some(message.clone()));
        self.put(&target, "RolledBack", Some(&a.actor), Some(message));
        self.failed_now = true;
        Ok(format!("{} is in force", named(&target)))
    }

    /// The revision to go back to: one that was in force for everyone, whose key is good, whose bytes are kept, and which compiles and
    /// passes its tests as things are today.
    fn target(&self, number: Option<i64>, stable: &RevisionStatus) -> Result<RevisionStatus, String> {
        let recorded = |h: &HistoryEntry| self.o.recorded.iter().any(|r| r.revision == h.revision.revision);
        let completed = |h: &HistoryEntry| h.phase == "completed" || recorded(h);
        let compromised = self.compromised_here();
        let bad = |h: &HistoryEntry| {
            left_compromised(h) || h.revision.key_fingerprint.as_ref().is_some_and(|k| compromised.contains(k))
        };
        let entry = match number {
            Some(n) => {
                let entry = self.status.history.iter().find(|h| h.revision.revision == n);
                entry.ok_or_else(|| format!("there is no revision {n} in the history"))?
            }
            None => {
                // What was left once is not gone back to by default.
                let left = |h: &HistoryEntry| {
                    let later = self.status.history.iter().filter(|l| l.revision.revision > h.revision.revision);
                    later.filter(|l| l.phase == "rolled_back").any(|l| l.revision.digest == h.revision.digest)
                };
                let before = |h: &&HistoryEntry| {
                    h.revision.revision < stable.revision
                        && h.phase == "completed"
                        && h.revision.digest != stable.digest
                        && !bad(h)
                        && !left(h)
                        && self.o.kept.contains(&h.revision.digest)
                };
                let newest = self.status.history.iter().filter(before).max_by_key(|h| h.revision.revision);
                newest.ok_or("there is no revision before the one in force to go back to")?
            }
        };
        let (n, name) = (entry.revision.revision, named(&entry.revision));
        if entry.revision.digest == stable.digest {
            return Err(format!("{name} is in force already"));
        }
        if !completed(entry) {
            return Err(format!("revision {n} ({name}) was never in force for everyone"));
        }
        if bad(entry) {
            return Err(format!("revision {n} ({name}) was signed with a compromised key"));
        }
        if !self.o.kept.contains(&entry.revision.digest) {
            return Err(format!("the bytes of revision {n} ({name}) are not kept any more, or not right"));
        }
        if let Some(why) = self.o.obstacles.get(&entry.revision.digest) {
            return Err(format!("revision {n} ({name}) can't come into force as things are today: {why}"));
        }
        Ok(entry.revision.clone())
    }

    /// For the record, where nothing else records it.
    fn note(&mut self, a: &HumanAction, cause: &str) {
        let of = self.status.candidate.clone().or_else(|| self.status.stable.clone());
        if let Some(of) = of {
            let phase = self.status.progress.clone().unwrap_or_else(|| "completed".into());
            self.record(&of, &phase, cause, Some(&a.actor), a.reason.clone());
        }
    }
}

fn field_with_nul(a: &HumanAction) -> Option<&'static str> {
    let HumanAction { id, actor, action, reason, digest, revision: _, stage: _, via } = a;
    let fields = [
        ("id", Some(id)),
        ("actor", Some(actor)),
        ("action", Some(action)),
        ("reason", reason.as_ref()),
        ("digest", digest.as_ref()),
        ("via", via.as_ref()),
    ];
    fields.into_iter().find(|(_, text)| text.is_some_and(|text| text.contains('\0'))).map(|(field, _)| field)
}

/// What would come into force by it must be what the writer looked at.
fn looked_at(a: &HumanAction) -> Result<(), String> {
    match (&a.digest, a.action.as_str()) {
        (Some(_), _) => Ok(()),
        (None, "rollback") => {
            Err("`digest` is missing: name the digest of the package in force (status.stable)".into())
        }
        (None, action) => Err(format!("{action}: `digest` is missing: name that of the candidate (status.candidate)")),
    }
}

fn reason_of(a: &HumanAction) -> Result<String, String> {
    match a.reason.as_deref().map(str::trim) {
        Some(reason) if !reason.is_empty() => Ok(clip_to(reason, 300)),
        _ => Err(format!("{} needs a reason", a.action)),
    }
}
