//! Made-up calls: every tool of both packages, and one that neither lists, by agents of every trust. Without arguments, session and
//! delegator, at noon.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::event::{Answer, Both, shown};
use super::invariants::{Call, Judge};
use super::{EffectiveSet, Task};
use crate::api::{DelegationMode, EffectiveProfile, Invariant, SessionMode, Tier};
use crate::gate::{
    ActionRef, AgentEntry, Caller, CheckInput, CheckRequest, EntityRef, MAX_PATTERN_COST, SessionState, Snapshot,
    Tenant, decide,
};
use crate::policy::{AgentFacts, CallerKind};

/// Every trust that an agent can have: 0 to 4.
const TRUSTS: usize = 5;
/// A tool that no package lists: names hold no blanks.
const UNLISTED: &str = "a tool/that nobody lists";
/// Name of the agent where an invariant names none.
const ANYBODY: &str = "anybody";

/// One made-up call, answered on both sides.
pub(super) struct Probe {
    /// Number of the invariant that it was made for; None: any.
    pub of: Option<usize>,
    agent: AgentFacts,
    tool: String,
    pub both: Both,
}

impl Probe {
    pub fn call(&self) -> Call<'_> {
        Call {
            agent: Some(&self.agent.name),
            trust: self.agent.trust,
            teams: &self.agent.teams,
            tool: Some(&self.tool),
        }
    }

    /// In a sentence, as a call that somebody could make.
    pub fn words(&self) -> String {
        let named = match self.agent.name.as_str() {
            ANYBODY => "Any agent".to_owned(),
            name => format!("Agent {}", shown(name)),
        };
        let team = self.agent.teams.first().map(|t| format!(" of team {}", shown(t))).unwrap_or_default();
        let tier = self.both.candidate.tier.map_or("not listed", Tier::as_str);
        format!(
            "{named}{team} with trust {} calling tool {} ({tier}) without arguments: {} before, {} now.",
            self.agent.trust,
            shown(&self.tool),
            self.both.baseline.words(),
            self.both.candidate.words()
        )
    }
}

/// How far the made-up calls have come, and the first of them that breaks each invariant. All that is kept of them: they are made one
/// after the other, and there may be hundreds of thousands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MadeUp {
    /// Number of the next one; they have a fixed order.
    next: usize,
    /// Whether there is none left.
    pub done: bool,
    /// Of each invariant, in words.
    pub broken: Vec<Option<String>>,
}

impl MadeUp {
    /// Before the first.
    pub fn new(invariants: usize) -> Self {
        Self { next: 0, done: invariants == 0, broken: vec![None; invariants] }
    }

    /// Makes further ones up until none is left, or it is `enough`; at least one.
    pub fn go_on(&mut self, task: &Task, judge: &Judge, enough: &dyn Fn() -> bool) {
        if self.done {
            return;
        }
        let groups = groups(judge.invariants());
        let tools = tools(task);
        let mut of_agent = None;
        loop {
            // Agent by agent, trust by trust, tool by tool.
            let (agent, tool) = (self.next / tools.len(), &tools[self.next % tools.len()]);
            let Some((of, facts)) = groups.get(agent / TRUSTS).map(|group| group.agent(task, agent % TRUSTS)) else {
                self.done = true;
                return;
            };
            let worlds = match &of_agent {
                Some((number, worlds)) if *number == agent => worlds,
                _ => {
                    let worlds = [&task.baseline, &task.candidate].map(|set| world(task, &facts, set));
                    &of_agent.insert((agent, worlds)).1
                }
            };
            let both = Both {
                baseline: answer(&worlds[0], &facts, tool, &task.baseline),
                candidate: answer(&worlds[1], &facts, tool, &task.candidate),
            };
            judge.made_up(&Probe { of, agent: facts, tool: tool.clone(), both }, &mut self.broken);
            self.next += 1;
            if enough() {
                return;
            }
        }
    }
}

/// Made-up agents that differ in their trust.
struct Group<'a> {
    of: Option<usize>,
    name: &'a str,
    team: Option<&'a String>,
}

impl Group<'_> {
    fn agent(&self, task: &Task, trust: usize) -> (Option<usize>, AgentFacts) {
        let facts = AgentFacts {
            tenant: task.tenant.clone(),
            name: self.name.to_owned(),
            uid: String::new(),
            type_: String::new(),
            teams: self.team.into_iter().cloned().collect(),
            trust: i64::try_from(trust).unwrap_or_default(),
            suspended: false,
            attributes: Default::default(),
        };
        (self.of, facts)
    }
}

/// Anybody, and those that invariants name.
fn groups<'a>(invariants: impl Iterator<Item = &'a Invariant>) -> Vec<Group<'a>> {
    let mut groups = vec![Group { of: None, name: ANYBODY, team: None }];
    for (n, invariant) in invariants.enumerate() {
        if invariant.agent.is_some() || invariant.team.is_some() {
            let name = invariant.agent.as_deref().unwrap_or(ANYBODY);
            groups.push(Group { of: Some(n), name, team: invariant.team.as_ref() });
        }
    }
    groups
}

/// Every tool of both packages, and one that neither lists; never none.
fn tools(task: &Task) -> Vec<String> {
    let listed = [&task.baseline, &task.candidate].into_iter().flat_map(|set| set.package.tools());
    let mut tools: BTreeSet<String> = listed.map(|t| t.name.clone()).collect();
    tools.insert(UNLISTED.to_owned());
    tools.into_iter().collect()
}

fn world(task: &Task, agent: &AgentFacts, set: &EffectiveSet) -> Snapshot {
    let entry = AgentEntry {
        facts: agent.clone(),
        session: SessionMode::Optional,
        delegation: DelegationMode::None,
        fixed_delegator: None,
    };
    let tenant = Tenant {
        name: task.tenant.clone(),
        uid: task.tenant_uid.clone().unwrap_or_default(),
        agents: HashMap::from([(agent.name.clone(), Arc::new(entry))]),
        package: Some(set.package.clone()),
        canary: None,
        profile: EffectiveProfile::default(),
    };
    Snapshot {
        platform: Some(Ok(set.platform.clone())),
        tenants: HashMap::from([(task.tenant.clone(), Arc::new(tenant))]),
        ..Snapshot::default()
    }
}

fn answer(snapshot: &Snapshot, agent: &AgentFacts, tool: &str, set: &EffectiveSet) -> Answer {
    let request = CheckRequest {
        subject: EntityRef { type_: "agent".into(), id: agent.name.clone(), properties: Map::new() },
        action: ActionRef { name: "call_tool".into(), properties: Map::new() },
        resource: EntityRef { type_: "tool".into(), id: tool.to_owned(), properties: Map::new() },
        ..CheckRequest::default()
    };
    let caller = Caller { username: "replay".into(), kind: CallerKind::Gateway, agent: None, stale: false };
    let decision = decide(&CheckInput {
        snapshot,
        tenant: &agent.tenant,
        caller: &caller,
        request: &request,
        session: SessionState::NotNamed,
        now: noon(),
        id: "",
        request_id: None,
        redaction_key: &[],
        pattern_budget: MAX_PATTERN_COST,
    });
    Answer::of(&decision, set, ("tool", tool))
}

fn noon() -> Timestamp {
    Timestamp::UNIX_EPOCH.checked_add(jiff::SignedDuration::from_hours(12)).unwrap_or(Timestamp::UNIX_EPOCH)
}
