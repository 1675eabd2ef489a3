//! Whether a selection takes a record. Stores select in SQL; this is what they must agree with, and how files are read.

use crate::api::ReplaySelection;
use crate::gate::DecisionRecord;

/// Whether the record is selected, the limit apart.
pub fn selects(selection: &ReplaySelection, record: &DecisionRecord) -> bool {
    // Taken apart by name, so that a new field can't be forgotten here.
    let ReplaySelection { since, until, sessions, agents, delegators, tools, outcomes, limit: _ } = selection;
    let one_of = |list: &[String], text: &str| list.is_empty() || list.iter().any(|l| l == text);
    since.as_ref().is_none_or(|t| record.time >= t.0)
        && until.as_ref().is_none_or(|t| record.time < t.0)
        && (sessions.is_empty() || record.request.session.as_ref().is_some_and(|s| sessions.contains(s)))
        && one_of(agents, &record.agent)
        && (delegators.is_empty() || record.delegated_from.as_deref().is_some_and(|d| delegated(delegators, d)))
        && one_of(tools, &record.request.resource.id)
        && (outcomes.is_empty() || outcomes.iter().any(|o| o.as_str() == record.outcome.as_str()))
}

fn delegated(wanted: &[String], by: &str) -> bool {
    let bare = by.strip_prefix("user:").or_else(|| by.strip_prefix("agent:")).unwrap_or(by);
    wanted.iter().any(|w| w == by || w == bare)
}
