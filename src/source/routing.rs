//! What of a rollout's status is acted by: which package is in force, which is on its way, and how many sessions it decides for.
//!
//! Pure. A status that is older than the one in use is never acted by, so that no session goes back and forth while a watch catches up.

use crate::api::{RevisionStatus, TenantRollout};

/// The candidate, and its share.
#[derive(Clone, Debug, PartialEq)]
pub struct Staged {
    /// Which package, and against what it was verified.
    pub revision: RevisionStatus,
    /// Sessions that it decides for and sessions that are shadowed, of 100 each; None before stage one.
    pub share: Option<(u8, u8)>,
}

/// What is acted by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing {
    /// UID of the rollout.
    object: String,
    epoch: i64,
    /// The package in force.
    pub stable: Option<RevisionStatus>,
    /// The package on its way.
    pub candidate: Option<Staged>,
}

impl Routing {
    /// Epoch of the status that is acted by.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// What to act by from now on. `in_use`: what was acted by until now.
    pub fn of(rollout: &TenantRollout, in_use: Option<&Routing>) -> Self {
        let object = rollout.metadata.uid.clone().unwrap_or_default();
        let status = rollout.status.as_ref();
        let epoch = status.map_or(0, |s| s.epoch);
        // Another object is another rollout, and begins anew.
        if let Some(in_use) = in_use.filter(|r| r.object == object && r.epoch > epoch) {
            tracing::warn!(
                tenant = rollout.metadata.namespace,
                epoch,
                in_use = in_use.epoch,
                "the status of a rollout is older than what is acted by, and is not acted by"
            );
            return in_use.clone();
        }
        let share = |percent: Option<i64>| percent.and_then(|p| u8::try_from(p).ok()).filter(|p| *p <= 100);
        let candidate = status.and_then(|s| {
            // Without a number that makes sense nobody is answered by it.
            let share = share(s.percent).map(|percent| (percent, share(s.shadow_percent).unwrap_or(0)));
            Some(Staged { revision: s.candidate.clone()?, share })
        });
        Self { object, epoch, stable: status.and_then(|s| s.stable.clone()), candidate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{TenantRolloutSpec, TenantRolloutStatus};

    fn rollout(uid: &str, status: Option<TenantRolloutStatus>) -> TenantRollout {
        let mut rollout = TenantRollout::new("default", TenantRolloutSpec::default());
        rollout.metadata.uid = Some(uid.into());
        rollout.status = status;
        rollout
    }

    fn revision(number: i64) -> RevisionStatus {
        RevisionStatus { revision: number, digest: format!("sha256:{number}"), ..RevisionStatus::default() }
    }

    fn status(epoch: i64, stable: i64, candidate: Option<i64>, percent: Option<i64>) -> Option<TenantRolloutStatus> {
        Some(TenantRolloutStatus {
            epoch,
            stable: Some(revision(stable)),
            candidate: candidate.map(revision),
            percent,
            shadow_percent: percent.map(|_| 50),
            ..TenantRolloutStatus::default()
        })
    }

    fn seen(routing: &Routing) -> (i64, Option<i64>, Option<(u8, u8)>) {
        let candidate = routing.candidate.as_ref();
        let stable = routing.stable.as_ref().map_or(0, |s| s.revision);
        (stable, candidate.map(|c| c.revision.revision), candidate.and_then(|c| c.share))
    }

    #[test]
    fn stages_and_rollbacks_are_followed_and_nothing_older_is() {
        let first = Routing::of(&rollout("u", status(3, 1, Some(2), Some(5))), None);
        assert_eq!(seen(&first), (1, Some(2), Some((5, 50))));
        let next = Routing::of(&rollout("u", status(4, 1, Some(2), Some(25))), Some(&first));
        assert_eq!(seen(&next), (1, Some(2), Some((25, 50))));
        let late = Routing::of(&rollout("u", status(3, 1, Some(2), Some(5))), Some(&next));
        assert_eq!(late, next, "what is older than what is acted by");
        let wiped = Routing::of(&rollout("u", None), Some(&next));
        assert_eq!(wiped, next, "an empty status is older than any");
        let back = Routing::of(&rollout("u", status(5, 1, None, None)), Some(&next));
        assert_eq!(seen(&back), (1, None, None));
        let again = Routing::of(&rollout("u", status(4, 1, Some(2), Some(25))), Some(&back));
        assert_eq!(again, back, "a rollback is not undone by an old read");
        let recreated = Routing::of(&rollout("v", status(1, 1, None, None)), Some(&next));
        assert_eq!(seen(&recreated), (1, None, None), "another object begins anew");
    }

    #[test]
    fn a_share_that_makes_no_sense_is_none() {
        for percent in [None, Some(-1), Some(101), Some(i64::MAX)] {
            let routing = Routing::of(&rollout("u", status(1, 1, Some(2), percent)), None);
            assert_eq!(seen(&routing), (1, Some(2), None), "{percent:?}");
        }
        let without = status(1, 1, Some(2), Some(5)).map(|s| TenantRolloutStatus { shadow_percent: Some(500), ..s });
        assert_eq!(seen(&Routing::of(&rollout("u", without), None)), (1, Some(2), Some((5, 0))));
    }
}
