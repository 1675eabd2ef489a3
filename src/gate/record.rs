//! What is written down of a check: what people ask afterwards, and what a replay needs.

use std::collections::BTreeMap;

use hmac::{Hmac, Mac};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::Sha256;

use super::decision::{Decision, Outcome, SessionState};
use super::delegation;
use super::pass::Pass;
use super::request::{Caller, CheckRequest, delegator_text};
use crate::api::{DelegationMode, Delegator, SessionMode, Tool};
use crate::policy::{AgentFacts, CallerKind, DelegationFacts, PolicyError, PolicyRef};

/// One row per authenticated check.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// Decision id, a UUIDv7, issued by Remit.
    pub id: String,
    /// When it was decided.
    pub time: Timestamp,
    /// Namespace. Of an agent that asked outside its own tenant: its own.
    pub tenant: String,
    /// UID of the namespace; empty where Remit knows none.
    pub tenant_uid: String,
    /// `X-Request-ID`, if the caller sent one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Who called.
    pub caller: Caller,
    /// Name of the agent that acts; empty for other subjects.
    pub agent: String,
    /// `user:NAME` or `agent:NAME`, where the agent acts for somebody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegated_from: Option<String>,
    /// The question. Arguments under `@sensitive` paths stand as keyed digests.
    pub request: CheckRequest,
    /// What Remit knew and gave to Cedar besides the question.
    pub facts: RecordedFacts,
    /// `stable` or `canary`: whose package was evaluated.
    pub arm: String,
    /// Number of the rollout's revision that was under way, and that this decision counts for; absent where none was, or where the
    /// question never came to a package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// Digests of the packages that were evaluated, by side: `platform`, `tenant`.
    pub digests: BTreeMap<String, Vec<String>>,
    /// What was answered.
    pub outcome: Outcome,
    /// Reason code.
    pub code: String,
    /// Reason for people.
    pub reason: String,
    /// Determining policies.
    pub policies: Vec<PolicyRef>,
    /// Open asks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<PolicyRef>,
    /// Policies that errored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<PolicyError>,
    /// Whether it was let through only because the tenant observed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub observed: bool,
    /// What it would be if the tenant enforced, where it was let through because the tenant observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would_be: Option<RecordedWouldBe>,
    /// Time in the gates, microseconds; what the call waited for its turn in its tenant's lane is not in it.
    pub latency_micros: u64,
}

/// What a decision would be if the tenant enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedWouldBe {
    /// `deny` or `approval_required`.
    pub outcome: Outcome,
    /// Reason code.
    pub code: String,
    /// Reason for people.
    pub reason: String,
    /// Policies that would determine it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyRef>,
}

/// What Remit knew and gave to Cedar besides the question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecordedFacts {
    /// The acting agent, with its own trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentFacts>,
    /// For whom it acts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegation: Option<DelegationFacts>,
    /// The tool as the package had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<Tool>,
    /// `context.risk`.
    pub risk: i64,
    /// `context.granted`.
    pub granted: bool,
    /// `context.hour`.
    pub hour: i64,
    /// What it takes besides to ask exactly this again; absent where the check ended before any gate of the tenant, and in records of
    /// versions of Remit that did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Box<ReplayFacts>>,
}

/// What it takes, besides the question and what Cedar was given, to put a question through the gates again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReplayFacts {
    /// What the session table said of the session that the call named.
    #[serde(default, skip_serializing_if = "not_named")]
    pub session: SessionState,
    /// Whether the acting agent had to name a session.
    #[serde(default, skip_serializing_if = "session_optional")]
    pub session_mode: SessionMode,
    /// Whether the acting agent acted for somebody.
    #[serde(default, skip_serializing_if = "no_delegation")]
    pub delegation_mode: DelegationMode,
    /// For whom it always acted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed_delegator: Option<Delegator>,
    /// Its delegating agents, nearest first, as far as they could be followed: where the check ended before its delegation was known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<ChainLink>,
    /// Whether a value that is not kept may have been over 64 KiB: then every policy that reads it denies.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub long_values: bool,
}

/// A delegating agent, and for whom it acts itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChainLink {
    /// The agent.
    pub agent: AgentFacts,
    /// Its own delegator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegator: Option<Delegator>,
}

fn not_named(state: &SessionState) -> bool {
    *state == SessionState::NotNamed
}

fn session_optional(mode: &SessionMode) -> bool {
    *mode == SessionMode::Optional
}

fn no_delegation(mode: &DelegationMode) -> bool {
    *mode == DelegationMode::None
}

fn replay_facts(pass: &Pass<'_>) -> Option<Box<ReplayFacts>> {
    let tenant = pass.tenant?;
    let agent = pass.agent;
    let unfollowed = agent.filter(|_| pass.delegation.is_none());
    Some(Box::new(ReplayFacts {
        session: pass.input.session,
        session_mode: agent.map(|a| a.session).unwrap_or_default(),
        delegation_mode: agent.map(|a| a.delegation).unwrap_or_default(),
        fixed_delegator: agent.and_then(|a| a.fixed_delegator.clone()),
        chain: unfollowed.map(|a| delegation::follow(tenant, a)).unwrap_or_default(),
        long_values: !pass.arguments.replaced.is_empty()
            && pass.package.is_none_or(|p| !p.sensitive_paths().is_empty()),
    }))
}

/// The record of a check that the gates have ended.
pub(super) fn record(pass: &Pass<'_>, decision: &Decision) -> DecisionRecord {
    let input = pass.input;
    let request = input.request;
    // An agent that asks about another tenant must not be able to fill that tenant's journal.
    let tenant = match (&input.caller.kind, &input.caller.agent) {
        (CallerKind::Agent, Some((own, _))) => own.as_str(),
        _ => input.tenant,
    };
    let mut digests = BTreeMap::new();
    if !pass.platform.is_empty() {
        digests.insert("platform".to_owned(), pass.platform.iter().map(|p| p.digest().to_owned()).collect());
    }
    if let Some(package) = pass.package {
        digests.insert("tenant".to_owned(), vec![package.digest().to_owned()]);
    }
    let sensitive = pass.package.map(|p| p.sensitive_paths());
    DecisionRecord {
        id: input.id.to_owned(),
        time: input.now,
        tenant: tenant.to_owned(),
        tenant_uid: input.snapshot.tenants.get(tenant).map(|t| t.uid.clone()).unwrap_or_default(),
        request_id: input.request_id.map(str::to_owned),
        caller: input.caller.clone(),
        agent: if request.subject.type_ == "agent" { request.subject.id.clone() } else { String::new() },
        delegated_from: delegated_from(pass),
        request: CheckRequest {
            arguments: redact(&request.arguments, sensitive, input.redaction_key),
            ..without_arguments(request)
        },
        facts: RecordedFacts {
            agent: pass.agent.map(|a| a.facts.clone()),
            delegation: pass.delegation.clone(),
            tool: pass.package.and_then(|p| p.tool(&request.resource.id)).cloned(),
            risk: 0,
            granted: false,
            hour: pass.hour(),
            replay: replay_facts(pass),
        },
        arm: pass.arm.as_str().into(),
        revision: pass.revision,
        digests,
        outcome: decision.outcome,
        code: decision.code.to_owned(),
        reason: decision.reason.clone(),
        policies: decision.policies.iter().map(|p| p.as_ref().clone()).collect(),
        asks: decision.asks.iter().map(|p| p.as_ref().clone()).collect(),
        errors: match sensitive {
            // Cedar's messages may quote values.
            Some([_, ..]) => decision
                .errors
                .iter()
                .map(|e| PolicyError { policy: e.policy.clone(), message: "evaluation failed".into() })
                .collect(),
            _ => decision.errors.to_vec(),
        },
        observed: decision.would_be.is_some(),
        would_be: decision.would_be.as_ref().map(|w| RecordedWouldBe {
            outcome: w.outcome,
            code: w.code.to_owned(),
            reason: w.reason.clone(),
            policies: w.policies.iter().map(|p| p.as_ref().clone()).collect(),
        }),
        latency_micros: 0,
    }
}

fn delegated_from(pass: &Pass<'_>) -> Option<String> {
    let agent = pass.agent?;
    pass.delegation.as_ref()?;
    agent.fixed_delegator.as_ref().map(delegator_text)
}

fn without_arguments(request: &CheckRequest) -> CheckRequest {
    CheckRequest {
        subject: request.subject.clone(),
        action: request.action.clone(),
        resource: request.resource.clone(),
        arguments: Map::new(),
        session: request.session.clone(),
        schema_digest: request.schema_digest.clone(),
        on_behalf_of: request.on_behalf_of.clone(),
    }
}

/// Arguments with the values under `paths` replaced by keyed digests. Without a package nobody has said what is
/// sensitive, so everything counts as such.
fn redact(arguments: &Map<String, Value>, paths: Option<&[String]>, key: &[u8]) -> Map<String, Value> {
    let Some(paths) = paths else {
        return arguments.iter().map(|(k, v)| (k.clone(), digest(v, key))).collect();
    };
    let mut out = arguments.clone();
    for path in paths {
        if let [first, rest @ ..] = segments(path).as_slice() {
            for (_, value) in out.iter_mut().filter(|(k, _)| first == "*" || *k == first) {
                redact_value(value, rest, key);
            }
        }
    }
    out
}

fn redact_value(value: &mut Value, path: &[String], key: &[u8]) {
    let [first, rest @ ..] = path else {
        *value = digest(value, key);
        return;
    };
    match value {
        Value::Object(members) => {
            for (_, v) in members.iter_mut().filter(|(k, _)| first == "*" || *k == first) {
                redact_value(v, rest, key);
            }
        }
        Value::Array(items) => {
            for (_, v) in items.iter_mut().enumerate().filter(|(i, _)| first == "*" || i.to_string() == *first) {
                redact_value(v, rest, key);
            }
        }
        _ => {}
    }
}

/// A path of argument names, joined by `.`, with `.` and `\` escaped by `\`; `*` stands for any one name.
fn segments(path: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '.' => out.push(String::new()),
            '\\' => out.last_mut().into_iter().for_each(|s| s.extend(chars.next())),
            c => out.last_mut().into_iter().for_each(|s| s.push(c)),
        }
    }
    out
}

/// `{"@sensitive": "hmac-sha256:…"}`: equal values are seen to be equal, and nothing else.
fn digest(value: &Value, key: &[u8]) -> Value {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Value::Null };
    mac.update(value.to_string().as_bytes());
    let hex: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
    let (member, scheme) = crate::policy::REDACTED;
    serde_json::json!({ member: format!("{scheme}{hex}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sensitive_arguments_stand_as_keyed_digests() {
        let arguments = serde_json::json!({"user": {"password": "x", "name": "n"}, "keys": [{"secret": "a"}, {"secret": "a"}], "a.b": 1});
        let arguments = arguments.as_object().unwrap().clone();
        let paths = ["user.password".to_owned(), "keys.*.secret".to_owned(), "a\\.b".to_owned()];
        let out = redact(&arguments, Some(&paths), b"k1");
        assert_eq!(out["user"]["name"], "n");
        let text = Value::Object(out.clone()).to_string();
        assert!(!text.contains("\"x\"") && !text.contains("\"a\""), "{text}");
        assert_eq!(out["keys"][0]["secret"], out["keys"][1]["secret"], "equal values have equal digests");
        assert!(out["a.b"]["@sensitive"].as_str().unwrap().starts_with("hmac-sha256:"));
        assert_ne!(out, redact(&arguments, Some(&paths), b"k2"), "the digest depends on the key");
    }

    #[test]
    fn without_a_package_no_argument_is_kept() {
        let arguments = serde_json::json!({"command": "rm -rf"});
        let out = redact(arguments.as_object().unwrap(), None, b"k");
        assert!(!Value::Object(out).to_string().contains("rm"));
    }
}
