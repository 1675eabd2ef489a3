//! `Agent`: which identities are in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::{Context, ReconcileError, apply_status, list};
use crate::api::{Agent, AgentStatus, READY, RECONCILING, STALLED, clear_condition, is_federated, set_condition};
use crate::lifecycle::rollout::clip;
use crate::server::issuers::may_speak;
use crate::source::kubernetes::{Guarded, call};

/// What the controller is given.
pub type Object = Guarded<Agent>;

/// When a ServiceAccount that is not there yet is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Who else claims an identity: the younger one has to give way, and until then it is refused to both.
#[derive(Debug, Default, PartialEq)]
struct Claims {
    /// Usernames that an elder Agent claims, too, with its name.
    elder: BTreeMap<String, String>,
    /// Usernames that a younger Agent claims, too, with its name.
    younger: BTreeMap<String, String>,
}

fn claims(agent: &Agent, namespace: &str, all: &[&Agent]) -> Claims {
    let age = |a: &Agent| (a.creation_timestamp().map(|t| t.0), a.uid());
    let mut out = Claims::default();
    for other in all.iter().filter(|o| o.uid() != agent.uid()) {
        for identity in &agent.spec.identities {
            if other.spec.identities.contains(identity) {
                let side = if age(other) < age(agent) { &mut out.elder } else { &mut out.younger };
                side.extend(identity.username(namespace).map(|username| (username, other.name_any())));
            }
        }
    }
    out
}

pub async fn reconcile(object: Arc<Object>, ctx: Arc<Context>) -> Result<Action, ReconcileError> {
    let Ok(agent) = &object.0 else { return Ok(super::unreadable(&object)) };
    if agent.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let namespace = agent.namespace().unwrap_or_default();
    let all = ctx.objects.agents_of(&namespace);
    let all: Vec<&Agent> = all.iter().filter_map(|a| a.0.as_ref().ok()).collect();
    let claims = claims(agent, &namespace, &all);
    let missing = missing_accounts(&ctx, &namespace, agent).await;
    let usernames = agent.spec.identities.iter().filter_map(|identity| identity.username(&namespace));
    let silent = usernames.filter(|u| is_federated(u) && !may_speak(&ctx.issuers, u, &namespace)).collect();
    let status = next_status(agent, &namespace, &claims, &missing, &silent, jiff::Timestamp::now());
    let api = ctx.api::<Agent>(&namespace);
    let written = apply_status(&api, agent, agent.status.as_ref(), &status, false).await?;
    let stalled = |s: Option<&AgentStatus>| s.is_some_and(|s| crate::api::is_true(&s.conditions, STALLED));
    if written && stalled(Some(&status)) && !stalled(agent.status.as_ref()) {
        let note = status.conditions.iter().find(|c| c.type_ == STALLED).map(|c| c.message.clone()).unwrap_or_default();
        ctx.event(agent, true, "IdentityConflict", &note).await;
    }
    Ok(if missing.is_empty() { Action::await_change() } else { Action::requeue(LOOK_AGAIN) })
}

/// Accounts that are not there (yet). Without the right to look, none is said to be missing.
async fn missing_accounts(ctx: &Context, namespace: &str, agent: &Agent) -> BTreeSet<String> {
    let api = ctx.api::<ServiceAccount>(namespace);
    let mut missing = BTreeSet::new();
    for account in agent.spec.identities.iter().filter_map(|identity| identity.service_account.as_ref()) {
        let found = call("serviceaccounts", api.get_metadata_opt(account)).await;
        if matches!(found, Ok(None)) {
            missing.insert(account.clone());
        }
    }
    missing
}

/// A ServiceAccount by its name, other identities as they are.
fn named(username: &str) -> String {
    match username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((_, account)) => format!("ServiceAccount {account}"),
        None => username.to_owned(),
    }
}

fn next_status(
    agent: &Agent,
    namespace: &str,
    claims: &Claims,
    missing: &BTreeSet<String>,
    silent: &BTreeSet<String>,
    now: jiff::Timestamp,
) -> AgentStatus {
    let generation = agent.metadata.generation.unwrap_or(0);
    let mut status = agent.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    let usernames: BTreeSet<String> = agent.spec.identities.iter().filter_map(|i| i.username(namespace)).collect();
    let free = usernames.iter().filter(|u| !claims.elder.contains_key(*u) && !claims.younger.contains_key(*u));
    status.identities = free.filter(|u| !silent.contains(*u)).cloned().collect();
    let conditions = &mut status.conditions;
    clear_condition(conditions, RECONCILING);
    if let Some((username, elder)) = claims.elder.first_key_value() {
        let message =
            clip(&format!("{} is already claimed by the elder Agent {elder}; it is refused to both", named(username)));
        set_condition(conditions, READY, false, "IdentityConflict", message.clone(), generation, now);
        set_condition(conditions, STALLED, true, "IdentityConflict", message, generation, now);
        return status;
    }
    clear_condition(conditions, STALLED);
    if let Some((username, younger)) = claims.younger.first_key_value() {
        let message = clip(&format!("{} is refused while the younger Agent {younger} claims it, too", named(username)));
        let ready = !status.identities.is_empty();
        set_condition(conditions, READY, ready, "IdentityContested", message, generation, now);
        return status;
    }
    if let Some(username) = silent.first() {
        let ready = !status.identities.is_empty();
        let message = clip(&format!("{}: no configured issuer may speak for it in this namespace", named(username)));
        set_condition(conditions, READY, ready, "IssuerUnknown", message, generation, now);
        return status;
    }
    let message = match (agent.spec.suspend, usernames.len(), missing.is_empty()) {
        (true, ..) => "suspended: every call is answered paused".to_owned(),
        (_, 0, _) => "no identities: only gateways can ask about it".to_owned(),
        (_, n, true) => format!("{n} identities in force"),
        (_, n, false) => format!("{n} identities in force; ServiceAccount {} does not exist yet", list(missing)),
    };
    let reason = if agent.spec.suspend { "Suspended" } else { "InForce" };
    set_condition(conditions, READY, true, reason, clip(&message), generation, now);
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{AgentIdentity, AgentSpec, is_true};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn agent(name: &str, created: i64, accounts: &[&str]) -> Agent {
        let identities = accounts.iter().map(|a| AgentIdentity::service_account(*a)).collect();
        let mut agent = Agent::new(name, AgentSpec { identities, ..AgentSpec::default() });
        agent.metadata.uid = Some(format!("uid-{name}"));
        agent.metadata.creation_timestamp = Some(Time(jiff::Timestamp::from_second(created).unwrap()));
        agent
    }

    #[test]
    fn younger_claimant_is_stalled_and_the_elder_is_told() {
        let (elder, younger) = (agent("z", 1, &["coder"]), agent("a", 2, &["coder", "own"]));
        let all = [&elder, &younger];
        let status = |a: &Agent| {
            next_status(
                a,
                "acme",
                &claims(a, "acme", &all),
                &BTreeSet::new(),
                &BTreeSet::new(),
                jiff::Timestamp::from_second(9).unwrap(),
            )
        };
        let young = status(&younger);
        assert!(is_true(&young.conditions, STALLED));
        assert!(!is_true(&young.conditions, READY));
        assert_eq!(young.identities, ["system:serviceaccount:acme:own"]);
        let old = status(&elder);
        assert!(!is_true(&old.conditions, STALLED));
        assert!(old.identities.is_empty(), "the identity is refused to both");
        assert!(!is_true(&old.conditions, READY));
    }

    #[test]
    fn an_identity_without_an_issuer_that_may_speak_for_it_is_told() {
        let mut agent = agent("a", 1, &["own"]);
        agent
            .spec
            .identities
            .push(AgentIdentity { spiffe: Some("spiffe://prod/x".into()), ..AgentIdentity::default() });
        let silent = BTreeSet::from(["spiffe://prod/x".to_owned()]);
        let now = jiff::Timestamp::from_second(9).unwrap();
        let status = next_status(&agent, "acme", &Claims::default(), &BTreeSet::new(), &silent, now);
        assert_eq!(status.identities, ["system:serviceaccount:acme:own"]);
        let ready = status.conditions.iter().find(|c| c.type_ == READY).unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("True", "IssuerUnknown"));
    }

    #[test]
    fn of_the_same_age_the_uid_decides() {
        let (a, b) = (agent("a", 1, &["x"]), agent("b", 1, &["x"]));
        assert_eq!(claims(&a, "acme", &[&a, &b]).younger.len(), 1);
        assert_eq!(claims(&b, "acme", &[&a, &b]).elder.len(), 1);
    }
}
