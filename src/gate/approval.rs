//! Approval: what is permitted but asked for is answered `approval_required`, with everything that asks.

use std::sync::Arc;

use super::decision::{Decision, Outcome};
use super::pass::{Pass, deny};
use crate::policy::PolicyRef;

pub(super) fn gate(pass: &mut Pass<'_>) -> Result<(), Decision> {
    if pass.asks.is_empty() {
        return Ok(());
    }
    Err(asked(pass.asks.clone()))
}

/// The answer while these asks are open.
pub(super) fn asked(asks: Vec<Arc<PolicyRef>>) -> Decision {
    let reason = asks.iter().find_map(|p| p.reason.clone()).unwrap_or_else(|| {
        let wanted: Vec<_> =
            asks.iter().filter_map(|p| p.ask.as_ref()).map(|a| format!("{} of {:?}", a.count, a.group)).collect();
        format!("This needs approval by {}.", wanted.join(" and "))
    });
    Decision { outcome: Outcome::ApprovalRequired, policies: asks.clone(), asks, ..deny("approval_required", reason) }
}
