use proptest::prelude::*;
use serde_json::json;

use super::testing::{BASE, World, agent, changed, delegator, request, set, set_of, spec, tool};
use super::*;
use crate::api::{DelegationMode, Expectation, ReplayVerdict, SessionMode, SourceFile, Tier};
use crate::gate::{Outcome, SessionState, depends_on_redacted};
use crate::lifecycle::drift::{Cause, Severity};
use crate::policy::{Arguments, base_platform};

fn replayed(world: &World, baseline: &EffectiveSet, candidate: &EffectiveSet) -> Report {
    run(baseline, candidate, &[], &mut world.recorded()).unwrap()
}

/// Attacks of the issue, through a whole replay.
mod attacks {
    use super::*;

    #[test]
    fn permit_added_ranks_critical() {
        let base = set("1.0.0", BASE);
        let mut world = World::new(&base);
        world.ask("junior", "git/push", json!({"command": "git push"}));
        let report = replayed(&world, &base, &changed("when { principal.trust >= 2 }", ""));
        assert_eq!((report.counts.critical, report.counts.expansions, report.verdict), (1, 1, ReplayVerdict::Fail));
        let worst = &report.worst[0];
        assert_eq!((worst.severity, worst.cause), (Severity::Critical, Cause::AccessExpanded));
        assert_eq!(
            worst.sentence,
            "Agent \"junior\" calling tool \"git/push\" (write): denied (no_permit) before, allowed by tenant/base/writes now."
        );
        assert_eq!(worst.candidate.policies, ["tenant/base/writes"]);
        assert!(!serde_json::to_string(&report).unwrap().contains("git push\""), "no argument value");
    }

    #[test]
    fn human_gate_removed_ranks_critical() {
        let base = set("1.0.0", BASE);
        let mut world = World::new(&base);
        world.ask("coder", "git/gc", json!({}));
        let without = BASE.split("@id(\"ask-admin\")").next().unwrap();
        let report = replayed(&world, &base, &set("2.0.0", without));
        assert_eq!((report.counts.critical, report.verdict), (1, ReplayVerdict::Fail));
        let worst = &report.worst[0];
        assert_eq!((worst.severity, worst.cause), (Severity::Critical, Cause::ApprovalRemoved));
        let sides = (worst.baseline.policies.as_slice(), worst.candidate.policies.as_slice());
        assert_eq!(sides, (&["tenant/base/ask-admin".to_owned()][..], &["tenant/base/admins".to_owned()][..]));
    }

    /// The name of the policy stays, and people are asked; other people.
    #[test]
    fn weaker_human_gate_is_no_drift() {
        let base = set("1.0.0", BASE);
        let mut world = World::new(&base);
        world.ask("coder", "git/gc", json!({}));
        for other in [r#"@require_approval("everybody")"#, r#"@require_approval("leads") @approval_window("1h")"#] {
            let candidate = changed(r#"@require_approval("leads")"#, other);
            let report = replayed(&world, &base, &candidate);
            assert_eq!((report.counts.medium, report.counts.expansions, report.counts.same), (1, 1, 0));
            let worst = &report.worst[0];
            assert_eq!((worst.severity, worst.cause), (Severity::Medium, Cause::ApprovalWeakened));
            let asked = format!(
                "Asked are 1 of \"leads\" before, 1 of {} now.",
                if other.contains("every") { "\"everybody\"" } else { "\"leads\" for 3600 s" }
            );
            assert!(
                worst.sentence.contains("tenant/base/ask-admin") && worst.sentence.ends_with(&asked),
                "{}",
                worst.sentence
            );
            assert_eq!(replayed(&world, &candidate, &candidate).counts.same, 1);
        }
    }

    /// Many writes that a fix denies, of one agent, are one agent's share; what is shown are the true numbers.
    #[test]
    fn denials_inflated_to_hold_back_a_fix() {
        let base = set("1.0.0", BASE);
        let fix = changed("when { principal.trust >= 2 }", "when { principal.trust >= 4 }");
        let mut world = World::new(&base);
        world.agents.push(super::super::testing::agent("mallory", 3));
        for _ in 0..40 {
            world.ask("mallory", "git/push", json!({}));
        }
        world.ask("junior", "git/log", json!({}));
        let summary = replayed(&world, &base, &fix).summary("r");
        assert_eq!((summary.high_restrictions, summary.replayed), (40, 41));
        let shares = summary.shares.unwrap();
        assert_eq!((shares.high_restrictions, shares.most, shares.callers), (1, 40, 1));
        // Where another loses as many, both count.
        for _ in 0..40 {
            world.ask("coder", "git/push", json!({}));
        }
        let shares = replayed(&world, &base, &fix).summary("r").shares.unwrap();
        assert_eq!((shares.high_restrictions, shares.most, shares.callers), (80, 40, 2));
        // Alone it is all there is.
        world.records.truncate(40);
        assert_eq!(replayed(&world, &base, &fix).summary("r").shares.unwrap().high_restrictions, 40);
    }

    /// Records of one instant come in one order, however they arrive: else two runs over the same records would differ.
    #[test]
    fn equal_timestamps_determinism() {
        let base = set("1.0.0", BASE);
        let mut world = World::new(&base);
        for n in 0..40 {
            let (who, tool) = [("junior", "git/push"), ("coder", "git/gc"), ("coder", "git/log")][n % 3];
            world.ask(who, tool, json!({})).time = jiff::Timestamp::UNIX_EPOCH;
        }
        let candidate = changed("when { principal.trust >= 2 }", "");
        let first = replayed(&world, &base, &candidate);
        for turn in 1..40 {
            world.records.rotate_left(turn % 7 + 1);
            let again = replayed(&world, &base, &candidate);
            assert_eq!(again, first, "the order of arrival is no order");
        }
        world.records[5].id = "0190-999999".into();
        assert_ne!(replayed(&world, &base, &candidate).input_fingerprint, first.input_fingerprint);
    }

    #[test]
    fn zero_event_replay_passes() {
        let base = set("1.0.0", BASE);
        let mut world = World::new(&base);
        assert_eq!(replayed(&world, &base, &base).verdict, ReplayVerdict::Inconclusive);
        world.ask("coder", "git/log", json!({})).facts.replay = None;
        let report = replayed(&world, &base, &base);
        assert_eq!((report.counts.selected, report.verdict), (1, ReplayVerdict::Inconclusive));
        assert!(report.reasons[0].contains("1 no_facts"), "{:?}", report.reasons);
        world.ask("coder", "git/log", json!({}));
        assert_eq!(replayed(&world, &base, &base).verdict, ReplayVerdict::Pass);
    }
}

#[test]
fn a_retiered_tool_shows_as_critical_although_no_policy_changed() {
    let base = set("1.0.0", BASE);
    let mut retiered = spec("2.0.0", BASE);
    retiered.tools[2].tier = Tier::Read;
    let mut world = World::new(&base);
    world.ask("junior", "git/gc", json!({}));
    let report = replayed(&world, &base, &set_of(&retiered));
    assert_eq!(report.counts.critical, 1);
    assert!(report.worst[0].sentence.contains("\"git/gc\" (admin, now read)"), "{}", report.worst[0].sentence);
}

#[test]
fn what_is_not_kept_is_counted_and_never_guessed() {
    let base = set("1.0.0", BASE);
    let mut world = World::new(&base);
    world.ask("coder", "git/push", json!({"password": "x", "branch": "main"}));
    world.ask("coder", "git/log", json!({})).facts.replay = None;
    world.ask("coder", "git/log", json!({})).tenant = "other".into();
    world.ask("coder", "git/log", json!({})).tenant_uid = "uid-gone".into();
    let refused = world.ask("coder", "git/log", json!({}));
    (refused.outcome, refused.facts.replay) = (Outcome::Refused, None);
    world.ask("coder", "git/log", json!({})).outcome = Outcome::Deny;
    world.ask("coder", "git/log", json!({}));
    let mut records = world.recorded();
    let torn = ReplayRow { place: Place { micros: 5, id: "torn".into() }, hash: "00".into(), body: "{".into() };
    records.push(Recorded::from(torn));
    let because = |candidate: &EffectiveSet, records: &mut [Recorded]| {
        let report = run(&base, candidate, &[], records).unwrap();
        assert_eq!(report.counts.selected, 8);
        assert_eq!(report.counts.replayed + report.counts.not_replayable, 8);
        report.counts.not_replayable_because
    };
    let kept = because(&base, &mut records);
    let expected = ["another_tenant", "no_facts", "not_reproduced", "refused", "tenant_recreated", "unreadable"];
    assert_eq!(kept.keys().map(String::as_str).collect::<Vec<_>>(), expected, "nobody reads the password");
    let reads = changed(
        "@id(\"reads\")",
        "@id(\"p\") forbid(principal, action == Action::\"call_tool\", resource)\
        when { context.arguments.hasTag(\"password\") };\n@id(\"reads\")",
    );
    assert_eq!(because(&reads, &mut records).get("redacted_value"), Some(&1));
    let elsewhere = changed(
        "@id(\"reads\")",
        "@id(\"p\") forbid(principal, action == Action::\"call_tool\", resource)\
        when { principal.trust > 3 && context.arguments.hasTag(\"password\") };\n@id(\"reads\")",
    );
    assert_eq!(because(&elsewhere, &mut records).get("redacted_value"), None, "it never came to read it");
    let other = changed(
        "@id(\"reads\")",
        "@id(\"p\") forbid(principal, action == Action::\"call_tool\", resource)\
        when { context.arguments.hasTag(\"branch\") };\n@id(\"reads\")",
    );
    assert_eq!(because(&other, &mut records).get("redacted_value"), None);
}

#[test]
fn the_worst_come_first_and_the_first_of_equals() {
    let base = set("1.0.0", BASE);
    let mut world = World::new(&base);
    for _ in 0..3 {
        world.ask("coder", "git/log", json!({}));
        world.ask("coder", "git/push", json!({}));
        world.ask("junior", "git/push", json!({}));
        world.ask("coder", "git/gc", json!({}));
    }
    // Reads and pushes are lost, juniors push, and nobody is asked about gc by the same policy.
    let policies = r#"
        @id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write") when { principal.trust < 2 };
        @id("admins") permit(principal, action == Action::"call_tool", resource in ToolGroup::"admin");
        @id("ask-other") @require_approval("leads")
        forbid(principal, action == Action::"call_tool", resource in ToolGroup::"admin");"#;
    let report = replayed(&world, &base, &set("2.0.0", policies));
    let found: Vec<_> = report.worst.iter().map(|e| (e.severity, e.decision.as_str())).collect();
    let mut sorted = found.clone();
    sorted.sort_by_key(|(severity, id)| (std::cmp::Reverse(*severity), *id));
    assert_eq!(found, sorted);
    let c = &report.counts;
    assert_eq!((c.critical, c.high, c.medium, c.low, c.same), (3, 3, 3, 3, 0));
    assert_eq!((c.expansions, c.restrictions, c.high_restrictions), (3, 6, 3));
    assert_eq!(c.causes["rule_changed"], 3);
    let cell = report.matrix.iter().find(|m| (m.baseline, m.candidate) == (Outcome::Allow, Outcome::Deny)).unwrap();
    assert_eq!((cell.reads, cell.writes), (3, 3));
    assert_eq!(report.summary("r").worst.len(), 10);
}

#[test]
fn invariants_hold_or_have_a_counter_example() {
    let base = set("1.0.0", BASE);
    let mut world = World::new(&base);
    world.ask("coder", "git/log", json!({}));
    let named = |names: &[&str]| names.iter().map(|n| Invariant::named(*n)).collect::<Vec<_>>();
    let judged = |candidate: &EffectiveSet, invariants: &[Invariant], world: &World| {
        let report = run(&base, candidate, invariants, &mut world.recorded()).unwrap();
        assert!(report.invariants.iter().all(|i| i.holds == i.counter_example.is_none()));
        assert_eq!(report.verdict == ReplayVerdict::Fail, report.invariants.iter().any(|i| !i.holds));
        report.invariants.into_iter().map(|i| i.counter_example.unwrap_or_default()).collect::<Vec<_>>()
    };
    let all = named(&["no_write_privilege_escalation", "unknown_tools_denied", "write_tools_need_approval"]);
    let found = judged(&base, &all, &world);
    assert_eq!(found[..2], ["", ""]);
    assert!(found[2].contains("trust 2 calling tool \"git/push\" (write)"), "nobody pushed, and yet: {}", found[2]);
    let found = judged(&changed("when { principal.trust >= 2 }", ""), &all[..1], &world);
    assert!(found[0].contains("trust 1 calling tool \"git/push\""), "{}", found[0]);
    let own = Invariant {
        agent_trust_below: Some(3),
        tier: Some(Tier::Admin),
        expect: Some(Expectation::NeverAllow),
        ..Invariant::named("juniors-no-admin")
    };
    assert_eq!(judged(&base, std::slice::from_ref(&own), &world), [""]);
    let opened = changed("when { principal.trust >= 3 }", "when { principal.trust >= 2 }");
    let found = judged(&opened, std::slice::from_ref(&own), &world);
    assert!(found[0].contains("trust 2 calling tool \"git/gc\" (admin)"), "asking is not never: {}", found[0]);
    let alone = Invariant { expect: Some(Expectation::NeverAllowAlone), ..own.clone() };
    assert_eq!(judged(&opened, &[alone], &world), [""]);
    // What only shows with arguments has a recorded decision for its counter-example, and who is named is probed by name.
    let branch = changed(
        "@id(\"reads\")",
        "@id(\"x\") permit(principal, action == Action::\"call_tool\", resource == Tool::\"git/push\") \
         when { context.arguments.hasTag(\"branch\") };\n@id(\"reads\")",
    );
    let junior = Invariant {
        agent: Some("junior".into()),
        tool: Some("git/push".into()),
        expect: Some(Expectation::NeverAllow),
        ..Invariant::named("no-junior")
    };
    let found = judged(&base, std::slice::from_ref(&junior), &world);
    assert!(found[0].contains("Agent \"junior\" with trust 2"), "{}", found[0]);
    let junior = Invariant { agent_trust_below: Some(2), ..junior };
    assert_eq!(judged(&branch, std::slice::from_ref(&junior), &world), [""]);
    world.ask("junior", "git/push", json!({"branch": "main"}));
    world.ask("junior", "git/push", json!({"branch": "main"}));
    let report = run(&base, &branch, &[junior], &mut world.recorded()).unwrap();
    assert_eq!(report.invariants[0].decisions, 2);
    assert!(report.invariants[0].counter_example.as_ref().unwrap().contains(&world.records[1].id), "the first");
    for unknown in ["no_escalation", ""] {
        assert!(run(&base, &base, &named(&[unknown]), &mut []).is_err(), "{unknown:?}");
    }
    assert!(run(&base, &base, &named(&["unknown_tools_denied"; 2]), &mut []).is_err(), "twice");
}

#[test]
fn the_page_holds_no_markup_of_others() {
    let base = set("1.0.0", BASE);
    let mut world = World::new(&base);
    world.agents.push(agent("<script>alert(1)</script>", 1));
    world.ask("<script>alert(1)</script>", "git/push", json!({}));
    world.ask("junior", "git/<img src=x onerror=\"alert(1)\">\u{202e}", json!({}));
    let mut open = spec("2.0.0", &BASE.replace("when { principal.trust >= 2 }", ""));
    open.tools.push(tool("git/<img src=x onerror=\"alert(1)\">\u{202e}", Tier::Write));
    // Names of tools are letters and few signs; what a record holds is whatever a caller sent.
    open.tools.pop();
    let mut report = replayed(&world, &base, &set_of(&open));
    report.worst[0].agent = "<b>".into();
    report.worst[0].sentence.push_str("\u{202e}'\"&");
    report.reasons.push("</p><iframe>".into());
    let page = html(&report);
    for never in ["<script", "<iframe", "<img", "onerror=\"", "\u{202e}", "javascript:"] {
        assert!(!page.contains(never), "{never}");
    }
    assert!(page.contains("&lt;script&gt;") && page.contains("default-src &#39;none&#39;"), "{page}");
    assert!(page.contains(&report.input_fingerprint) && page.contains("tenant/base/writes"));
}

/// Everything that can be different about a call.
#[derive(Clone, Debug)]
struct Question {
    agent: usize,
    tool: usize,
    argument: usize,
    session: usize,
    claimed: bool,
    second: i64,
    subject: bool,
}

fn questions() -> impl Strategy<Value = Vec<Question>> {
    let one = (0..8usize, 0..5usize, 0..4usize, 0..3usize, any::<bool>(), 0..100_000i64, 0..10u8).prop_map(
        |(agent, tool, argument, session, claimed, second, subject)| Question {
            agent,
            tool,
            argument,
            session,
            claimed: claimed && agent == 3,
            second,
            subject: subject > 0,
        },
    );
    proptest::collection::vec(one, 1..40)
}

/// Agents of every kind: with sessions, delegators, chains that end, loop, are too deep or lead nowhere.
fn crowd(world: &mut World) {
    let mut add = |name: &str, trust: i64, mode: DelegationMode, by: Option<&str>| {
        let mut entry = agent(name, trust);
        (entry.delegation, entry.fixed_delegator) = (mode, by.map(delegator));
        world.agents.push(entry);
    };
    add("helper", 4, DelegationMode::Required, Some("user:alice"));
    add("second", 3, DelegationMode::Optional, Some("junior"));
    add("loop-a", 3, DelegationMode::Optional, Some("loop-b"));
    add("loop-b", 3, DelegationMode::Optional, Some("loop-a"));
    add("lost", 3, DelegationMode::Optional, Some("nobody"));
    add("orphan", 3, DelegationMode::Required, None);
    for n in 0..12 {
        add(&format!("deep-{n}"), 4, DelegationMode::Optional, Some(&format!("deep-{}", n + 1)));
    }
    let mut suspended = agent("stopped", 4);
    suspended.facts.suspended = true;
    world.agents.push(suspended);
    let mut sessions = agent("sessions", 4);
    sessions.session = SessionMode::Required;
    world.agents.push(sessions);
}

const AGENTS: [&str; 8] = ["coder", "junior", "second", "helper", "loop-a", "deep-0", "sessions", "unknown"];
const MORE: [&str; 8] = ["lost", "orphan", "stopped", "coder", "helper", "deep-5", "second", "junior"];
const TOOLS: [&str; 5] = ["git/log", "git/push", "git/gc", "git/new", "mail/send"];

fn put(question: &Question, n: usize) -> (crate::gate::CheckRequest, SessionState) {
    let names = if n.is_multiple_of(2) { AGENTS } else { MORE };
    let arguments =
        [json!({}), json!({"command": "push --force"}), json!({"branch": "main", "n": 3}), json!({"password": "x"})];
    let mut request = request(names[question.agent], TOOLS[question.tool], arguments[question.argument].clone());
    let session = [SessionState::NotNamed, SessionState::Live, SessionState::Unknown][question.session];
    if session != SessionState::NotNamed {
        request.session = Some("s-1".into());
    }
    if question.claimed {
        request.on_behalf_of = Some(delegator("user:alice"));
    }
    if !question.subject {
        request.subject = crate::gate::EntityRef { type_: "user".into(), id: "bob".into(), ..Default::default() };
        request.session = None;
        return (request, SessionState::NotNamed);
    }
    (request, session)
}

/// Another package: tools come and go, and the rules are others.
fn other() -> EffectiveSet {
    let mut other = spec(
        "2.0.0",
        r#"
        @id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read") when { principal.trust > 1 };
        @id("writes") permit(principal is Agent, action == Action::"call_tool", resource in ToolGroup::"write")
        when { principal has delegated_by || context has session };
        @id("main") forbid(principal, action == Action::"call_tool", resource)
        when { context.arguments.hasTag("branch") && context.hour < 12 };
        @id("ask") @require_approval("leads") forbid(principal, action == Action::"call_tool", resource == Tool::"git/push");
        "#,
    );
    other.tools = vec![tool("git/log", Tier::Write), tool("git/push", Tier::Write), tool("git/new", Tier::Read)];
    other.policies.push(SourceFile { name: "more.cedar".into(), text: String::new() });
    set_of(&other)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// What a replay says of a recorded call is what the check would have said, had the candidate been in force then: for every kind
    /// of agent, session and delegator, and also where the check ended before it came to them.
    #[test]
    fn a_replay_is_what_the_check_would_have_said(asked in questions(), observing in any::<bool>(), nothing in any::<bool>()) {
        let (base, other) = (set("1.0.0", BASE), other());
        let mut world = World::new(&base);
        crowd(&mut world);
        world.observing = observing;
        if nothing {
            world.set = None;
        }
        let under = |set: &EffectiveSet, world: &World| World { set: Some(set.clone()), observing: false, ..world.clone() };
        let worlds = [under(&base, &world), under(&other, &world)];
        for (n, question) in asked.iter().enumerate() {
            let (request, session) = put(question, n);
            let record = world.check(&request, session, question.second).record;
            // Through JSON, as the store keeps it.
            let record: DecisionRecord = serde_json::from_value(json!(record)).unwrap();
            let Some(facts) = record.facts.replay.as_deref() else { panic!("{record:?}") };
            for (set, world) in [&base, &other].into_iter().zip(&worlds) {
                let hidden = Arguments::flatten_kept(&record.request.arguments).unwrap().1;
                let snapshot = world::alone(&record, facts, set);
                if depends_on_redacted(&world::input(&record, facts, &snapshot), &hidden, facts.long_values) {
                    // Counted as not replayable. Only where something is not kept.
                    prop_assert!(nothing || question.argument == 3);
                    continue;
                }
                let again = ask(&record, facts, &set.platform, &set.package);
                let now = world.check(&request, session, question.second).decision;
                prop_assert_eq!((again.outcome, again.code), (now.outcome, now.code), "{:?} {:?}", request, record.facts);
                prop_assert_eq!(&again.policies, &now.policies);
            }
        }
    }

    /// The same records come to the same report and fingerprints for any number of threads, any size of pages, and any restarts.
    #[test]
    fn the_same_input_has_the_same_fingerprint(
        asked in questions(), threads in 1..9usize, sizes in proptest::collection::vec(1..9usize, 1..6), stops in 0..4usize,
    ) {
        let (base, other) = (set("1.0.0", BASE), other());
        let mut world = World::new(&base);
        crowd(&mut world);
        for (n, question) in asked.iter().enumerate() {
            let (request, session) = put(question, n);
            let mut record = world.check(&request, session, question.second % 3).record;
            record.id = format!("0190-{n:06}");
            world.records.push(record);
        }
        let mut records = world.recorded();
        order(&mut records);
        let task = || Task {
            tenant: "acme".into(),
            tenant_uid: Some("uid-acme".into()),
            baseline: base.clone(),
            candidate: other.clone(),
            invariants: vec![
                Invariant::named("no_write_privilege_escalation"),
                serde_json::from_value(json!({"name": "j", "agent": "junior", "tier": "write", "expect": "neverAllow"})).unwrap(),
                serde_json::from_value(json!({"name": "c", "team": "core", "tool": "git/log", "expect": "neverAllowAlone"})).unwrap(),
                Invariant::named("unknown_tools_denied"),
            ],
            selection: ReplaySelection { agents: vec!["coder".into(), "junior".into(), "deep-0".into()], ..Default::default() },
        };
        let whole = run_task(task(), &records, 1).unwrap();
        let mut replay = Replay::new(task()).unwrap();
        let mut tally = replay.begin();
        let (mut rest, mut pages) = (records.as_slice(), 0);
        while !rest.is_empty() {
            let size = sizes[pages % sizes.len()].min(rest.len());
            replay.page(&mut tally, &rest[..size], threads);
            rest = &rest[size..];
            pages += 1;
            if pages <= stops {
                // A new process goes on from what was kept.
                replay = Replay::new(task()).unwrap();
                tally = serde_json::from_str(&serde_json::to_string(&tally).unwrap()).unwrap();
                prop_assert!(replay.goes_on(&tally));
            }
        }
        prop_assert_eq!(&replay.finish(&tally), &whole);
        // So does one that stops after every record and every made-up call, and goes on from what was kept.
        let kept = |tally: &Tally| serde_json::from_str::<Tally>(&serde_json::to_string(tally).unwrap()).unwrap();
        let (mut tally, mut rest) = (replay.begin(), records.as_slice());
        while !rest.is_empty() {
            let looked_at = replay.some(&mut tally, rest, &|| true);
            prop_assert_eq!(looked_at, 1);
            prop_assert_eq!(tally.last.as_ref(), Some(rest[0].place()), "also where it is not of the selection");
            rest = &rest[looked_at..];
            tally = kept(&tally);
        }
        let mut made_up = 0;
        while !replay.make_up(&mut tally, &|| true) {
            tally = kept(&tally);
            prop_assert!(replay.goes_on(&tally));
            made_up += 1;
        }
        // Anybody, junior and the team: of five trusts each, with the tools of both packages and one that is on neither list.
        prop_assert_eq!(made_up, 3 * 5 * 5);
        prop_assert_eq!(&replay.finish(&tally), &whole);
        let elsewhere = Replay::new(Task { candidate: base.clone(), ..task() }).unwrap();
        prop_assert!(!elsewhere.goes_on(&tally), "what was found for another candidate is no use");
        prop_assert_ne!(elsewhere.begin(), replay.begin());
    }
}

#[test]
fn the_report_says_whose_decisions_were_left_out() {
    let base = set("1.0.0", BASE);
    let mut world = World::new(&base);
    world.ask("coder", "git/log", json!({}));
    let mut report = replayed(&world, &base, &base);
    let place = crate::store::Place::default();
    let cut = |agent: &str, left_out| crate::store::Cut { agent: agent.into(), after: place.clone(), left_out };
    report.leave_out(vec![cut("a", 1), cut("<b>", 70_000), cut("c", 1)]);
    assert_eq!(report.left_out.iter().map(|l| l.agent.as_str()).collect::<Vec<_>>(), ["<b>", "a", "c"]);
    assert!(report.text().contains("left out by the limit: 70000 of agent \"<b>\""), "{}", report.text());
    assert!(html(&report).contains("70000 of &lt;b&gt;, 1 of a") && !html(&report).contains("<b>"));
}

#[test]
fn another_platform_is_another_input() {
    let base = set("1.0.0", BASE);
    let mut world = World::new(&base);
    world.ask("coder", "git/log", json!({}));
    let twice = EffectiveSet { platform: vec![base_platform(), base_platform()], ..base.clone() };
    let (one, other) = (replayed(&world, &base, &base), replayed(&world, &twice, &twice));
    assert_ne!(one.input_fingerprint, other.input_fingerprint);
    assert_ne!(one.result_fingerprint, other.result_fingerprint);
}
