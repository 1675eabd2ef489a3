//! The platform's policies must be there: without them a tenant would decide alone.

use super::decision::Decision;
use super::pass::{Pass, refuse};

pub(super) fn gate(pass: &mut Pass<'_>) -> Result<(), Decision> {
    match &pass.input.snapshot.platform {
        Some(Ok(packages)) if !packages.is_empty() => {
            pass.platform = packages;
            Ok(())
        }
        Some(Ok(_)) => Err(refuse(503, "platform_policy_unavailable", "The platform's base package is not loaded.")),
        // Why it can't be loaded is the platform's business: it stands in the operator's log and metrics.
        Some(Err(_)) => {
            Err(refuse(503, "platform_policy_unavailable", "The platform's policy package can't be loaded."))
        }
        None => Err(refuse(503, "not_synced", "Remit has not read its objects yet.")),
    }
}
