//! Approval: what is permitted but asked for is answered `approval_required`, with everything that asks.

use super::decision::{Decision, Outcome};
use super::pass::{Pass, deny};

pub(super) fn gate(pass: &mut Pass<'_>) -> Result<(), Decision> {
    if pass.asks.is_empty() {
        return Ok(());
    }
    let reason = pass.asks.iter().find_map(|p| p.reason.clone()).unwrap_or_else(|| {
        let wanted: Vec<_> =
            pass.asks.iter().filter_map(|p| p.ask.as_ref()).map(|a| format!("{} of {:?}", a.count, a.group)).collect();
        format!("This needs approval by {}.", wanted.join(" and "))
    });
    Err(Decision {
        outcome: Outcome::ApprovalRequired,
        policies: pass.asks.clone(),
        asks: pass.asks.clone(),
        ..deny("approval_required", reason)
    })
}
