//! Why a decision fell as it did: from its record and the packages that it names, and from nothing that is true now.
//!
//! Explains, and decides nothing. Where a text is gone or a value was not kept it says so; it never fills in from elsewhere.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::decision::{MAX_PATTERN_COST, Outcome};
use super::record::DecisionRecord;
use super::spelling;
use crate::policy::{
    AgentFacts, Arguments, CompiledPackage, Fact, Failed, NearPermit, PolicyRef, PolicyWhy, Query, Resource, Side,
    Source, Subject,
};

/// Permits that are named on a default deny.
const NEAREST: usize = 5;

/// A package that was evaluated, and its text where it is still there.
#[derive(Clone, Debug)]
pub struct Texts {
    /// Which evaluation.
    pub side: Side,
    /// Its digest, from the record.
    pub digest: String,
    /// The package of exactly this digest.
    pub package: Option<Arc<CompiledPackage>>,
    /// Whether the reader may see its text.
    pub visible: bool,
}

/// The explanation of one decision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Why {
    /// The decision.
    pub decision_id: String,
    /// When it was decided. All facts are those of this time.
    pub time: Timestamp,
    /// What was answered.
    pub outcome: Outcome,
    /// Reason code.
    pub code: String,
    /// Reason, as it was answered.
    pub reason: String,
    /// What it would have been, where it was let through because the tenant observed. All else explains this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would_be: Option<WouldHaveBeen>,
    /// Who: `agent:coder`.
    pub subject: String,
    /// For whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegated_from: Option<String>,
    /// How.
    pub action: String,
    /// On what: `tool:git/push`.
    pub resource: String,
    /// Policies that decided, and those that erred.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub determining: Vec<Determining>,
    /// On a default deny: permits that came nearest, the nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nearest: Vec<Nearest>,
    /// What to do, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<String>,
    /// What was evaluated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<PackageUsed>,
}

/// What an observed decision would have been.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WouldHaveBeen {
    /// `deny` or `approval_required`.
    pub outcome: Outcome,
    /// Reason code.
    pub code: String,
    /// For people.
    pub reason: String,
}

/// A policy that decided.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Determining {
    /// Its id.
    pub policy: String,
    /// `permit`, `forbid` or `ask`; absent where its text is gone or not the reader's to see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
    /// `@reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `@code`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What its conditions read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<Fact>,
    /// Of a policy that erred: Cedar's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Of a policy that erred: the part that did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
}

/// A permit that did not match.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Nearest {
    /// Its id.
    pub policy: String,
    /// `@reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Parts of its scope (principal, action, resource) that hold.
    pub scope_held: usize,
    /// Conditions that hold before the first that does not.
    pub conditions_held: usize,
    /// All of its conditions.
    pub conditions: usize,
    /// What failed first.
    pub failed: Failed,
}

/// A package that was evaluated.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PackageUsed {
    /// Which evaluation.
    pub side: Side,
    /// Its digest.
    pub digest: String,
    /// Name and version, where the package is still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    /// `shown`, `hidden` (a platform's, and the reader is the tenant's) or `gone`.
    pub text: String,
}

/// Explains a decision.
pub fn why(record: &DecisionRecord, texts: &[Texts]) -> Why {
    let request = &record.request;
    let mut found = Why {
        decision_id: record.id.clone(),
        time: record.time,
        outcome: record.outcome,
        code: record.code.clone(),
        reason: record.reason.clone(),
        would_be: record.would_be.as_ref().map(|w| WouldHaveBeen {
            outcome: w.outcome,
            code: w.code.clone(),
            reason: w.reason.clone(),
        }),
        subject: format!("{}:{}", request.subject.type_, request.subject.id),
        delegated_from: record.delegated_from.clone(),
        action: request.action.name.clone(),
        resource: format!("{}:{}", request.resource.type_, request.resource.id),
        determining: Vec::new(),
        nearest: Vec::new(),
        advice: Vec::new(),
        packages: texts.iter().map(used).collect(),
    };
    let asked = Asked::of(record);
    determining(record, texts, &asked, &mut found);
    if code(record) == "no_permit" {
        nearest(record, texts, &asked, &mut found);
    }
    advise(record, texts, &mut found.advice);
    found
}

/// The code that is explained.
fn code(record: &DecisionRecord) -> &str {
    record.would_be.as_ref().map_or(record.code.as_str(), |w| w.code.as_str())
}

/// The policies that determined it.
fn policies(record: &DecisionRecord) -> &[PolicyRef] {
    record.would_be.as_ref().map_or(record.policies.as_slice(), |w| w.policies.as_slice())
}

fn used(of: &Texts) -> PackageUsed {
    let text = match (&of.package, of.visible) {
        (_, false) => "hidden",
        (Some(_), true) => "shown",
        (None, true) => "gone",
    };
    let package = of.package.as_ref().map(|p| format!("{} {}", p.package(), p.version()));
    PackageUsed { side: of.side, digest: of.digest.clone(), package, text: text.into() }
}

/// What was put to the policies, as far as the record kept it.
struct Asked {
    arguments: Arguments,
    /// Keys of arguments whose values were not kept.
    hidden: Vec<String>,
    /// The agent as its delegation leaves it.
    restricted: Option<AgentFacts>,
}

impl Asked {
    fn of(record: &DecisionRecord) -> Self {
        let (arguments, hidden) = Arguments::flatten_kept(&record.request.arguments).unwrap_or_default();
        let chain = record.facts.delegation.iter().flat_map(|d| &d.chain).map(|a| a.trust);
        let restricted = record
            .facts
            .agent
            .as_ref()
            .map(|agent| AgentFacts { trust: chain.fold(agent.trust, i64::min), ..agent.clone() });
        Self { arguments, hidden, restricted }
    }

    /// Without the delegator, and with it where there was one, as gate 8 asks.
    fn queries<'a>(&'a self, record: &'a DecisionRecord) -> Vec<Query<'a>> {
        let (request, facts) = (&record.request, &record.facts);
        let subjects = match (&facts.agent, &facts.delegation, &self.restricted) {
            (Some(agent), None, _) => vec![Subject::Agent { facts: agent, delegation: None }],
            (Some(agent), Some(delegation), restricted) => vec![
                Subject::Agent { facts: agent, delegation: None },
                Subject::Agent { facts: restricted.as_ref().unwrap_or(agent), delegation: Some(delegation) },
            ],
            // Nobody knew that agent.
            (None, ..) if request.subject.type_ == "agent" => vec![],
            (None, ..) => vec![Subject::Other {
                type_: &request.subject.type_,
                id: &request.subject.id,
                properties: &request.subject.properties,
            }],
        };
        let resource = Resource {
            type_: &request.resource.type_,
            id: &request.resource.id,
            properties: &request.resource.properties,
        };
        let query = |subject| Query {
            subject,
            action: &request.action.name,
            resource: resource.clone(),
            caller: record.caller.kind,
            tenant: &record.tenant,
            arguments: &self.arguments,
            session: request.session.as_deref(),
            risk: facts.risk,
            granted: facts.granted,
            hour: facts.hour,
            tool: facts.tool.as_ref(),
        };
        subjects.into_iter().map(query).collect()
    }
}

fn determining(record: &DecisionRecord, texts: &[Texts], asked: &Asked, into: &mut Why) {
    let of = |policy: &PolicyRef| Determining {
        policy: policy.id.clone(),
        effect: None,
        reason: policy.reason.clone(),
        rule: policy.code.clone(),
        source: None,
        text: None,
        facts: Vec::new(),
        error: None,
        failed: None,
    };
    for policy in policies(record) {
        let explained = explained(record, texts, asked, &policy.id, |w| w.failed.is_none());
        let one = Determining {
            effect: explained.as_ref().map(|w| w.kind.as_str().to_owned()),
            source: explained.as_ref().and_then(|w| w.source.clone()),
            text: explained.as_ref().map(|w| w.text.clone()),
            facts: explained.map(|w| w.facts).unwrap_or_default(),
            ..of(policy)
        };
        into.determining.push(one);
    }
    for error in &record.errors {
        let explained =
            explained(record, texts, asked, &error.policy, |w| w.failed.as_ref().is_some_and(|f| f.result == "error"));
        into.determining.push(Determining {
            policy: error.policy.clone(),
            effect: explained.as_ref().map(|w| w.kind.as_str().to_owned()),
            reason: None,
            rule: None,
            source: explained.as_ref().and_then(|w| w.source.clone()),
            text: explained.as_ref().map(|w| w.text.clone()),
            facts: Vec::new(),
            // A platform's words may quote its conditions.
            error: visible(texts, &error.policy).then(|| error.message.clone()),
            failed: explained.and_then(|w| w.failed),
        });
    }
}

/// Whether the text of a policy may be shown.
fn visible(texts: &[Texts], policy: &str) -> bool {
    let side = side(policy);
    texts.iter().filter(|t| t.side == side).all(|t| t.visible)
        && (side == Side::Tenant || texts.iter().any(|t| t.side == side))
}

fn side(policy: &str) -> Side {
    if policy.starts_with("platform/") { Side::Platform } else { Side::Tenant }
}

/// One policy, in the evaluation in which it came out as recorded, else in the first.
fn explained(
    record: &DecisionRecord,
    texts: &[Texts],
    asked: &Asked,
    policy: &str,
    as_recorded: impl Fn(&PolicyWhy) -> bool,
) -> Option<PolicyWhy> {
    if !visible(texts, policy) {
        return None;
    }
    let packages = texts.iter().filter(|t| t.side == side(policy)).filter_map(|t| t.package.as_deref());
    let mut first = None;
    for package in packages {
        for query in asked.queries(record) {
            let found = package.explain(&query, &asked.hidden, &[policy]).unwrap_or_default().into_iter().next();
            match found {
                Some(found) if as_recorded(&found) => return Some(found),
                Some(found) => drop(first.get_or_insert(found)),
                None => {}
            }
        }
    }
    first
}

fn nearest(record: &DecisionRecord, texts: &[Texts], asked: &Asked, into: &mut Why) {
    let Some(package) = texts.iter().find(|t| t.side == Side::Tenant && t.visible).and_then(|t| t.package.as_deref())
    else {
        return;
    };
    for (n, query) in asked.queries(record).iter().enumerate() {
        if package.pattern_cost(query) > MAX_PATTERN_COST {
            into.advice.push("The call's arguments are too long for the patterns to be tried again.".into());
            return;
        }
        let Ok((near, matched)) = package.nearest_permits(query, &asked.hidden, NEAREST) else { continue };
        // What stood in the way is the evaluation in which nothing matched.
        if matched {
            continue;
        }
        if n > 0 {
            let whom = record.delegated_from.as_deref().unwrap_or("somebody");
            into.advice.push(format!(
                "The agent alone would be permitted: it acts for {whom}, and what it does must be permitted with this delegator, too."
            ));
        }
        into.nearest = near.into_iter().map(Nearest::from).collect();
        return;
    }
}

impl From<NearPermit> for Nearest {
    fn from(p: NearPermit) -> Self {
        Self {
            policy: p.policy.id.clone(),
            reason: p.policy.reason.clone(),
            source: p.source,
            scope_held: p.scope,
            conditions_held: p.conditions.0,
            conditions: p.conditions.1,
            failed: p.failed,
        }
    }
}

/// What to do about it.
fn advise(record: &DecisionRecord, texts: &[Texts], into: &mut Vec<String>) {
    let (subject, tool, tenant) = (&record.request.subject.id, &record.request.resource.id, &record.tenant);
    let gone = texts.iter().filter(|t| t.visible && t.package.is_none());
    let needed = !policies(record).is_empty() || !record.errors.is_empty() || code(record) == "no_permit";
    into.extend(gone.filter(|_| needed).map(|t| {
        format!(
            "The text of package {} is gone: it is not in force any more, and no object keeps it. What is said here is what the record has.",
            t.digest
        )
    }));
    let package = texts.iter().find(|t| t.side == Side::Tenant).and_then(|t| t.package.as_deref());
    let sentence = match code(record) {
        "unknown_tool" => {
            let near = package.map(|p| spelling::nearest(tool, p.tools().map(|t| t.name.as_str()))).unwrap_or_default();
            let meant = match near.as_slice() {
                [] => String::new(),
                near => format!(" Perhaps {} is meant.", near.join(" or ")),
            };
            format!("The package lists no tool {tool:?}.{meant} Add it to `tools` of package.yaml; `remit tools import` proposes the entry.")
        }
        "tool_changed" => format!(
            "The description or schema of {tool:?} is not the one that was reviewed. Run `remit tools import` against its server, read the \
             difference, and put the new package in force."
        ),
        "paused" => format!(
            "Agent {subject:?}, or one that it acts through, is suspended. Who may `elevate` agents lifts it: set `spec.suspend` to false."
        ),
        "unknown_agent" => format!("There is no Agent {subject:?} in tenant {tenant:?}. Create it, or mend the name."),
        "unknown_delegator" => "An agent in the delegation chain does not exist. Create it, or change `spec.delegation`.".into(),
        "delegation_required" => {
            format!("Agent {subject:?} acts only on somebody's behalf. Set `spec.delegation.fixed`, or make the delegation optional.")
        }
        "delegation_loop" | "delegation_too_deep" => {
            "Shorten the chain of fixed delegators in the Agents' `spec.delegation`.".into()
        }
        "delegator_mismatch" => {
            "Leave `on_behalf_of` out, or make that delegator the one of the Agent's `spec.delegation.fixed`.".into()
        }
        "session_required" => "Open a session with POST /sessions, and name it in every call.".into(),
        "session_unknown" => {
            "The session has ended, or is another agent's. Open a new one with POST /sessions and keep it alive by heartbeats.".into()
        }
        "no_package" => format!(
            "No policy package is in force in tenant {tenant:?}. Apply one, and look at its conditions: kubectl get policypackages,tenantrollouts -n {tenant}"
        ),
        "attributes_missing" => {
            "A forbid speaks of attributes that the enforcement point did not send. Send them as `resource.properties` or `subject.properties`.".into()
        }
        "argument_too_large" => "A policy reads an argument of more than 64 KiB. Send less, or let no policy read it.".into(),
        "evaluation_too_costly" => "Shorten the arguments, or the patterns of `like` that read them.".into(),
        "audit_unavailable" => "The record could not be committed, so nothing was allowed. Look at the store: disk, and the metrics.".into(),
        "approval_required" => {
            let asks: Vec<String> = policies(record)
                .iter()
                .filter_map(|p| p.ask.as_ref())
                .map(|a| format!("{} of {:?}", a.count, a.group))
                .collect();
            format!("It is permitted, and waits for an approval by {}.", asks.join(" and "))
        }
        "not_your_identity" => "An agent asks only for itself, in its own tenant, with the token of its own ServiceAccount.".into(),
        "not_allowed" => "The caller is no Agent. An enforcement point needs verb `check` on `agents.remit.dev` in the namespace.".into(),
        "identity_conflict" => "Several Agents claim this ServiceAccount. Leave it to one of them.".into(),
        "unknown_tenant" => "There is no such namespace with Agents or packages.".into(),
        "platform_policy_unavailable" | "not_synced" => "The platform's policies were not there. Look at the operator's log.".into(),
        "no_permit" if record.facts.agent.is_none() && record.agent == *subject => {
            "The record has no facts of the agent, so nothing can be tried again.".into()
        }
        _ => return,
    };
    into.push(sentence);
}

#[cfg(test)]
#[path = "why_tests.rs"]
mod unit;
