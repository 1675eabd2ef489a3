use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::*;
use crate::api::{DelegationMode, Delegator, DelegatorKind, EffectiveProfile, Sensitivity, SessionMode, Tier, Tool};
use crate::gate::{
    ActionRef, AgentEntry, Caller, CheckInput, CheckRequest, EntityRef, MAX_PATTERN_COST, SessionState, Snapshot,
    Tenant, check,
};
use crate::package::run_tests;
use crate::policy::{AgentFacts, CallerKind, base_platform};

const POLICIES: &str = r#"
    @id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
    @id("admins") permit(principal, action == Action::"call_tool", resource in ToolGroup::"admin");
    @id("no-force") @reason("Open a pull request instead.") @sensitive("password")
    forbid(principal, action == Action::"call_tool", resource)
    when { context.arguments.hasTag("command") && context.arguments.getTag("command") like "*--force*" };
    // Two people look.
    @id("ask-gc") @require_approval("leads")
    forbid(principal, action == Action::"call_tool", resource == Tool::"git/gc");
"#;

fn spec() -> PolicyPackageSpec {
    let tool = |name: &str, tier| Tool {
        name: name.into(),
        tier,
        sensitivity: Sensitivity::Normal,
        groups: vec![],
        description: Some("A \"tool\"\nof git".into()),
        schema_digest: None,
    };
    PolicyPackageSpec {
        package: "first".into(),
        version: "1.4.2".into(),
        tools: vec![tool("git/log", Tier::Read), tool("git/push", Tier::Write), tool("git/gc", Tier::Admin)],
        policies: vec![SourceFile { name: "main.cedar".into(), text: POLICIES.into() }],
        ..Default::default()
    }
}

/// A tenant that observes, and what was recorded of it.
struct World {
    package: Option<Arc<CompiledPackage>>,
    agents: BTreeMap<String, AgentEntry>,
    observing: bool,
    records: Vec<DecisionRecord>,
}

impl World {
    fn new() -> Self {
        let spec = spec();
        let mut world = Self {
            package: Some(CompiledPackage::compile(&spec, &digest(&spec), Side::Tenant).unwrap()),
            agents: BTreeMap::new(),
            observing: true,
            records: vec![],
        };
        for (name, type_, trust) in [("coder", "coder", 3), ("tester", "tester", 2), ("fresh", "tester", 0)] {
            world.agent(name, type_, trust);
        }
        world
    }

    fn agent(&mut self, name: &str, type_: &str, trust: i64) -> &mut AgentEntry {
        let facts = AgentFacts {
            tenant: "acme".into(),
            name: name.into(),
            uid: format!("uid-{name}"),
            type_: type_.into(),
            teams: vec!["core".into(), name.into()],
            trust,
            suspended: false,
            attributes: BTreeMap::from([("a\"b".into(), "c\nd".into())]),
        };
        let entry = AgentEntry {
            facts,
            session: SessionMode::Optional,
            delegation: DelegationMode::None,
            fixed_delegator: None,
        };
        self.agents.insert(name.into(), entry);
        self.agents.get_mut(name).unwrap()
    }

    fn ask(&mut self, request: &CheckRequest) {
        let n = self.records.len();
        let now = jiff::Timestamp::from_second(1_790_000_000 + i64::try_from(n).unwrap() * 60).unwrap();
        let until = now + jiff::SignedDuration::from_hours(1);
        let profile =
            EffectiveProfile { observe_until: self.observing.then_some(until), ..EffectiveProfile::default() };
        let tenant = Tenant {
            canary: None,
            name: "acme".into(),
            uid: "uid-acme".into(),
            agents: self.agents.iter().map(|(k, v)| (k.clone(), Arc::new(v.clone()))).collect(),
            package: self.package.clone(),
            profile,
        };
        let snapshot = Snapshot {
            platform: Some(Ok(vec![base_platform()])),
            tenants: HashMap::from([("acme".into(), Arc::new(tenant))]),
            ..Snapshot::default()
        };
        let caller = Caller { username: "gateway".into(), kind: CallerKind::Gateway, agent: None, stale: false };
        let checked = check(&CheckInput {
            snapshot: &snapshot,
            tenant: "acme",
            caller: &caller,
            request,
            session: SessionState::NotNamed,
            now,
            id: &format!("id-{n:04}"),
            request_id: None,
            redaction_key: b"key",
            pattern_budget: MAX_PATTERN_COST,
        });
        // As it comes back from a store.
        let json = serde_json::to_string(&checked.record).unwrap();
        self.records.push(serde_json::from_str(&json).unwrap());
    }

    fn call(&mut self, times: usize, agent: &str, tool: &str, arguments: Value) {
        for _ in 0..times {
            self.ask(&question(agent, tool, arguments.clone()));
        }
    }

    /// The suggestion; its tests pass, and it is read from its files as it is.
    fn suggest(&self, existing: Option<&PolicyPackageSpec>) -> Suggestion {
        let done = suggest(&self.records, existing, &Settings::default()).unwrap();
        assert!(done.summary.replay.unexplained.is_empty(), "{:#?}", done.summary.replay.unexplained);
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tests")).unwrap();
        for file in &done.files {
            std::fs::write(dir.path().join(&file.name), &file.text).unwrap();
        }
        let spec = crate::source::folder::read_folder(dir.path()).unwrap_or_else(|e| panic!("{e}\n{:#?}", done.files));
        assert_eq!(spec, done.spec);
        let compiled = CompiledPackage::compile(&spec, &digest(&spec), Side::Tenant).unwrap();
        let report = run_tests(&spec, &compiled, &[base_platform()]);
        assert!(report.passed(), "{:#?}", report.refusals());
        assert!(report.results.iter().any(|r| !r.name.starts_with("allow")), "boundaries are tested");
        done
    }
}

fn question(agent: &str, tool: &str, arguments: Value) -> CheckRequest {
    let Value::Object(arguments) = arguments else { panic!("{arguments}") };
    CheckRequest {
        subject: EntityRef { type_: "agent".into(), id: agent.into(), ..Default::default() },
        action: ActionRef { name: "call_tool".into(), ..Default::default() },
        resource: EntityRef { type_: "tool".into(), id: tool.into(), ..Default::default() },
        arguments,
        ..CheckRequest::default()
    }
}

fn text<'a>(done: &'a Suggestion, name: &str) -> &'a str {
    &done.files.iter().find(|f| f.name == name).unwrap().text
}

/// Answer of the suggested package to a question of today.
fn answer(world: &World, done: &Suggestion, agent: &str, tool: &str, arguments: Value) -> (Outcome, &'static str) {
    let mut asked = World { package: None, agents: world.agents.clone(), observing: false, records: vec![] };
    asked.package = Some(CompiledPackage::compile(&done.spec, &digest(&done.spec), Side::Tenant).unwrap());
    asked.ask(&question(agent, tool, arguments));
    let code = asked.records[0].code.clone();
    (asked.records[0].outcome, Box::leak(code.into_boxed_str()))
}

fn left_out<'a>(done: &'a Suggestion, agent: &str, tool: &str) -> Vec<&'a str> {
    let of = |l: &&LeftOut| l.agent == agent && l.tool == tool;
    done.summary.left_out.iter().filter(of).map(|l| l.reason.as_str()).collect()
}

#[test]
fn what_was_used_is_permitted_and_nothing_more() {
    let mut world = World::new();
    world.call(3, "coder", "git/log", json!({}));
    world.call(3, "coder", "git/push", json!({"branch": "a"}));
    world.call(1, "coder", "git/push", json!({"branch": "b", "command": "push --force"}));
    world.call(1, "tester", "git/log", json!({}));
    world.call(2, "tester", "git/push", json!({}));
    world.call(2, "fresh", "git/log", json!({}));
    world.call(4, "coder", "git/gc", json!({}));
    world.call(3, "coder", "shell/run_command", json!({}));
    world.call(2, "coder", "files/list", json!({}));
    let done = world.suggest(Some(&spec()));
    let permits: Vec<_> = done.summary.permits.keys().map(String::as_str).collect();
    assert_eq!(permits, ["agent-coder-admin-trust3", "agent-coder-read", "agent-coder-write-trust3"]);
    assert_eq!((done.spec.package.as_str(), done.spec.version.as_str()), ("first", "1.5.0"));
    assert_eq!(done.summary.kept, ["no-force", "ask-gc"]);
    assert!(
        text(&done, "forbids.cedar").contains("// Two people look.\n    @id(\"ask-gc\")"),
        "{}",
        text(&done, "forbids.cedar")
    );

    let ask = |agent: &str, tool: &str, arguments: Value| answer(&world, &done, agent, tool, arguments);
    assert_eq!(ask("coder", "git/push", json!({})), (Outcome::Allow, "allowed"));
    assert_eq!(ask("coder", "git/push", json!({"command": "--force"})), (Outcome::Deny, "denied_by_policy"));
    assert_eq!(ask("coder", "git/gc", json!({})), (Outcome::ApprovalRequired, "approval_required"));
    assert_eq!(ask("coder", "shell/run_command", json!({})), (Outcome::Allow, "allowed"));
    assert_eq!(ask("tester", "git/log", json!({})), (Outcome::Deny, "no_permit"), "seen once");
    assert_eq!(ask("tester", "git/push", json!({})), (Outcome::Deny, "no_permit"), "seen twice");
    assert_eq!(ask("tester", "shell/run_command", json!({})), (Outcome::Deny, "no_permit"));

    assert_eq!(left_out(&done, "tester", "git/log"), ["seen 1 times, 2 are needed"]);
    assert_eq!(left_out(&done, "tester", "git/push"), ["seen 2 times, 3 are needed"]);
    assert_eq!(left_out(&done, "coder", "git/push"), ["a forbid stops it and stays (tenant/first/no-force)"]);
    assert_eq!(left_out(&done, "fresh", "git/log"), ["the platform stops it (platform/base/trust-zero)"]);
    for line in &done.summary.left_out {
        assert!(text(&done, "permits.cedar").contains(&format!("// - {}", line.line())), "{line:?}");
    }
    let manifest = text(&done, "package.yaml");
    assert!(manifest.contains("  # review: no package lists this tool yet: `admin` by its name (run)\n"), "{manifest}");
    assert!(manifest.contains("# review: no package lists this tool yet: `read` by its name alone (list)"));
    assert_eq!(done.summary.review, ["files/list", "shell/run_command"]);
    assert!(done.spec.tools.contains(&spec().tools[0]), "what was known keeps its tier and its words");

    // What changes is what was named.
    let replay = &done.summary.replay;
    let changed: Vec<_> = replay.named.iter().map(|d| (d.agent.as_str(), d.tool.as_str(), d.after.as_str())).collect();
    assert_eq!(
        changed,
        [
            ("coder", "git/gc", "approval_required"),
            ("coder", "git/push", "deny"),
            ("tester", "git/log", "deny"),
            ("tester", "git/push", "deny")
        ]
    );
    assert_eq!(replay.same + replay.named.iter().map(|d| d.decisions).sum::<usize>(), world.records.len());
}

#[test]
fn the_same_decisions_give_the_same_bytes_in_any_order() {
    let mut world = World::new();
    world.call(6, "coder", "git/push", json!({"branch": "a", "force": false}));
    world.call(3, "tester", "git/log", json!({"x": 1}));
    world.call(2, "coder", "x/y", json!({}));
    let first = world.suggest(Some(&spec()));
    world.records.reverse();
    let copy = world.records[3].clone();
    world.records.push(copy);
    let again = world.suggest(Some(&spec()));
    assert_eq!(first.files, again.files);
    assert_eq!(first.summary.decisions, again.summary.decisions, "one decision counts once");
}

#[test]
fn without_the_package_its_forbids_cost_the_permit() {
    let mut world = World::new();
    world.call(5, "coder", "git/push", json!({}));
    world.call(3, "tester", "git/push", json!({}));
    world.call(1, "coder", "git/push", json!({"command": "push --force"}));
    world.call(3, "coder", "git/gc", json!({}));
    let done = world.suggest(None);
    let reasons = left_out(&done, "coder", "git/push");
    assert!(reasons.iter().any(|r| r.contains("tenant/first/no-force") && r.contains("--package")), "{reasons:?}");
    assert!(reasons.contains(&"a permit would also allow decision id-0008, which was stopped"), "{reasons:?}");
    assert!(left_out(&done, "coder", "git/gc")[0].contains("people are asked first (tenant/first/ask-gc)"));
    assert_eq!(answer(&world, &done, "coder", "git/push", json!({})).0, Outcome::Deny);
    assert_eq!(answer(&world, &done, "tester", "git/push", json!({})).0, Outcome::Allow, "it never forced");
    assert_eq!((done.spec.package.as_str(), done.spec.version.as_str()), ("suggested", "0.1.0"));
}

#[test]
fn what_policy_denied_when_it_was_enforced_is_not_given_back() {
    let mut world = World::new();
    world.call(5, "tester", "git/push", json!({"branch": "a"}));
    world.observing = false;
    world.call(1, "tester", "git/push", json!({"branch": "a"}));
    world.call(4, "coder", "git/log", json!({}));
    let done = world.suggest(Some(&spec()));
    assert_eq!(answer(&world, &done, "tester", "git/push", json!({"branch": "a"})).0, Outcome::Deny);
    assert!(left_out(&done, "tester", "git/push").iter().any(|r| r.contains("no_permit")));
    assert_eq!(answer(&world, &done, "coder", "git/log", json!({})).0, Outcome::Allow, "an allow counts as a use");
}

#[test]
fn who_was_suspended_in_the_end_is_given_nothing() {
    let mut world = World::new();
    world.call(5, "coder", "git/push", json!({}));
    world.agents.get_mut("coder").unwrap().facts.suspended = true;
    world.call(1, "coder", "git/push", json!({}));
    world.call(2, "tester", "git/log", json!({}));
    let done = world.suggest(Some(&spec()));
    assert_eq!(left_out(&done, "coder", "git/push"), ["the agent is suspended"]);
    assert_eq!(done.summary.permits.keys().collect::<Vec<_>>(), ["agent-tester-read"]);
}

#[test]
fn arguments_are_bound_where_enough_calls_agree() {
    let mut world = World::new();
    for n in 0..5 {
        let path = format!("/srv/repo{}/f{n}", n % 2);
        let arguments = json!({"path": path, "mode": "w", "opts": {"deep": true}, "n": n, "password": format!("s{n}")});
        world.call(1, "coder", "git/push", arguments);
        world.call(1, "coder", "git/log", json!({"dir": path, "limit": 5}));
    }
    world.call(4, "tester", "git/push", json!({"path": "/x", "mode": "w"}));
    let done = world.suggest(Some(&spec()));
    let good = json!({"path": "/srv/other", "mode": "w", "opts": {"deep": true}, "password": "p"});
    let ask = |agent: &str, tool: &str, arguments: &Value| answer(&world, &done, agent, tool, arguments.clone()).0;
    assert_eq!(ask("coder", "git/push", &good), Outcome::Allow);
    for (key, value) in [
        ("path", json!("/srvbench/x")),
        ("path", json!("/srv/../etc/passwd")),
        ("path", json!("/srv/..")),
        ("path", json!("work/x")),
        ("path", json!(null)),
        ("mode", json!("a")),
        ("opts", json!({"deep": false})),
        ("opts", json!({})),
    ] {
        let mut arguments = good.clone();
        arguments[key] = value.clone();
        assert_eq!(ask("coder", "git/push", &arguments), Outcome::Deny, "{key} {value}");
    }
    assert_eq!(ask("coder", "git/log", &json!({"dir": "/srv", "limit": 7})), Outcome::Allow, "reads: only directories");
    assert_eq!(ask("coder", "git/log", &json!({"dir": "/etc"})), Outcome::Deny);
    assert_eq!(ask("tester", "git/push", &json!({"path": "/y"})), Outcome::Allow, "four calls prove nothing");
    let all: String = done.files.iter().map(|f| f.text.as_str()).collect();
    assert!(!all.contains("hmac-sha256"), "a digest is no value");
    assert!(all.contains("Kept only as digests, so that nothing is said of them: \"password\""), "{all}");
    assert!(!all.contains("\"n\""), "tests repeat only the arguments that the permit looks at");
}

/// A `*` in a name is a letter of it, not a wildcard.
#[test]
fn a_star_in_a_directory_matches_only_itself() {
    let mut world = World::new();
    for n in 0..5 {
        world.call(1, "coder", "git/log", json!({"dir": format!("/a*b/{n}")}));
    }
    let done = world.suggest(Some(&spec()));
    assert_eq!(answer(&world, &done, "coder", "git/log", json!({"dir": "/a*b/z"})).0, Outcome::Allow);
    assert_eq!(answer(&world, &done, "coder", "git/log", json!({"dir": "/a/etc/b/z"})).0, Outcome::Deny);
}

#[test]
fn groups_are_named_where_all_of_them_did_it() {
    let mut world = World::new();
    world.agent("second", "coder", 2);
    world.call(3, "coder", "git/push", json!({}));
    world.call(3, "second", "git/push", json!({}));
    world.call(2, "coder", "git/log", json!({}));
    world.call(2, "tester", "git/log", json!({}));
    let done = world.suggest(Some(&spec()));
    assert_eq!(
        done.summary.permits.keys().collect::<Vec<_>>(),
        ["agent-coder-read", "agent-tester-read", "type-coder-write-trust2"]
    );
    let permits = text(&done, "permits.cedar");
    assert!(permits.contains("principal in AgentType::\"coder\""), "{permits}");
    assert!(permits.contains("2 of them: \"coder\", \"second\""), "{permits}");
    // One of the type that did not do it, and the type is not named.
    world.agent("third", "coder", 4);
    world.call(1, "third", "git/log", json!({}));
    let done = world.suggest(Some(&spec()));
    let permits: Vec<_> = done.summary.permits.keys().map(String::as_str).collect();
    assert_eq!(permits[0..2], ["agent-coder-read", "agent-coder-write-trust3"]);
    assert_eq!(answer(&world, &done, "third", "git/push", json!({})).0, Outcome::Deny);
    // Nor where somebody's type changed meanwhile.
    let mut world = World::new();
    world.agent("second", "coder", 3);
    world.call(3, "second", "git/push", json!({}));
    world.call(3, "coder", "git/push", json!({}));
    world.agent("coder", "chief", 3);
    world.call(1, "coder", "git/push", json!({}));
    let done = world.suggest(Some(&spec()));
    assert!(done.summary.permits.keys().all(|id| id.starts_with("agent-")), "{:?}", done.summary.permits);
}

#[test]
fn delegation_keeps_its_least_trust() {
    let mut world = World::new();
    world.agent("planner", "planner", 2).fixed_delegator =
        Some(Delegator { kind: DelegatorKind::User, name: "alice\n\"".into() });
    world.agents.get_mut("planner").unwrap().delegation = DelegationMode::Optional;
    let coder = world.agents.get_mut("coder").unwrap();
    coder.delegation = DelegationMode::Optional;
    coder.fixed_delegator = Some(Delegator { kind: DelegatorKind::Agent, name: "planner".into() });
    world.call(3, "coder", "git/push", json!({}));
    let done = world.suggest(Some(&spec()));
    assert_eq!(done.summary.permits.keys().collect::<Vec<_>>(), ["agent-coder-write-trust2"]);
    assert_eq!(answer(&world, &done, "coder", "git/push", json!({})).0, Outcome::Allow);
}

#[test]
fn from_no_package_at_all() {
    let mut world = World::new();
    world.package = None;
    for n in 0..5 {
        world.call(1, "coder", "files/read_file", json!({"path": format!("/w/{n}")}));
        world.call(1, "coder", "files/edit", json!({"secret": "x"}));
    }
    let mut pinned = question("coder", "files/make", json!({}));
    pinned.schema_digest = Some(format!("sha256:{}", "a".repeat(64)));
    (0..3).for_each(|_| world.ask(&pinned));
    let done = world.suggest(None);
    assert_eq!(done.summary.permits.len(), 2, "{:?}", done.summary.permits);
    let make = done.spec.tools.iter().find(|t| t.name == "files/make").unwrap();
    assert_eq!(make.schema_digest, pinned.schema_digest);
    assert_eq!(answer(&world, &done, "coder", "files/edit", json!({})).0, Outcome::Allow);
    assert_eq!(answer(&world, &done, "tester", "files/edit", json!({})).0, Outcome::Deny);
}

/// Names and values that agents choose stay texts, whatever they hold.
#[test]
fn hostile_names_and_values_permit_nothing() {
    let evil = [
        "x/a\"]);permit(principal,action,resource);",
        "x/\"};permit(principal,action,resource);@id(\"",
        "x/*",
        "x/\\",
        "x/a#b:{c}",
        "x/${a}'`",
        "x/a\nb",
        "x/a\u{2028}- {name: b/c, tier: read}",
        "no-server",
        "a/b/c",
        "",
        "x/\u{202e}",
    ];
    let mut world = World::new();
    let agent = "evil\"); permit(principal, action, resource); //\nforbid\r\n# x: {y";
    world.agent(agent, "t\"*\\", 3);
    world.agent("other\u{2028}- name: x", "t\"*\\", 3);
    for tool in evil {
        for n in 0..6 {
            let value = format!("/w\"*\\/{n}\n\"}};permit(principal,action,resource);//");
            let arguments = json!({"k\"]\n*.a\\": value, "c": "*\") || true //\n", "/w": {"*": [tool]}});
            world.call(1, agent, tool, arguments.clone());
            world.call(1, "other\u{2028}- name: x", tool, arguments);
        }
    }
    let done = world.suggest(Some(&spec()));
    assert!(!done.summary.permits.is_empty());
    let compiled = CompiledPackage::compile(&done.spec, &digest(&done.spec), Side::Tenant).unwrap();
    assert_eq!(
        compiled.policy_count(),
        done.summary.permits.len() + done.summary.kept.len(),
        "nothing was smuggled in"
    );
    assert_eq!(done.spec.tools.len(), spec().tools.len() + 6, "{:?}", done.spec.tools);
    for name in ["x/a\nb", "no-server", "a/b/c", "x/\u{202e}"] {
        assert!(left_out(&done, agent, name)[0].contains("a package takes no tool of that name"), "{name:?}");
    }
    for tool in ["git/log", "x/b", "x/a", "b/c"] {
        assert_eq!(answer(&world, &done, "coder", tool, json!({})).0, Outcome::Deny, "{tool}");
    }
    let other = json!({"k\"]\n*.a\\": "/w/x", "c": "*\") || true //\n", "/w": {"*": ["x/*"]}});
    assert_eq!(answer(&world, &done, agent, "x/*", other).0, Outcome::Deny, "`*` in a directory is no wildcard");
    for file in &done.files {
        assert!(!file.text.contains(['\r', '\u{2028}', '\u{202e}', '\u{85}']), "{}", file.name);
    }
}

#[test]
fn what_cannot_be_learned_from_is_said() {
    let mut world = World::new();
    assert!(matches!(suggest(&[], None, &Settings::default()), Err(SuggestError::Nothing)));
    world.call(1, "coder", "git/log", json!({}));
    let mut other = world.records[0].clone();
    other.tenant = "beta".into();
    other.id = "b".into();
    let both = [world.records[0].clone(), other];
    assert!(matches!(suggest(&both, None, &Settings::default()), Err(SuggestError::Tenants(_))));
    let done = world.suggest(None);
    assert!(done.summary.permits.is_empty() && text(&done, "permits.cedar").contains("There is none"));
    let mut wrong = question("coder", "git/log", json!({}));
    wrong.subject.properties.insert("trust".into(), json!(4));
    world.ask(&wrong);
    let mut domain = question("coder", "example.org", json!({}));
    domain.resource.type_ = "domain".into();
    domain.action.name = "network_access".into();
    world.ask(&domain);
    let done = world.suggest(None);
    assert_eq!(left_out(&done, "coder", "example.org"), ["not a tool's call by an agent: write its permit by hand"]);
    assert!(left_out(&done, "coder", "git/log").iter().any(|r| r.contains("the question was wrong (invalid_request)")));
}
