//! What people may ask of a rollout, and how it is written into its status.

use serde_json::{Value, json};

use super::{HumanAction, TenantRollout};

/// Open entries that one person may have.
pub const OPEN_ACTIONS: usize = 4;
/// Places of the list, of which so many are for `abort` and `rollback` alone, and so many of these for `rollback` alone: nobody shuts these
/// out by asking for something else.
const PLACES: usize = 64;
const FOR_ENDING: usize = 32;
const FOR_ROLLBACK: usize = 16;

/// What a person asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionKind {
    /// Nothing goes on until somebody resumes.
    Pause,
    /// It goes on.
    Resume,
    /// The next stage at once, where the budgets allow it.
    Promote,
    /// Into force for everyone, whatever is left to check.
    PromoteFull,
    /// The candidate is dropped.
    Abort,
    /// A former revision comes back into force.
    Rollback,
}

impl ActionKind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Pause, Self::Resume, Self::Promote, Self::PromoteFull, Self::Abort, Self::Rollback];

    /// As entries write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Promote => "promote",
            Self::PromoteFull => "promote-full",
            Self::Abort => "abort",
            Self::Rollback => "rollback",
        }
    }

    /// Verb on `tenantrollouts.remit.dev` that it needs, as the chart's admission policy has it.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Pause | Self::Resume => "pause",
            Self::Promote => "promote",
            Self::PromoteFull => "promote-unchecked",
            Self::Abort => "abort",
            Self::Rollback => "rollback",
        }
    }

    /// Whether a reason has to be given.
    pub fn needs_reason(self) -> bool {
        matches!(self, Self::PromoteFull | Self::Abort | Self::Rollback)
    }
}

/// A merge patch of the status that appends `action`, over the version of the object that was read: whoever was faster makes it a conflict.
/// Err: why there is no room for it, as the chart's admission policy says it to everybody but Remit.
pub fn append_action(rollout: &TenantRollout, action: &HumanAction) -> Result<Value, String> {
    let mut actions = rollout.status.as_ref().map(|s| s.actions.clone()).unwrap_or_default();
    let open = actions.iter().filter(|a| a.actor == action.actor).count();
    if open >= OPEN_ACTIONS {
        return Err(format!(
            "{} has {open} entries that Remit has not handled yet, and may have no more",
            action.actor
        ));
    }
    let (abort, rollback) = (ActionKind::Abort.as_str(), ActionKind::Rollback.as_str());
    let (counted, places) = if action.action == rollback {
        (actions.len(), PLACES)
    } else if action.action == abort {
        (actions.iter().filter(|a| a.action != rollback).count(), PLACES - FOR_ROLLBACK)
    } else {
        (actions.iter().filter(|a| a.action != rollback && a.action != abort).count(), PLACES - FOR_ENDING)
    };
    if counted >= places {
        return Err(format!("{} entries wait for Remit; the places that are left are for others", actions.len()));
    }
    actions.push(action.clone());
    let version = rollout.metadata.resource_version.as_deref();
    Ok(json!({"metadata": {"resourceVersion": version}, "status": {"actions": actions}}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::TenantRolloutStatus;

    #[test]
    fn an_entry_is_appended_over_what_was_read_and_a_fifth_is_not() {
        let mut rollout = TenantRollout::new("default", Default::default());
        rollout.metadata.resource_version = Some("7".into());
        let of = |actor: &str, n: usize| HumanAction {
            id: format!("{actor}-{n}"),
            actor: actor.into(),
            action: "pause".into(),
            ..HumanAction::default()
        };
        let patch = append_action(&rollout, &of("ann", 0)).unwrap();
        assert_eq!(
            patch,
            json!({"metadata": {"resourceVersion": "7"},
                "status": {"actions": [{"id": "ann-0", "actor": "ann", "action": "pause"}]}})
        );
        let actions = (0..4).map(|n| of("ann", n)).collect();
        rollout.status = Some(TenantRolloutStatus { actions, ..TenantRolloutStatus::default() });
        assert!(append_action(&rollout, &of("ann", 4)).unwrap_err().contains("ann has 4 entries"));
        assert_eq!(append_action(&rollout, &of("bob", 0)).unwrap()["status"]["actions"].as_array().unwrap().len(), 5);
    }

    #[test]
    fn places_are_kept_for_those_who_end_or_undo() {
        let mut rollout = TenantRollout::new("default", Default::default());
        rollout.status = Some(TenantRolloutStatus::default());
        let mut n = 0;
        for (action, most) in [("pause", 32), ("abort", 48), ("rollback", 64)] {
            loop {
                let (id, action) = (format!("{action}-{n}"), action.to_owned());
                let new = HumanAction { id: id.clone(), actor: id, action, ..HumanAction::default() };
                if append_action(&rollout, &new).is_err() {
                    break;
                }
                rollout.status.as_mut().unwrap().actions.push(new);
                n += 1;
            }
            assert_eq!(n, most, "{action}");
        }
    }

    /// The chart's policy and this list say the same.
    #[test]
    fn verbs_are_those_of_the_chart() {
        let chart = include_str!("../../charts/remit/templates/admission-policies.yaml");
        let one_line = chart.split_whitespace().collect::<Vec<_>>().join(" ");
        let all: Vec<String> = ActionKind::ALL.iter().map(|a| format!("'{}': '{}'", a.as_str(), a.verb())).collect();
        assert!(one_line.contains(&format!("{{{}}}", all.join(", "))), "{all:?}");
        let reasons: Vec<_> =
            ActionKind::ALL.iter().filter(|a| a.needs_reason()).map(|a| format!("'{}'", a.as_str())).collect();
        assert!(one_line.contains(&format!("a.action in [{}]", reasons.join(", "))));
    }
}
