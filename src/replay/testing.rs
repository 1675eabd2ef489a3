//! A tenant whose checks are recorded, for the tests of this room.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Value, json};

use super::{EffectiveSet, Recorded};
use crate::api::{
    DelegationMode, Delegator, DelegatorKind, EffectiveProfile, PolicyPackageSpec, SessionMode, SourceFile, Tier, Tool,
};
use crate::gate::{
    ActionRef, AgentEntry, Caller, CheckInput, CheckRequest, Checked, DecisionRecord, EntityRef, MAX_PATTERN_COST,
    SessionState, Snapshot, Tenant, check,
};
use crate::policy::{AgentFacts, CallerKind, CompiledPackage, Side, base_platform, digest};

pub const BASE: &str = r#"
    @id("reads") permit(principal, action == Action::"call_tool", resource in ToolGroup::"read");
    @id("writes") permit(principal, action == Action::"call_tool", resource in ToolGroup::"write") when { principal.trust >= 2 };
    @id("admins") permit(principal, action == Action::"call_tool", resource in ToolGroup::"admin") when { principal.trust >= 3 };
    @id("no-force") @reason("Open a pull request instead.") @sensitive("password")
    forbid(principal, action == Action::"call_tool", resource)
    when { context.arguments.hasTag("command") && context.arguments.getTag("command") like "*--force*" };
    @id("ask-admin") @require_approval("leads")
    forbid(principal, action == Action::"call_tool", resource in ToolGroup::"admin");
"#;

pub fn tool(name: &str, tier: Tier) -> Tool {
    Tool {
        name: name.into(),
        tier,
        sensitivity: Default::default(),
        groups: Vec::new(),
        description: None,
        schema_digest: None,
    }
}

pub fn spec(version: &str, policies: &str) -> PolicyPackageSpec {
    PolicyPackageSpec {
        package: "base".into(),
        version: version.into(),
        tools: vec![tool("git/log", Tier::Read), tool("git/push", Tier::Write), tool("git/gc", Tier::Admin)],
        policies: vec![SourceFile { name: "main.cedar".into(), text: policies.into() }],
        ..PolicyPackageSpec::default()
    }
}

pub fn set_of(spec: &PolicyPackageSpec) -> EffectiveSet {
    let package = CompiledPackage::compile(spec, &digest(spec), Side::Tenant).unwrap();
    EffectiveSet { platform: vec![base_platform()], package }
}

pub fn set(version: &str, policies: &str) -> EffectiveSet {
    set_of(&spec(version, policies))
}

/// The base with one text replaced by another.
pub fn changed(from: &str, to: &str) -> EffectiveSet {
    assert!(BASE.contains(from));
    set("2.0.0", &BASE.replace(from, to))
}

pub fn agent(name: &str, trust: i64) -> AgentEntry {
    AgentEntry {
        facts: AgentFacts {
            tenant: "acme".into(),
            name: name.into(),
            uid: format!("uid-{name}"),
            type_: "coder".into(),
            teams: vec!["core".into()],
            trust,
            suspended: false,
            attributes: BTreeMap::new(),
        },
        session: SessionMode::Optional,
        delegation: DelegationMode::None,
        fixed_delegator: None,
    }
}

pub fn delegator(name: &str) -> Delegator {
    match name.strip_prefix("user:") {
        Some(user) => Delegator { kind: DelegatorKind::User, name: user.into() },
        None => Delegator { kind: DelegatorKind::Agent, name: name.into() },
    }
}

pub fn request(agent: &str, tool: &str, arguments: Value) -> CheckRequest {
    CheckRequest {
        subject: EntityRef { type_: "agent".into(), id: agent.into(), ..Default::default() },
        action: ActionRef { name: "call_tool".into(), ..Default::default() },
        resource: EntityRef { type_: "tool".into(), id: tool.into(), ..Default::default() },
        arguments: arguments.as_object().cloned().unwrap_or_default(),
        ..Default::default()
    }
}

/// A tenant, and what was recorded of it.
#[derive(Clone)]
pub struct World {
    pub agents: Vec<AgentEntry>,
    pub set: Option<EffectiveSet>,
    pub uid: String,
    pub observing: bool,
    pub records: Vec<DecisionRecord>,
}

impl World {
    pub fn new(set: &EffectiveSet) -> Self {
        Self {
            agents: vec![agent("coder", 3), agent("junior", 1)],
            set: Some(set.clone()),
            uid: "uid-acme".into(),
            observing: false,
            records: Vec::new(),
        }
    }

    /// What the gates say of it now, under the set that is in force.
    pub fn check(&self, request: &CheckRequest, session: SessionState, second: i64) -> Checked {
        let now = jiff::Timestamp::from_second(1_790_000_000 + second).unwrap();
        let until = now + jiff::SignedDuration::from_hours(1);
        let profile = EffectiveProfile { observe_until: self.observing.then_some(until), ..Default::default() };
        let tenant = Tenant {
            name: "acme".into(),
            uid: self.uid.clone(),
            agents: self.agents.iter().map(|a| (a.facts.name.clone(), Arc::new(a.clone()))).collect(),
            package: self.set.as_ref().map(|s| s.package.clone()),
            canary: None,
            profile,
        };
        let snapshot = Snapshot {
            platform: Some(Ok(vec![base_platform()])),
            tenants: HashMap::from([("acme".into(), Arc::new(tenant))]),
            ..Snapshot::default()
        };
        let caller = Caller { username: "gateway".into(), kind: CallerKind::Gateway, agent: None, stale: false };
        check(&CheckInput {
            snapshot: &snapshot,
            tenant: "acme",
            caller: &caller,
            request,
            session,
            now,
            id: &format!("0190-{:06}", self.records.len()),
            request_id: None,
            redaction_key: b"key",
            pattern_budget: MAX_PATTERN_COST,
        })
    }

    pub fn ask(&mut self, agent: &str, tool: &str, arguments: Value) -> &mut DecisionRecord {
        let second = i64::try_from(self.records.len()).unwrap();
        let checked = self.check(&request(agent, tool, arguments), SessionState::NotNamed, second);
        self.records.push(checked.record);
        self.records.last_mut().unwrap()
    }

    /// As they come out of the store: through JSON.
    pub fn recorded(&self) -> Vec<Recorded> {
        let again = self.records.iter().map(|r| serde_json::from_value::<DecisionRecord>(json!(r)).unwrap());
        again.map(Recorded::from).collect()
    }
}
