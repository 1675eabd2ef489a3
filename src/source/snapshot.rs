//! Objects to snapshot: a pure function. No client, no clock, no store.
//!
//! What did not change keeps its `Arc`, so that a swap costs what changed, not what is there.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::api::{Agent, EffectiveProfile, is_federated};
use crate::gate::{AgentEntry, Canary, IdentityOwner, Snapshot, Tenant, federated_key};
use crate::policy::{AgentFacts, CompiledPackage};

/// Everything of one tenant that decides.
pub struct TenantInput<'a> {
    /// Namespace.
    pub name: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// Its Agents that are not being deleted.
    pub agents: &'a [&'a Agent],
    /// What is in force and was loaded.
    pub package: Option<Arc<CompiledPackage>>,
    /// What is on its way, and for whom it decides.
    pub canary: Option<Canary>,
    /// Its settings, over the platform's.
    pub profile: EffectiveProfile,
}

/// One tenant. Gives back `previous` where nothing changed.
pub fn tenant(input: TenantInput<'_>, previous: Option<&Arc<Tenant>>) -> Arc<Tenant> {
    let agents: HashMap<String, Arc<AgentEntry>> = input
        .agents
        .iter()
        .filter_map(|a| {
            let name = a.metadata.name.clone()?;
            let entry = entry(input.name, &name, a);
            let kept = previous.and_then(|p| p.agents.get(&name)).filter(|old| ***old == entry);
            Some((name, kept.cloned().unwrap_or_else(|| Arc::new(entry))))
        })
        .collect();
    if let Some(old) = previous
        && old.uid == input.uid
        && old.profile == input.profile
        && same_package(old.package.as_ref(), input.package.as_ref())
        && same_canary(old.canary.as_deref(), input.canary.as_ref())
        && old.agents == agents
    {
        return old.clone();
    }
    Arc::new(Tenant {
        canary: input.canary.map(Arc::new),
        name: input.name.into(),
        uid: input.uid.into(),
        agents,
        package: input.package,
        profile: input.profile,
    })
}

fn same_package(a: Option<&Arc<CompiledPackage>>, b: Option<&Arc<CompiledPackage>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

fn same_canary(a: Option<&Canary>, b: Option<&Canary>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => {
            let share = |c: &Canary| (c.revision, c.percent, c.shadow_percent, c.key);
            share(a) == share(b) && same_package(a.package.as_ref(), b.package.as_ref())
        }
        (None, None) => true,
        _ => false,
    }
}

fn entry(tenant: &str, name: &str, agent: &Agent) -> AgentEntry {
    let spec = &agent.spec;
    let delegation = spec.delegation.clone().unwrap_or_default();
    AgentEntry {
        facts: AgentFacts {
            tenant: tenant.into(),
            name: name.into(),
            uid: agent.metadata.uid.clone().unwrap_or_default(),
            type_: spec.type_.clone().unwrap_or_default(),
            teams: spec.teams.clone(),
            trust: spec.trust_level,
            suspended: spec.suspend,
            attributes: spec.attributes.clone(),
        },
        session: spec.session,
        delegation: delegation.mode,
        fixed_delegator: delegation.fixed,
    }
}

/// To whom the usernames of a tenant belong. One that several Agents claim belongs to none.
pub fn identities(tenant: &str, agents: &[&Agent]) -> HashMap<String, IdentityOwner> {
    let mut out: HashMap<String, IdentityOwner> = HashMap::new();
    for agent in agents {
        let Some(name) = &agent.metadata.name else { continue };
        let owner = IdentityOwner::Agent { tenant: tenant.into(), name: name.clone() };
        for identity in &agent.spec.identities {
            let Some(username) = identity.username(tenant) else { continue };
            // A ServiceAccount belongs to its namespace; what another issuer vouches for is claimed for this tenant alone.
            let key = if is_federated(&username) { federated_key(tenant, &username) } else { username };
            out.entry(key)
                .and_modify(|o| {
                    // One Agent that names the same account twice claims it once.
                    if *o != owner {
                        *o = IdentityOwner::Conflict;
                    }
                })
                .or_insert_with(|| owner.clone());
        }
    }
    out
}

/// A tenant as it stands in the snapshot, with the usernames that lead to it.
#[derive(Clone)]
pub struct TenantState {
    /// The tenant.
    pub tenant: Arc<Tenant>,
    /// Keys of its identities. Each belongs to its tenant, so two tenants can't claim the same.
    pub identities: Arc<HashMap<String, IdentityOwner>>,
}

/// Puts the tenants together.
pub fn assemble(
    generation: u64,
    platform: Option<Result<Vec<Arc<CompiledPackage>>, String>>,
    tenants: &BTreeMap<String, TenantState>,
) -> Snapshot {
    let mut identities = HashMap::with_capacity(tenants.values().map(|t| t.identities.len()).sum());
    for state in tenants.values() {
        identities.extend(state.identities.iter().map(|(k, v)| (k.clone(), v.clone())));
    }
    Snapshot {
        generation,
        platform,
        tenants: tenants.iter().map(|(name, state)| (name.clone(), state.tenant.clone())).collect(),
        identities,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{AgentIdentity, AgentSpec, OidcIdentity};

    fn agent(name: &str, accounts: &[&str], trust: i64) -> Agent {
        let identities = accounts.iter().map(|a| AgentIdentity::service_account(*a)).collect();
        let mut agent = Agent::new(name, AgentSpec { identities, trust_level: trust, ..AgentSpec::default() });
        agent.metadata.uid = Some(format!("uid-{name}"));
        agent
    }

    fn build(agents: &[&Agent], previous: Option<&Arc<Tenant>>) -> Arc<Tenant> {
        let profile = EffectiveProfile::default();
        tenant(TenantInput { name: "acme", uid: "u", agents, package: None, canary: None, profile }, previous)
    }

    #[test]
    fn identity_claimed_twice_belongs_to_nobody() {
        let (a, b) = (agent("a", &["coder", "coder"], 1), agent("b", &["coder", "other"], 1));
        let alone = identities("acme", &[&a]);
        let owner = |name: &str| IdentityOwner::Agent { tenant: "acme".into(), name: name.into() };
        assert_eq!(alone["system:serviceaccount:acme:coder"], owner("a"));
        let both = identities("acme", &[&a, &b]);
        assert_eq!(both["system:serviceaccount:acme:coder"], IdentityOwner::Conflict);
        assert_eq!(both["system:serviceaccount:acme:other"], owner("b"));
    }

    #[test]
    fn an_issuers_identity_is_claimed_in_one_tenant_only() {
        let mut coder = agent("coder", &[], 1);
        let oidc = OidcIdentity { issuer: "https://idp".into(), subject: "repo:a".into() };
        coder.spec.identities = vec![AgentIdentity { oidc: Some(oidc), ..AgentIdentity::default() }];
        let (acme, other) = (identities("acme", &[&coder]), identities("other", &[&coder]));
        let key = federated_key("acme", "oidc:https://idp#repo:a");
        assert_eq!(acme.keys().collect::<Vec<_>>(), [&key]);
        assert!(!other.contains_key(&key), "the claim of one tenant does not reach into another");
        let mut twin = coder.clone();
        twin.metadata.name = Some("twin".into());
        assert_eq!(identities("acme", &[&coder, &twin])[&key], IdentityOwner::Conflict);
    }

    #[test]
    fn unchanged_tenants_and_agents_keep_their_arcs() {
        let (a, b) = (agent("a", &["x"], 1), agent("b", &["y"], 2));
        let first = build(&[&a, &b], None);
        let again = build(&[&b, &a], Some(&first));
        assert!(Arc::ptr_eq(&first, &again));
        let raised = agent("b", &["y"], 3);
        let changed = build(&[&a, &raised], Some(&first));
        assert!(!Arc::ptr_eq(&first, &changed));
        assert!(Arc::ptr_eq(&first.agents["a"], &changed.agents["a"]));
        assert_eq!(changed.agents["b"].facts.trust, 3);
        let gone = build(&[&a], Some(&first));
        assert!(!gone.agents.contains_key("b"));
    }

    #[test]
    fn another_share_is_another_tenant() {
        let build = |percent, previous: Option<&Arc<Tenant>>| {
            let package = Some(crate::policy::base_platform());
            let canary = Canary { package, revision: 2, percent, shadow_percent: 100, key: [1; 32] };
            let profile = EffectiveProfile::default();
            let input =
                TenantInput { name: "acme", uid: "u", agents: &[], package: None, canary: Some(canary), profile };
            tenant(input, previous)
        };
        let first = build(5, None);
        assert!(Arc::ptr_eq(&first, &build(5, Some(&first))));
        let next = build(25, Some(&first));
        assert_eq!(next.canary.as_ref().unwrap().percent, 25);
    }

    #[test]
    fn recreated_namespace_or_agent_is_another_one() {
        let a = agent("a", &["x"], 1);
        let first = build(&[&a], None);
        let profile = EffectiveProfile::default();
        let input = TenantInput { name: "acme", uid: "v", agents: &[&a], package: None, canary: None, profile };
        let next = tenant(input, Some(&first));
        assert_eq!(next.uid, "v");
        let mut b = agent("a", &["x"], 1);
        b.metadata.uid = Some("uid-new".into());
        assert_eq!(build(&[&b], Some(&first)).agents["a"].facts.uid, "uid-new");
    }
}
