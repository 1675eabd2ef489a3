//! One check's way through the gates, over an immutable snapshot. Pure: no clock, no client, no store.
//!
//! The order of [`GATES`] is a contract. A gate either passes, or ends the check with a decision; what needs a human is
//! collected as an ask and weighed last. Adding a gate touches its own file and this list.

mod approval;
mod arm;
mod could;
mod decision;
mod delegation;
mod observe;
mod pass;
mod platform;
mod policy;
mod record;
mod redacted;
mod request;
mod snapshot;
pub(crate) mod spelling;
mod stops;
mod subject;
mod why;

pub use arm::{Arm, Unit, arm, arms_key, shadowed};
pub use could::{Could, Depends, Prospects, could_allow};
pub use decision::*;
pub use observe::OBSERVED;
pub(crate) use policy::weigh;
pub use record::*;
pub use redacted::depends_on_redacted;
pub use request::*;
pub use snapshot::*;
pub use why::{Determining, Nearest, PackageUsed, Texts, Why, WouldHaveBeen, why};

use pass::Pass;

#[cfg(test)]
mod could_tests;
#[cfg(test)]
mod rollout_tests;
#[cfg(test)]
mod tests;

/// A gate: passes, or ends the check.
type Gate = fn(&mut Pass<'_>) -> Result<(), Decision>;

/// Every gate after transport and authentication, in its order.
const GATES: &[Gate] = &[platform::gate, subject::gate, delegation::gate, stops::gate, policy::gate, approval::gate];

/// Runs every gate in its order and writes down what happened. Never panics on what a caller sent.
pub fn check(input: &CheckInput<'_>) -> Checked {
    run(Pass::new(input))
}

/// What this arm would make of the call, whoever asks: to compare, never to answer.
pub fn check_under(input: &CheckInput<'_>, arm: Arm) -> Checked {
    let mut pass = Pass::new(input);
    pass.under = Some(arm);
    run(pass)
}

fn run(mut pass: Pass<'_>) -> Checked {
    let decision = GATES.iter().find_map(|gate| gate(&mut pass).err()).unwrap_or_else(|| pass.allowed());
    let decision = observe::weigh(&mut pass, decision);
    let record = record::record(&pass, &decision);
    Checked { decision, record }
}

/// Runs every gate in its order and writes nothing down: for who asks again what was asked before.
pub fn decide(input: &CheckInput<'_>) -> Decision {
    let mut pass = Pass::new(input);
    let decision = GATES.iter().find_map(|gate| gate(&mut pass).err()).unwrap_or_else(|| pass.allowed());
    observe::weigh(&mut pass, decision)
}

/// The record of a question that was refused before the gates: who asked could not be let in.
pub fn refused(input: &CheckInput<'_>, status: u16, code: &'static str, reason: String) -> Checked {
    let decision = pass::refuse(status, code, reason);
    let record = record::record(&Pass::new(input), &decision);
    Checked { decision, record }
}
