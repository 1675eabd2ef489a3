//! The facts of a record's own time, as the gates read them: a snapshot with the one agent that acted and those that it acted through.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::{EffectiveSet, Task};
use crate::api::{DelegationMode, Delegator, DelegatorKind, EffectiveProfile};
use crate::gate::{
    AgentEntry, CheckInput, Decision, DecisionRecord, MAX_PATTERN_COST, Outcome, RecordedFacts, ReplayFacts, Snapshot,
    Tenant, decide,
};
use crate::policy::{AgentFacts, CompiledPackage};

/// Worlds that one thread keeps. Most records are of few agents.
const KEPT: usize = 1024;

/// What was decided, or would have been if the tenant had enforced.
pub fn enforced(record: &DecisionRecord) -> (Outcome, &str) {
    match &record.would_be {
        Some(would_be) => (would_be.outcome, &would_be.code),
        None => (record.outcome, &record.code),
    }
}

/// Asks one record again under one set, as if the tenant enforced, with these facts of its time.
pub fn ask(
    record: &DecisionRecord,
    facts: &ReplayFacts,
    platform: &[Arc<CompiledPackage>],
    package: &Arc<CompiledPackage>,
) -> Decision {
    let set = EffectiveSet { platform: platform.to_vec(), package: package.clone() };
    decide(&input(record, facts, &alone(record, facts, &set)))
}

/// A snapshot for one record alone.
pub(super) fn alone(record: &DecisionRecord, facts: &ReplayFacts, set: &EffectiveSet) -> Snapshot {
    snapshot(record, &agents(record, facts), set)
}

/// The question of a record, to be asked of a snapshot of its own time.
pub(super) fn input<'a>(record: &'a DecisionRecord, facts: &ReplayFacts, snapshot: &'a Snapshot) -> CheckInput<'a> {
    CheckInput {
        snapshot,
        tenant: &record.tenant,
        caller: &record.caller,
        request: &record.request,
        session: facts.session,
        now: record.time,
        id: &record.id,
        request_id: None,
        // Nothing is written down.
        redaction_key: &[],
        pattern_budget: MAX_PATTERN_COST,
    }
}

/// The acting agent and its delegating agents.
fn agents(record: &DecisionRecord, facts: &ReplayFacts) -> HashMap<String, Arc<AgentEntry>> {
    let RecordedFacts { agent, delegation, .. } = &record.facts;
    let Some(acting) = agent else { return HashMap::new() };
    let mut out = HashMap::new();
    let mut add = |entry: AgentEntry| drop(out.insert(entry.facts.name.clone(), Arc::new(entry)));
    let link = |facts: &AgentFacts, delegator: Option<Delegator>| AgentEntry {
        facts: facts.clone(),
        session: Default::default(),
        delegation: if delegator.is_some() { DelegationMode::Optional } else { DelegationMode::None },
        fixed_delegator: delegator,
    };
    match delegation {
        Some(delegation) => {
            let user = delegation.user.as_ref().map(|u| Delegator { kind: DelegatorKind::User, name: u.clone() });
            for (n, agent) in delegation.chain.iter().enumerate() {
                let next = delegation.chain.get(n + 1);
                let next = next.map(|a| Delegator { kind: DelegatorKind::Agent, name: a.name.clone() });
                add(link(agent, next.or_else(|| user.clone())));
            }
        }
        None => facts.chain.iter().for_each(|l| add(link(&l.agent, l.delegator.clone()))),
    }
    add(AgentEntry {
        facts: acting.clone(),
        session: facts.session_mode,
        delegation: facts.delegation_mode,
        fixed_delegator: facts.fixed_delegator.clone(),
    });
    out
}

fn snapshot(record: &DecisionRecord, agents: &HashMap<String, Arc<AgentEntry>>, set: &EffectiveSet) -> Snapshot {
    let tenant = Tenant {
        name: record.tenant.clone(),
        uid: record.tenant_uid.clone(),
        agents: agents.clone(),
        package: Some(set.package.clone()),
        canary: None,
        // As if it enforced: a difference counts also where nobody enforces yet.
        profile: EffectiveProfile::default(),
    };
    Snapshot {
        platform: Some(Ok(set.platform.clone())),
        tenants: HashMap::from([(record.tenant.clone(), Arc::new(tenant))]),
        ..Snapshot::default()
    }
}

/// Both sides' snapshots for one agent as it was.
pub(super) struct World {
    facts: RecordedFacts,
    replay: ReplayFacts,
    pub baseline: Snapshot,
    pub candidate: Snapshot,
}

impl World {
    /// Compares everything that went into the snapshots: the hash only finds it.
    fn is_of(&self, facts: &RecordedFacts, replay: &ReplayFacts) -> bool {
        self.facts.agent == facts.agent
            && self.facts.delegation == facts.delegation
            && self.replay.session_mode == replay.session_mode
            && self.replay.delegation_mode == replay.delegation_mode
            && self.replay.fixed_delegator == replay.fixed_delegator
            && self.replay.chain == replay.chain
    }
}

/// Worlds that were asked for before.
#[derive(Default)]
pub(super) struct Worlds(HashMap<u64, Vec<World>>);

impl Worlds {
    /// The world of a record. All records of a task are of one tenant.
    pub fn of(&mut self, task: &Task, record: &DecisionRecord, replay: &ReplayFacts) -> &World {
        let facts = &record.facts;
        let mut hasher = DefaultHasher::new();
        facts.agent.as_ref().map(|a| (&a.name, &a.uid, a.trust, a.suspended)).hash(&mut hasher);
        let key = hasher.finish();
        let known = self.0.get(&key).and_then(|all| all.iter().position(|w| w.is_of(facts, replay)));
        if known.is_none() && self.0.values().map(Vec::len).sum::<usize>() >= KEPT {
            self.0.clear();
        }
        let all = self.0.entry(key).or_default();
        let position = known.unwrap_or_else(|| {
            let agents = agents(record, replay);
            all.push(World {
                facts: facts.clone(),
                replay: replay.clone(),
                baseline: snapshot(record, &agents, &task.baseline),
                candidate: snapshot(record, &agents, &task.candidate),
            });
            all.len() - 1
        });
        &all[position]
    }
}
