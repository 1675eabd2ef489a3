//! Made-up calls: every tool of both packages, and one that neither lists, by agents of every trust. Without arguments, session and
//! delegator, at noon.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Map;

use super::event::{Answer, Both, shown};
use super::invariants::Call;
use super::{EffectiveSet, Task};
use crate::api::{DelegationMode, EffectiveProfile, Invariant, Meaning, SessionMode, Tier};
use crate::gate::{
    ActionRef, AgentEntry, Caller, CheckInput, CheckRequest, EntityRef, MAX_PATTERN_COST, SessionState, Snapshot,
    Tenant, decide,
};
use crate::policy::{AgentFacts, CallerKind};

/// Every trust that an agent can have.
const TRUST: std::ops::RangeInclusive<i64> = 0..=4;
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

/// All made-up calls, in a fixed order.
pub(super) fn all(task: &Task, invariants: &[(Invariant, Meaning)]) -> Vec<Probe> {
    let mut tools: BTreeSet<String> = [&task.baseline, &task.candidate]
        .into_iter()
        .flat_map(|set| set.package.tools().map(|t| t.name.clone()))
        .collect();
    tools.insert(UNLISTED.to_owned());
    let mut probes = Vec::new();
    let mut ask = |of: Option<usize>, name: &str, team: Option<&String>| {
        for trust in TRUST {
            let agent = AgentFacts {
                tenant: task.tenant.clone(),
                name: name.to_owned(),
                uid: String::new(),
                type_: String::new(),
                teams: team.into_iter().cloned().collect(),
                trust,
                suspended: false,
                attributes: Default::default(),
            };
            let worlds = [&task.baseline, &task.candidate].map(|set| world(task, &agent, set));
            for tool in &tools {
                let both = Both {
                    baseline: answer(&worlds[0], &agent, tool, &task.baseline),
                    candidate: answer(&worlds[1], &agent, tool, &task.candidate),
                };
                probes.push(Probe { of, agent: agent.clone(), tool: tool.clone(), both });
            }
        }
    };
    ask(None, ANYBODY, None);
    for (n, (invariant, _)) in invariants.iter().enumerate() {
        if invariant.agent.is_some() || invariant.team.is_some() {
            ask(Some(n), invariant.agent.as_deref().unwrap_or(ANYBODY), invariant.team.as_ref());
        }
    }
    probes
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
