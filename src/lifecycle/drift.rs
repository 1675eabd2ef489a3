//! Drift: what a candidate makes of a call that the baseline decided, by DESIGN's table of severities and root causes. Replay, shadow
//! evaluation and budgets all judge by this one function.
//!
//! Pure. Must never call a growing privilege less than a restriction: what is not known to be a read counts as a write.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::Tier;
use crate::gate::Outcome;
use crate::policy::{Ask, PolicyRef};

/// What one side makes of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side<'a> {
    /// What it answers, before any approval.
    pub outcome: Outcome,
    /// Ids of the determining policies and the open asks, in any order.
    pub policies: &'a [String],
    /// The open asks: who is asked, and how many of them, is a part of what is decided.
    pub asks: &'a [Arc<PolicyRef>],
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
    /// A read is restricted, a human more for a write, or less is asked of humans.
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
    /// Humans are asked as before, and less is asked of them: another group, fewer of them, for longer, or about less.
    ApprovalWeakened,
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
            Cause::ApprovalWeakened => "approval_weakened",
            Cause::RuleChanged => "rule_changed",
        }
    }

    /// Whether somebody may do more than before. Budgets count these apart: they can't be acknowledged.
    pub fn expands(self) -> bool {
        matches!(self, Cause::AccessExpanded | Cause::ApprovalRemoved | Cause::ApprovalWeakened)
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
        (Outcome::ApprovalRequired, Outcome::ApprovalRequired) if is_weaker(baseline.asks, candidate.asks) => {
            (Severity::Medium, Cause::ApprovalWeakened)
        }
        _ if same_asks(baseline.asks, candidate.asks) && same_policies(baseline.policies, candidate.policies) => {
            return None;
        }
        _ => (Severity::Low, Cause::RuleChanged),
    };
    Some(Drift { severity, cause })
}

/// Whether something that was asked is not asked any more, by no policy whatever its name.
fn is_weaker(baseline: &[Arc<PolicyRef>], candidate: &[Arc<PolicyRef>]) -> bool {
    let asks = |of: &'_ [Arc<PolicyRef>]| -> Vec<Ask> { of.iter().filter_map(|p| p.ask.clone()).collect() };
    let now = asks(candidate);
    asks(baseline).iter().any(|before| !now.iter().any(|ask| ask.covers(before)))
}

fn same_asks(a: &[Arc<PolicyRef>], b: &[Arc<PolicyRef>]) -> bool {
    let has = |of: &[Arc<PolicyRef>], p: &PolicyRef| of.iter().any(|o| o.id == p.id && o.ask == p.ask);
    a.len() == b.len() && a.iter().all(|p| has(b, p)) && b.iter().all(|p| has(a, p))
}

/// What is asked of people before and now, for a sentence; empty where that is the same, or only one side asks.
pub fn asked_words(baseline: &[Arc<PolicyRef>], candidate: &[Arc<PolicyRef>]) -> String {
    if baseline.is_empty() || candidate.is_empty() || same_asks(baseline, candidate) {
        return String::new();
    }
    let words = |of: &[Arc<PolicyRef>]| {
        let all: Vec<String> = of.iter().filter_map(|p| p.ask.as_ref()).take(3).map(Ask::words).collect();
        all.join(" and ")
    };
    format!(" Asked are {} before, {} now.", words(baseline), words(candidate))
}

fn same_policies(a: &[String], b: &[String]) -> bool {
    a.len() == b.len() && a.iter().all(|id| b.contains(id)) && b.iter().all(|id| a.contains(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(outcome: Outcome, tier: Option<Tier>) -> Side<'static> {
        Side { outcome, policies: &[], asks: &[], tier }
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
        let side = |policies| Side { outcome: Outcome::Allow, policies, asks: &[], tier: Some(Tier::Write) };
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

    /// The names stay, and so does that people are asked.
    #[test]
    fn weaker_human_gate_is_no_drift() {
        let ids = ["tenant/base/ask".to_owned()];
        let ask = |group: &str, count: u32| Ask { group: group.into(), count, window_seconds: None, binds: Vec::new() };
        let asking = |ask: Ask| {
            let id = ids[0].clone();
            [Arc::new(PolicyRef {
                id,
                reason: None,
                code: None,
                text_hash: String::new(),
                ask: Some(ask),
                grants_tenants: false,
            })]
        };
        let two = asking(ask("leads", 2));
        let drift = |now: &[Arc<PolicyRef>], tier| {
            let side = |asks| Side { outcome: Outcome::ApprovalRequired, policies: &ids, asks, tier: Some(tier) };
            (compare(&side(&two), &side(now)), asked_words(&two, now))
        };
        let weaker = [
            ask("everybody", 2),
            ask("leads", 1),
            Ask { window_seconds: Some(900), ..ask("leads", 2) },
            Ask { binds: vec!["repo".into()], ..ask("leads", 2) },
        ];
        for now in weaker {
            for tier in [Tier::Read, Tier::Write] {
                let (found, words) = drift(&asking(now.clone()), tier);
                let found = found.unwrap();
                assert_eq!((found.severity, found.cause), (Severity::Medium, Cause::ApprovalWeakened), "{now:?}");
                assert!(found.cause.expands() && !found.cause.restricts());
                assert!(words.contains("2 of \"leads\" before") && words.contains(&now.words()), "{words}");
            }
        }
        assert_eq!(drift(&two, Tier::Write), (None, String::new()));
        let stricter = drift(&asking(ask("leads", 3)), Tier::Write).0.unwrap();
        assert_eq!((stricter.severity, stricter.cause), (Severity::Low, Cause::RuleChanged));
        // Asked by another policy besides, nothing is weaker.
        let both = [two[0].clone(), asking(ask("everybody", 1))[0].clone()];
        assert_eq!(drift(&both, Tier::Write).0.unwrap().cause, Cause::RuleChanged);
    }
}
