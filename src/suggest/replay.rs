//! A recorded decision asked again under a suggestion: the code of `replay`, and where a record is of a version of Remit that did not keep
//! everything, with the little that is not kept taken from what decided then. A suggestion is tested before anybody uses it.

use std::sync::Arc;

use crate::api::{DelegationMode, Delegator, DelegatorKind, SessionMode};
use crate::gate::{ChainLink, Decision, DecisionRecord, ReplayFacts, SessionState};
use crate::policy::{CompiledPackage, base_platform};
use crate::replay;
pub use crate::replay::enforced;

/// Asks again, as if the tenant enforced, over the platform's base package. None: the record does not hold what is needed.
pub fn ask(record: &DecisionRecord, package: &Arc<CompiledPackage>) -> Option<Decision> {
    record.facts.agent.as_ref()?;
    let assumed;
    let facts = match record.facts.replay.as_deref() {
        Some(facts) => facts,
        None => {
            assumed = assume(record);
            &assumed
        }
    };
    Some(replay::ask(record, facts, &[base_platform()], package))
}

/// What its Agent object demanded is not recorded but for where it decided.
fn assume(record: &DecisionRecord) -> ReplayFacts {
    let (_, code) = enforced(record);
    let agent = |name: &String| Delegator { kind: DelegatorKind::Agent, name: name.clone() };
    let user = |name: &String| Delegator { kind: DelegatorKind::User, name: name.clone() };
    let delegation = record.facts.delegation.as_ref();
    let delegator =
        delegation.and_then(|d| d.chain.first().map(|a| agent(&a.name)).or_else(|| d.user.as_ref().map(user)));
    ReplayFacts {
        session: match (&record.request.session, code) {
            (None, _) => SessionState::NotNamed,
            (Some(_), "session_unknown") => SessionState::Unknown,
            (Some(_), _) => SessionState::Live,
        },
        session_mode: if code == "session_required" { SessionMode::Required } else { SessionMode::Optional },
        delegation_mode: match (code, &delegator) {
            ("delegation_required", _) => DelegationMode::Required,
            (_, Some(_)) => DelegationMode::Optional,
            (_, None) => DelegationMode::None,
        },
        fixed_delegator: delegator,
        chain: Vec::<ChainLink>::new(),
        long_values: false,
    }
}
