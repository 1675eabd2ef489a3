//! Conditions, as kstatus, `kubectl wait`, Argo CD and Flux read them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// `Ready` summarises an object; it is set at the first visit.
pub const READY: &str = "Ready";
/// Present, and True, only while the operator still works on the object.
pub const RECONCILING: &str = "Reconciling";
/// Present, and True, only while the operator can't go on without a change of the object or of what it refers to.
pub const STALLED: &str = "Stalled";

/// Sets `next` in `conditions`, keeping `lastTransitionTime` where the status did not change, so that messages don't flap.
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    type_: &str,
    status: bool,
    reason: &str,
    message: impl Into<String>,
    generation: i64,
    now: jiff::Timestamp,
) {
    let status = if status { "True" } else { "False" };
    let since = conditions
        .iter()
        .find(|c| c.type_ == type_ && c.status == status)
        .map_or(Time(now), |c| c.last_transition_time.clone());
    let next = Condition {
        type_: type_.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: Some(generation),
        last_transition_time: since,
    };
    match conditions.iter_mut().find(|c| c.type_ == type_) {
        Some(old) => *old = next,
        None => conditions.push(next),
    }
}

/// Removes a condition that is present only while it is True (`Reconciling`, `Stalled`).
pub fn clear_condition(conditions: &mut Vec<Condition>, type_: &str) {
    conditions.retain(|c| c.type_ != type_);
}

/// Whether the condition is there and True.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    conditions.iter().any(|c| c.type_ == type_ && c.status == "True")
}

/// `observedGeneration` of an object that no controller has visited (kstatus reads it as "in progress").
pub fn never_observed() -> i64 {
    -1
}
