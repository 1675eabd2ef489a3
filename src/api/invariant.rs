//! Invariants: what must hold of a candidate whatever else changes. Remit's own by name, the tenant's by a few words. Replay judges them
//! over what was recorded, proof over every request.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::policy_package::Tier;

/// Something that must hold of a candidate: one of Remit's own, by its name alone (`no_write_privilege_escalation`,
/// `unknown_tools_denied`, `write_tools_need_approval`), or one of the tenant's, which says what it expects of which tool calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.expect) != (self.name in ['no_write_privilege_escalation', 'unknown_tools_denied', 'write_tools_need_approval'])",
        "message": "unknown invariant: name no_write_privilege_escalation, unknown_tools_denied or write_tools_need_approval, or say under another name what to expect"
    },
    {
        "rule": "has(self.expect) || (!has(self.agent) && !has(self.agentTrustBelow) && !has(self.team) && !has(self.tier) && !has(self.tool))",
        "message": "agent, agentTrustBelow, team, tier and tool stand only beside expect"
    }
]))]
pub struct Invariant {
    /// Its name: one of Remit's own, or a new one.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Only calls of this agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub agent: Option<String>,
    /// Only calls of agents with less trust than this, 1 to 4; with delegating agents the least trust of the chain counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4))]
    pub agent_trust_below: Option<i64>,
    /// Only calls of agents of this team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub team: Option<String>,
    /// Only calls of tools of this tier, as the candidate lists them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// Only calls of this tool, `server/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub tool: Option<String>,
    /// What must hold of these calls: `neverAllow` (denied, whoever approves) or `neverAllowAlone` (a human is asked, or it is denied).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expectation>,
}

/// What an invariant expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Expectation {
    /// The call is denied, and no approval lifts it.
    NeverAllow,
    /// The call does not go through without a human.
    NeverAllowAlone,
}

/// Remit's own invariants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BuiltIn {
    /// Nobody may do more with a tool that is not a read on both sides.
    NoWritePrivilegeEscalation,
    /// A tool that the candidate does not list is denied.
    UnknownToolsDenied,
    /// A tool that is not a read never goes through without a human.
    WriteToolsNeedApproval,
}

impl BuiltIn {
    /// All of them.
    pub const ALL: [BuiltIn; 3] =
        [BuiltIn::NoWritePrivilegeEscalation, BuiltIn::UnknownToolsDenied, BuiltIn::WriteToolsNeedApproval];

    /// As specs and reports write it.
    pub fn as_str(self) -> &'static str {
        match self {
            BuiltIn::NoWritePrivilegeEscalation => "no_write_privilege_escalation",
            BuiltIn::UnknownToolsDenied => "unknown_tools_denied",
            BuiltIn::WriteToolsNeedApproval => "write_tools_need_approval",
        }
    }
}

/// What an invariant means, once it is known to mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// One of Remit's own.
    BuiltIn(BuiltIn),
    /// The tenant's: the selectors of the invariant say of which calls.
    Declared(Expectation),
}

/// An invariant that nobody can judge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invariant {name:?}: {why}")]
pub struct InvariantError {
    /// Its name.
    pub name: String,
    /// What is wrong and what would be right.
    pub why: String,
}

impl Invariant {
    /// One of Remit's own, or a name that [`Invariant::meaning`] refuses.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// What it means. The API server holds objects to the same rules; files and HTTP bodies come here.
    pub fn meaning(&self) -> Result<Meaning, InvariantError> {
        let wrong = |why: &str| Err(InvariantError { name: self.name.clone(), why: why.to_owned() });
        let built_in = BuiltIn::ALL.into_iter().find(|b| b.as_str() == self.name);
        match (built_in, self.expect) {
            (Some(_), Some(_)) => wrong("this name is one of Remit's own: choose another beside expect"),
            (None, None) => wrong(
                "unknown invariant: there are no_write_privilege_escalation, unknown_tools_denied and \
                 write_tools_need_approval; one of your own says what to expect (neverAllow, neverAllowAlone)",
            ),
            (Some(_), None) if *self != Self::named(self.name.as_str()) => {
                wrong("agent, agentTrustBelow, team, tier and tool stand only beside expect")
            }
            (Some(built_in), None) => Ok(Meaning::BuiltIn(built_in)),
            (None, Some(_)) if !self.agent_trust_below.is_none_or(|t| (1..=4).contains(&t)) => {
                wrong("agentTrustBelow is 1 to 4")
            }
            (None, Some(_)) if self.name.is_empty() || self.name.len() > 63 => wrong("a name has 1 to 63 characters"),
            (None, Some(expect)) => Ok(Meaning::Declared(expect)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_invariant_is_refused() {
        for name in ["", "no_escalation", "unknown_tools_denied ", "Unknown_Tools_Denied"] {
            let error = Invariant::named(name).meaning().unwrap_err();
            assert!(error.to_string().contains("unknown_tools_denied"), "{error}");
        }
        for known in BuiltIn::ALL {
            assert_eq!(Invariant::named(known.as_str()).meaning(), Ok(Meaning::BuiltIn(known)));
        }
    }

    #[test]
    fn a_tenants_own_says_what_it_expects_under_a_name_of_its_own() {
        let own: Invariant = serde_json::from_value(serde_json::json!(
            {"name": "juniors-no-admin", "agentTrustBelow": 3, "tier": "admin", "expect": "neverAllow"}
        ))
        .unwrap();
        assert_eq!(own.meaning(), Ok(Meaning::Declared(Expectation::NeverAllow)));
        let squatted = Invariant { name: "unknown_tools_denied".into(), ..own.clone() };
        assert!(squatted.meaning().is_err());
        assert!(Invariant { expect: None, ..own.clone() }.meaning().is_err());
        let narrowed = Invariant { tier: Some(Tier::Admin), ..Invariant::named("unknown_tools_denied") };
        assert!(narrowed.meaning().is_err(), "a built-in one can't be narrowed to nothing");
        assert!(Invariant { agent_trust_below: Some(5), ..own }.meaning().is_err());
        assert!(
            serde_json::from_str::<Invariant>(r#"{"name": "x", "expect": "neverAllow", "teir": "admin"}"#).is_err()
        );
    }
}
