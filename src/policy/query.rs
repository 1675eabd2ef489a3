//! What an evaluation is asked, and what it answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Which of the two evaluations of gate 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The platform's packages: agents are `Agent::"tenant/name"`, teams `Team::"tenant/team"`, `context.tenant` is there.
    Platform,
    /// The tenant's own package.
    Tenant,
}

/// An agent as policies see it: only from its object and from Remit, never from a caller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentFacts {
    /// Namespace.
    pub tenant: String,
    /// Name of the Agent.
    pub name: String,
    /// UID of the Agent: a re-created one inherits nothing.
    pub uid: String,
    /// `Agent.spec.type`; empty where not set.
    #[serde(rename = "type")]
    pub type_: String,
    /// `Agent.spec.teams`.
    pub teams: Vec<String>,
    /// Trust, 0 to 4; with a delegating agent in the chain the least of all.
    pub trust: i64,
    /// Whether the agent is suspended.
    pub suspended: bool,
    /// `Agent.spec.attributes`, tags in Cedar.
    pub attributes: BTreeMap<String, String>,
}

/// For whom the agent acts: the human at the root, and the agents in between.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DelegationFacts {
    /// The human at the root, if there is one.
    pub user: Option<String>,
    /// Delegating agents of the same tenant, nearest first.
    pub chain: Vec<AgentFacts>,
}

/// Who asks to act.
#[derive(Clone, Debug, PartialEq)]
pub enum Subject<'a> {
    /// An agent. `delegation` is None in the evaluation without its delegator.
    Agent { facts: &'a AgentFacts, delegation: Option<&'a DelegationFacts> },
    /// Another subject type that the package maps, or a core `user` or `service`; only gateways ask for these.
    Other { type_: &'a str, id: &'a str, properties: &'a Map<String, Value> },
}

/// On what: the AuthZEN type and id, and the attributes that came with the call.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource<'a> {
    /// AuthZEN type: `tool`, `domain`, or one that the package maps.
    pub type_: &'a str,
    /// AuthZEN id.
    pub id: &'a str,
    /// AuthZEN properties as they came.
    pub properties: &'a Map<String, Value>,
}

/// Who is believed: decides which mapped attributes may come with the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CallerKind {
    /// The agent asks for itself.
    Agent,
    /// An enforcement point with verb `check`.
    Gateway,
}

/// One question to one side.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// Who asks to act.
    pub subject: Subject<'a>,
    /// Action name: `call_tool`, `network_access`, or one of the package.
    pub action: &'a str,
    /// On what.
    pub resource: Resource<'a>,
    /// Who is believed.
    pub caller: CallerKind,
    /// Namespace.
    pub tenant: &'a str,
    /// The call's arguments, flattened once.
    pub arguments: &'a crate::policy::Arguments,
    /// Session id, if the call names one.
    pub session: Option<&'a str>,
    /// Risk 0 to 100; Remit's own.
    pub risk: i64,
    /// Whether an active grant covers exactly this.
    pub granted: bool,
    /// Hour of the day, UTC, 0 to 23.
    pub hour: i64,
    /// Tier of the tool, where the tenant's package knows it: the platform's side learns it from here.
    pub tool: Option<&'a crate::api::Tool>,
}

/// The call's arguments as Cedar sees them: flattened, keys joined by `.`, scalars in RFC 8785 text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Arguments {
    /// `context.arguments`: key and text.
    pub strings: BTreeMap<String, String>,
    /// `context.numbers`: key and integer.
    pub numbers: BTreeMap<String, i64>,
    /// Keys whose value was over 64 KiB and stands replaced by its length and hash.
    pub replaced: Vec<String>,
}

/// A policy as answers and records name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRef {
    /// `(platform|tenant)/package/id`.
    pub id: String,
    /// `@reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `@code`: the author's own word for the reason, which the agent may see; the id it may not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// SHA-256 of the policy's text, hex: an approval is matched by id and text.
    pub text_hash: String,
    /// What it asks for, where it is a `forbid` with `@require_approval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
    /// `@grants_tenants`: a platform permit that is enough by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub grants_tenants: bool,
}

/// What a policy asks of humans.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ask {
    /// Approver group (`@require_approval`), or `delegator`.
    pub group: String,
    /// How many of them (`@approval_count`), at least 1.
    pub count: u32,
    /// For how long an approval may be used again (`@approval_window`), seconds; None: once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_seconds: Option<u64>,
    /// Arguments that the approval binds (`@approval_binds`); empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub binds: Vec<String>,
}

impl Ask {
    /// Whether it asks at least as much as another one: the same group, as many of them, for no longer, and of as many arguments.
    pub fn covers(&self, other: &Ask) -> bool {
        let binds =
            self.binds.is_empty() || !other.binds.is_empty() && other.binds.iter().all(|b| self.binds.contains(b));
        let window = |ask: &Ask| ask.window_seconds.unwrap_or(0);
        self.group == other.group && self.count >= other.count && window(self) <= window(other) && binds
    }

    /// For people: `2 of "leads"`.
    pub fn words(&self) -> String {
        let window = self.window_seconds.map(|s| format!(" for {s} s")).unwrap_or_default();
        let binds: Vec<String> = self.binds.iter().take(3).map(|b| format!("{b:?}")).collect();
        let binds = if binds.is_empty() { String::new() } else { format!(" on {}", binds.join(", ")) };
        format!("{} of {:?}{window}{binds}", self.count, self.group)
    }
}

/// A policy that could not be evaluated; a deny, because it may have been a forbid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyError {
    /// The policy.
    pub policy: String,
    /// Cedar's words.
    pub message: String,
}

/// What one side says. Sets, not a decision: gate 8 puts both sides together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Permits that match.
    pub permits: Vec<Arc<PolicyRef>>,
    /// Forbids that match and can't be lifted.
    pub forbids: Vec<Arc<PolicyRef>>,
    /// Forbids that match and that an approval lifts.
    pub asks: Vec<Arc<PolicyRef>>,
    /// Policies that errored.
    pub errors: Vec<PolicyError>,
    /// Attributes that a candidate forbid mentions and the caller left out.
    pub attributes_missing: Vec<String>,
    /// Replaced arguments that a candidate policy reads.
    pub arguments_too_large: Vec<String>,
}

/// A call that can't be put to the policies: the caller's mistake (400), with the field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct QueryError {
    /// Path in the request, such as `resource.properties.owner`.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}
