//! Stops: a suspended agent does nothing, and nobody acts through one.

use super::decision::Decision;
use super::pass::{Pass, deny};

pub(super) fn gate(pass: &mut Pass<'_>) -> Result<(), Decision> {
    let acting = pass.agent.map(|a| &a.facts);
    let chain = pass.delegation.iter().flat_map(|d| &d.chain);
    match acting.into_iter().chain(chain).find(|a| a.suspended) {
        Some(agent) => Err(deny("paused", format!("Agent {:?} is suspended.", agent.name))),
        None => Ok(()),
    }
}
