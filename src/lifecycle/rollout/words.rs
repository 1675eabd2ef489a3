//! What people read: conditions and events, in plain English, without numbers that change every second.

use super::{Effect, Pass};
use crate::api::{READY, RECONCILING, RevisionStatus, RolloutPhase, STALLED, clear_condition, set_condition};

/// Longest text of a condition.
const MAX_MESSAGE: usize = 200;

/// The first 12 hex digits of a digest, for people.
pub(super) fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

/// A package, for people.
pub(super) fn named(r: &RevisionStatus) -> String {
    format!("{} {}", r.package, r.version)
}

/// Conditions hold about 100 characters, at most 200; the whole text is in the events and the log.
pub fn clip(message: &str) -> String {
    clip_to(message, MAX_MESSAGE)
}

pub(super) fn clip_to(message: &str, max: usize) -> String {
    if message.chars().count() <= max {
        return message.to_owned();
    }
    let mut out: String = message.chars().take(max.saturating_sub(1)).collect();
    out.push('…');
    out
}

impl Pass<'_> {
    /// What stays, in words.
    pub(super) fn stays(&self) -> String {
        match &self.status.stable {
            Some(s) => format!("{} stays in force", named(s)),
            None => "nothing is in force".to_owned(),
        }
    }

    /// What was asked for can't come into force.
    pub(super) fn degraded(&mut self, reason: &str, why: String) {
        self.status.phase = RolloutPhase::Degraded;
        let message = clip(&format!("{}; {why}", self.stays()));
        let known =
            self.o.status.conditions.iter().any(|c| c.type_ == STALLED && c.reason == reason && c.message == message);
        if !known && !self.failed_now {
            self.events.push(Effect::Event {
                warning: true,
                reason: "Degraded",
                note: format!("{}; {why}", self.stays()),
            });
        }
        self.ready(false, reason, message.clone());
        self.only(Some((STALLED, reason, message)));
    }

    /// It is on its way.
    pub(super) fn progressing(&mut self, reason: &str, message: String) {
        self.status.phase = RolloutPhase::Progressing;
        self.ready(false, reason, message.clone());
        self.only(Some((RECONCILING, reason, message)));
    }

    /// It waits for a person.
    pub(super) fn waiting(&mut self, reason: &str, message: String) {
        self.status.phase = RolloutPhase::Paused;
        self.ready(false, reason, message);
        self.only(None);
    }

    pub(super) fn ready(&mut self, ready: bool, reason: &str, message: String) {
        let message = clip(&message);
        set_condition(&mut self.status.conditions, READY, ready, reason, message, self.o.generation, self.now);
    }

    /// Leaves at most one of `Reconciling` and `Stalled`.
    pub(super) fn only(&mut self, condition: Option<(&'static str, &str, String)>) {
        for type_ in [RECONCILING, STALLED] {
            if condition.as_ref().is_none_or(|c| c.0 != type_) {
                clear_condition(&mut self.status.conditions, type_);
            }
        }
        if let Some((type_, reason, message)) = condition {
            let message = clip(&message);
            set_condition(&mut self.status.conditions, type_, true, reason, message, self.o.generation, self.now);
        }
    }
}
