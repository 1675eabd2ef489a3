//! A recorded decision asked again: the same question with the facts of its time, under another package.
//!
//! Must never guess: a record whose facts are not there is not asked.

use std::collections::HashMap;
use std::sync::Arc;

use crate::api::{DelegationMode, Delegator, DelegatorKind, EffectiveProfile, SessionMode};
use crate::gate::{
    AgentEntry, CheckInput, Checked, DecisionRecord, MAX_PATTERN_COST, Outcome, SessionState, Snapshot, Tenant, check,
};
use crate::policy::{AgentFacts, CompiledPackage, base_platform};

/// What was decided, or would have been if the tenant had enforced.
pub fn enforced(record: &DecisionRecord) -> (Outcome, &str) {
    match &record.would_be {
        Some(would_be) => (would_be.outcome, &would_be.code),
        None => (record.outcome, &record.code),
    }
}

/// Asks again, as if the tenant enforced, over the platform's base package. None: the record does not hold what is needed.
pub fn ask(record: &DecisionRecord, package: &Arc<CompiledPackage>) -> Option<Checked> {
    let facts = record.facts.agent.as_ref()?;
    let (_, code) = enforced(record);
    let session = match (&record.request.session, code) {
        (None, _) => SessionState::NotNamed,
        (Some(_), "session_unknown") => SessionState::Unknown,
        (Some(_), _) => SessionState::Live,
    };
    let chain = record.facts.delegation.iter().flat_map(|d| &d.chain);
    let user = record.facts.delegation.as_ref().and_then(|d| d.user.as_ref());
    let next = chain.clone().map(|a| Delegator { kind: DelegatorKind::Agent, name: a.name.clone() });
    let next = next.chain(user.map(|name| Delegator { kind: DelegatorKind::User, name: name.clone() }));
    let entry = |facts: &AgentFacts, next: Option<Delegator>| {
        let entry = AgentEntry {
            facts: facts.clone(),
            session: SessionMode::Optional,
            delegation: if next.is_some() { DelegationMode::Optional } else { DelegationMode::None },
            fixed_delegator: next,
        };
        (facts.name.clone(), entry)
    };
    let mut next = next.map(Some).chain(std::iter::once(None));
    let mut agents: HashMap<String, AgentEntry> =
        std::iter::once(facts).chain(chain).map(|facts| entry(facts, next.next().flatten())).collect();
    if let Some(agent) = agents.get_mut(&facts.name) {
        // What its Agent object demanded is not recorded but for where it decided.
        match code {
            "session_required" => agent.session = SessionMode::Required,
            "delegation_required" => agent.delegation = DelegationMode::Required,
            _ => {}
        }
    }
    let tenant = Tenant {
        canary: None,
        name: record.tenant.clone(),
        uid: record.tenant_uid.clone(),
        agents: agents.into_iter().map(|(name, entry)| (name, Arc::new(entry))).collect(),
        package: Some(package.clone()),
        profile: EffectiveProfile::default(),
    };
    let snapshot = Snapshot {
        platform: Some(Ok(vec![base_platform()])),
        tenants: HashMap::from([(record.tenant.clone(), Arc::new(tenant))]),
        ..Snapshot::default()
    };
    Some(check(&CheckInput {
        snapshot: &snapshot,
        tenant: &record.tenant,
        caller: &record.caller,
        request: &record.request,
        session,
        now: record.time,
        id: &record.id,
        request_id: None,
        redaction_key: b"replay",
        pattern_budget: MAX_PATTERN_COST,
    }))
}
