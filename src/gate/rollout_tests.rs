//! The gates while a rollout runs: who is answered under which package, and what is said of it where.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use super::tests::{World, agent, call, compile};
use super::*;
use crate::policy::Side;

const STABLE: &str = r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");"#;
const CANDIDATE: &str = r#"@id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
@id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write");"#;

fn under_way(percent: u8) -> World {
    let mut world = World::new(STABLE, vec![agent("coder", 2)]);
    set(&mut world, Some(CANDIDATE), percent);
    world
}

fn set(world: &mut World, candidate: Option<&str>, percent: u8) {
    let tenant = world.snapshot.tenants.get_mut("acme").unwrap();
    let package = candidate.map(|text| compile(text, Side::Tenant));
    let canary = Canary { package, revision: 7, percent, shadow_percent: 100, key: [3; 32] };
    *tenant = Arc::new(Tenant { canary: Some(Arc::new(canary)), ..Tenant::clone(tenant) });
}

fn in_session(world: &mut World, id: &str, tool: &str) -> Checked {
    world.session = SessionState::Live;
    world.ask(&CheckRequest { session: Some(id.into()), ..call("coder", tool) })
}

fn ids() -> Vec<String> {
    (0..200u64)
        .map(|n| format!("{:032x}", u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834)))
        .collect()
}

#[test]
fn each_session_is_answered_and_recorded_under_the_package_of_its_arm() {
    let mut world = under_way(50);
    let tenant = world.snapshot.tenants["acme"].clone();
    let mut seen = BTreeSet::new();
    for id in ids() {
        let (arm, package) = tenant.decides(Unit::Session(&id));
        let checked = in_session(&mut world, &id, "git/push");
        let expected = if arm == Arm::Canary { Outcome::Allow } else { Outcome::Deny };
        assert_eq!(checked.decision.outcome, expected, "{id}");
        assert_eq!((checked.record.arm.as_str(), checked.record.revision), (arm.as_str(), Some(7)));
        assert_eq!(checked.record.digests["tenant"], [package.unwrap().digest()]);
        assert!(Arc::ptr_eq(package.unwrap(), tenant.package_of(arm).unwrap()));
        seen.insert(arm);
    }
    assert_eq!(seen.len(), 2, "both arms answer somebody");
}

#[test]
fn a_session_keeps_its_arm_and_only_moves_to_the_candidate_as_stages_grow() {
    let mut world = under_way(0);
    let mut before: BTreeSet<String> = BTreeSet::new();
    for percent in [5, 25, 60, 100] {
        set(&mut world, Some(CANDIDATE), percent);
        let canary = |world: &mut World, id: &str| in_session(world, id, "git/push").record.arm == "canary";
        let now: BTreeSet<String> = ids().into_iter().filter(|id| canary(&mut world, id)).collect();
        assert!(before.is_subset(&now), "at {percent} % a session went back");
        let again: BTreeSet<String> = ids().into_iter().filter(|id| canary(&mut world, id)).collect();
        assert_eq!(now, again);
        before = now;
    }
    assert_eq!(before.len(), ids().len());
}

/// Ids that a caller chooses choose nothing: only those that Remit issued, and that live, are looked at.
#[test]
fn a_session_that_is_not_live_chooses_no_arm_and_counts_for_nothing() {
    let mut world = under_way(50);
    world.session = SessionState::Unknown;
    let arms: BTreeSet<String> = ids()
        .into_iter()
        .map(|id| {
            let checked = world.ask(&CheckRequest { session: Some(id), ..call("coder", "git/push") });
            assert_eq!(checked.decision.code, "session_unknown");
            assert_eq!(checked.record.revision, None, "it counts on neither side");
            checked.record.arm
        })
        .collect();
    assert_eq!(arms.len(), 1, "the agent's own arm, whatever it names");
    let nobody = world.ask(&call("nobody", "git/push"));
    assert_eq!((nobody.decision.code, nobody.record.revision), ("unknown_agent", None));
}

#[test]
fn outside_of_a_session_an_agent_has_one_arm() {
    let world = under_way(50);
    let first = world.ask(&call("coder", "git/push")).record;
    assert_eq!(first.revision, Some(7));
    for tool in ["git/log", "git/push", "git/none"] {
        assert_eq!(world.ask(&call("coder", tool)).record.arm, first.arm);
    }
}

#[test]
fn a_replica_that_cannot_load_the_candidate_answers_no_session_under_the_other_package() {
    let mut world = under_way(50);
    let before: Vec<_> = ids().iter().map(|id| in_session(&mut world, id, "git/log").record.arm).collect();
    set(&mut world, None, 50);
    for (id, arm) in ids().iter().zip(before) {
        let checked = in_session(&mut world, id, "git/log");
        assert_eq!(checked.record.arm, arm);
        let expected = if arm == "canary" { "no_package" } else { "allowed" };
        assert_eq!(checked.decision.code, expected);
        assert_eq!(checked.record.digests.contains_key("tenant"), arm == "stable");
    }
}

#[test]
fn no_answer_tells_the_arm() {
    let mut world = under_way(50);
    let asked = ["git/none", "git/log"];
    for tool in asked {
        let answers: BTreeSet<String> = ids()
            .iter()
            .map(|id| {
                let decision = in_session(&mut world, id, tool).decision;
                format!("{} {} {}", decision.code, decision.reason, decision.status)
            })
            .collect();
        assert_eq!(answers.len(), 1, "where both packages say the same, the answers are the same: {answers:?}");
    }
}

#[test]
fn the_other_arm_can_be_asked_without_answering_by_it() {
    let mut world = under_way(50);
    for id in ids() {
        let checked = in_session(&mut world, &id, "git/push");
        let request = CheckRequest { session: Some(id), ..call("coder", "git/push") };
        let (stable, canary) =
            (check_under(&world.input(&request), Arm::Stable), check_under(&world.input(&request), Arm::Canary));
        assert_eq!((stable.decision.outcome, canary.decision.outcome), (Outcome::Deny, Outcome::Allow));
        let same = if checked.record.arm == "canary" { canary } else { stable };
        assert_eq!(checked.decision.outcome, same.decision.outcome);
    }
}

#[test]
fn what_could_be_allowed_is_asked_of_the_same_package_as_a_check() {
    let mut world = under_way(50);
    for id in ids() {
        let checked = in_session(&mut world, &id, "git/push");
        let request = CheckRequest { session: Some(id), ..call("coder", "git/push") };
        let could = could_allow(&world.input(&request)).unwrap().allowed;
        assert_eq!(could != Could::No, checked.decision.outcome == Outcome::Allow);
    }
}

#[test]
fn without_a_rollout_nothing_counts_for_one() {
    let world = World::new(STABLE, vec![agent("coder", 2)]);
    let record = world.ask(&call("coder", "git/log")).record;
    assert_eq!((record.arm.as_str(), record.revision), ("stable", None));
    let text = serde_json::to_value(&record).unwrap();
    assert_eq!(text["arm"], json!("stable"));
    assert!(text.get("revision").is_none());
}
