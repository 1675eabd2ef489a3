//! Drift: what a candidate makes of a call that the baseline decided, by DESIGN's table of severities and root causes. Replay, shadow
//! evaluation and budgets all judge by this one function.
//!
//! Pure. Must never call a growing privilege less than a restriction: what is not known to be a read counts as a write.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::Tier;
use crate::gate::Outcome;

/// What one side makes of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side<'a> {
    /// What it answers, before any approval.
    pub outcome: Outcome,
    /// Ids of the determining policies and the open asks, in any order.
    pub policies: &'a [String],
    /// Tier that its package gives the tool; None: no tool, or unknown to it.
    pub tier: Option<Tier>,
}

/// How bad a difference is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// No difference.
    #[default]
    None,
    /// The same outcome for another reason, or a human more for a read.
    Low,
    /// A read is restricted, or a human more for a write.
    Medium,
    /// A write is restricted, or a read is newly allowed.
    High,
    /// A write or admin call is newly allowed.
    Critical,
}

impl Severity {
    /// As reports, metrics and records write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::None => "none",
            Severity::Low => "low",
            Severity::Medium => "medium",
            Severity::High => "high",
            Severity::Critical => "critical",
        }
    }
}

/// What kind of difference it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// What could be done, by itself or with a human, is denied.
    AccessRestricted,
    /// What was denied is allowed, or can be with a human.
    AccessExpanded,
    /// A human is asked who was not.
    ApprovalAdded,
    /// A human is asked no more.
    ApprovalRemoved,
    /// The same outcome by other policies.
    RuleChanged,
}

impl Cause {
    /// As reports and records write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::AccessRestricted => "access_restricted",
            Cause::AccessExpanded => "access_expanded",
            Cause::ApprovalAdded => "approval_added",
            Cause::ApprovalRemoved => "approval_removed",
            Cause::RuleChanged => "rule_changed",
        }
    }

    /// Whether somebody may do more than before. Budgets count these apart: they can't be acknowledged.
    pub fn expands(self) -> bool {
        matches!(self, Cause::AccessExpanded | Cause::ApprovalRemoved)
    }

    /// Whether somebody may do less than before.
    pub fn restricts(self) -> bool {
        matches!(self, Cause::AccessRestricted | Cause::ApprovalAdded)
    }
}

/// A difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drift {
    /// How bad.
    pub severity: Severity,
    /// Of what kind.
    pub cause: Cause,
}

/// Whether a call only reads: on both sides, or on the one that knows its tool.
pub fn reads_only(baseline: Option<Tier>, candidate: Option<Tier>) -> bool {
    // A tool that is a read on one side only was, or becomes, more than a read.
    baseline == Some(Tier::Read) && matches!(candidate, Some(Tier::Read) | None)
        || baseline.is_none() && candidate == Some(Tier::Read)
}

/// Compares the two sides of one call; None: they are the same. A question that was refused was never decided: it counts as a deny.
pub fn compare(baseline: &Side<'_>, candidate: &Side<'_>) -> Option<Drift> {
    let decided = |outcome| if outcome == Outcome::Refused { Outcome::Deny } else { outcome };
    let (before, after) = (decided(baseline.outcome), decided(candidate.outcome));
    let read = reads_only(baseline.tier, candidate.tier);
    let by = |read_only, other| if read { read_only } else { other };
    let (severity, cause) = match (before, after) {
        (Outcome::Allow, Outcome::Deny) => (by(Severity::Medium, Severity::High), Cause::AccessRestricted),
        // Less than an allow that is lost: a human might have said no.
        (Outcome::ApprovalRequired, Outcome::Deny) => (by(Severity::Low, Severity::Medium), Cause::AccessRestricted),
        (Outcome::Allow, Outcome::ApprovalRequired) => (by(Severity::Low, Severity::Medium), Cause::ApprovalAdded),
        (Outcome::Deny, Outcome::Allow) => (by(Severity::High, Severity::Critical), Cause::AccessExpanded),
        (Outcome::ApprovalRequired, Outcome::Allow) => (by(Severity::High, Severity::Critical), Cause::ApprovalRemoved),
        (Outcome::Deny, Outcome::ApprovalRequired) => (by(Severity::Low, Severity::Medium), Cause::AccessExpanded),
        _ if same_policies(baseline.policies, candidate.policies) => return None,
        _ => (Severity::Low, Cause::RuleChanged),
    };
    Some(Drift { severity, cause })
}

fn same_policies(a: &[String], b: &[String]) -> bool {
    a.len() == b.len() && a.iter().all(|id| b.contains(id)) && b.iter().all(|id| a.contains(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(outcome: Outcome, tier: Option<Tier>) -> Side<'static> {
        Side { outcome, policies: &[], tier }
    }

    #[test]
    fn the_table_is_designs() {
        use Outcome::{Allow, ApprovalRequired as Ask, Deny};
        use Severity::{Critical, High, Low, Medium};
        let table = [
            (Allow, Deny, High, Medium, Cause::AccessRestricted),
            (Allow, Ask, Medium, Low, Cause::ApprovalAdded),
            (Deny, Allow, Critical, High, Cause::AccessExpanded),
            (Ask, Allow, Critical, High, Cause::ApprovalRemoved),
            (Deny, Ask, Medium, Low, Cause::AccessExpanded),
            (Ask, Deny, Medium, Low, Cause::AccessRestricted),
        ];
        for (before, after, write, read, cause) in table {
            for tier in [Some(Tier::Write), Some(Tier::Admin), None] {
                let drift = compare(&at(before, tier), &at(after, tier));
                assert_eq!(drift, Some(Drift { severity: write, cause }), "{before:?} {after:?} {tier:?}");
            }
            let drift = compare(&at(before, Some(Tier::Read)), &at(after, Some(Tier::Read)));
            assert_eq!(drift, Some(Drift { severity: read, cause }), "{before:?} {after:?}");
        }
    }

    #[test]
    fn a_tool_that_is_a_read_on_one_side_only_counts_as_a_write() {
        for (a, b) in [(Tier::Read, Tier::Admin), (Tier::Admin, Tier::Read)] {
            let drift = compare(&at(Outcome::Deny, Some(a)), &at(Outcome::Allow, Some(b))).unwrap();
            assert_eq!(drift.severity, Severity::Critical);
        }
    }

    #[test]
    fn permit_added_ranks_critical() {
        let drift = compare(&at(Outcome::Deny, Some(Tier::Write)), &at(Outcome::Allow, Some(Tier::Write))).unwrap();
        assert_eq!((drift.severity, drift.cause.expands()), (Severity::Critical, true));
    }

    #[test]
    fn human_gate_removed_ranks_critical() {
        let asked = at(Outcome::ApprovalRequired, Some(Tier::Admin));
        let drift = compare(&asked, &at(Outcome::Allow, Some(Tier::Admin))).unwrap();
        assert_eq!((drift.severity, drift.cause), (Severity::Critical, Cause::ApprovalRemoved));
    }

    #[test]
    fn other_policies_with_the_same_outcome_are_low_in_any_order_none() {
        let (ab, ba, a) = (["a".to_owned(), "b".to_owned()], ["b".to_owned(), "a".to_owned()], ["a".to_owned()]);
        let side = |policies| Side { outcome: Outcome::Allow, policies, tier: Some(Tier::Write) };
        assert_eq!(compare(&side(&ab), &side(&ba)), None);
        let drift = compare(&side(&ab), &side(&a)).unwrap();
        assert_eq!((drift.severity, drift.cause), (Severity::Low, Cause::RuleChanged));
    }

    #[test]
    fn a_refused_question_counts_as_a_deny() {
        let refused = at(Outcome::Refused, None);
        assert_eq!(compare(&refused, &at(Outcome::Deny, None)), None);
        assert_eq!(compare(&refused, &at(Outcome::Allow, None)).unwrap().severity, Severity::Critical);
    }
}
