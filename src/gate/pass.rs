//! What the gates hand on to each other during one check.

use std::sync::Arc;

use super::arm::Arm;
use super::decision::{CheckInput, Decision, Outcome};
use super::snapshot::{AgentEntry, Tenant};
use crate::policy::{AgentFacts, Arguments, CompiledPackage, DelegationFacts, PolicyRef};

/// One check on its way.
pub(super) struct Pass<'a> {
    pub input: &'a CheckInput<'a>,
    /// The platform's packages.
    pub platform: &'a [Arc<CompiledPackage>],
    /// The tenant, once found.
    pub tenant: Option<&'a Tenant>,
    /// Evaluated under this arm, whoever asks: in shadow.
    pub under: Option<Arm>,
    /// The arm that decides, once the tenant is found.
    pub arm: Arm,
    /// The revision that this decision counts for: it was put to the package of one arm.
    pub revision: Option<i64>,
    /// The tenant's package of that arm, once found.
    pub package: Option<&'a CompiledPackage>,
    /// The agent that acts, where the subject is one.
    pub agent: Option<&'a AgentEntry>,
    /// For whom it acts.
    pub delegation: Option<DelegationFacts>,
    /// The agent as its delegation leaves it: the least trust of the chain. None where that changes nothing.
    pub restricted: Option<AgentFacts>,
    /// The call's arguments, flattened.
    pub arguments: Arguments,
    /// Permits that match, on both sides and with and without the delegator.
    pub permits: Vec<Arc<PolicyRef>>,
    /// Asks, collected from all gates.
    pub asks: Vec<Arc<PolicyRef>>,
}

impl<'a> Pass<'a> {
    pub fn new(input: &'a CheckInput<'a>) -> Self {
        Self {
            input,
            platform: &[],
            tenant: None,
            under: None,
            arm: Arm::Stable,
            revision: None,
            package: None,
            agent: None,
            delegation: None,
            restricted: None,
            arguments: Arguments::default(),
            permits: Vec::new(),
            asks: Vec::new(),
        }
    }

    /// Hour of the day, UTC.
    pub fn hour(&self) -> i64 {
        self.input.now.as_second().rem_euclid(86_400) / 3_600
    }

    /// What remains when no gate has ended the check.
    pub fn allowed(&self) -> Decision {
        Decision {
            outcome: Outcome::Allow,
            status: 200,
            code: "allowed",
            reason: self
                .permits
                .iter()
                .find_map(|p| p.reason.clone())
                .unwrap_or_else(|| "A policy permits this.".into()),
            policies: self.permits.clone(),
            asks: Vec::new(),
            errors: Box::default(),
            would_be: None,
        }
    }
}

/// A deny by Remit itself, not by a policy.
pub(super) fn deny(code: &'static str, reason: impl Into<String>) -> Decision {
    Decision {
        outcome: Outcome::Deny,
        status: 200,
        code,
        reason: reason.into(),
        policies: Vec::new(),
        asks: Vec::new(),
        errors: Box::default(),
        would_be: None,
    }
}

/// The question itself was wrong: nothing is decided, and nothing is allowed.
pub(super) fn refuse(status: u16, code: &'static str, reason: impl Into<String>) -> Decision {
    Decision { outcome: Outcome::Refused, status, ..deny(code, reason) }
}
